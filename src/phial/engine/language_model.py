"""Language models for data and evaluation: our engine behind the protocol, and one name for engine and endpoint."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.engine.grammar import LlamaGrammar
from phial.engine.llama import Llama
from phial.errors import ArgumentError
from phial.hub.endpoint import EndpointModel
from phial.language_model import LanguageModel, Reply

KEY_VARIABLE = "PHIAL_API_KEY"


class EngineModel:
    """A LanguageModel over a Llama, with its chat template. Threads may share one; they wait for each other.

    A temperature above 0 draws with Llama's own filters (top_k 40, top_p 0.95, min_p 0.05). What two calls share at
    the beginning of their prompts, a rubric say, is computed once. Pickled, it opens the model anew.

    Attributes:
        name: the model file's name, without its folder.
        llama: the model.
    """

    def __init__(self, llama: Llama, name: str | None = None) -> None:
        self.llama = llama
        self.name = Path(llama.model_path).name if name is None else name
        self._grammars: dict[str, LlamaGrammar] = {}
        self._lock = threading.Lock()

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        schema: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        """LanguageModel.generate; the same arguments give the same reply.

        Raises:
            ContextLimitError: the prompt fills the context.
            ArgumentError: a schema that cannot be kept, messages the template cannot take, max_tokens below 1.
        """
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens is {max_tokens}", "at least 1")
        with self._lock:
            answer: Any = self.llama.create_chat_completion(
                list(messages),
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop=list(stop),
                grammar=self._grammar(schema),
            )
        choice, usage = answer["choices"][0], answer["usage"]
        return Reply(
            choice["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"], choice["finish_reason"]
        )

    def close(self) -> None:
        """Free the model."""
        self.llama.close()

    def __getstate__(self) -> tuple[Llama, str]:
        return self.llama, self.name

    def __setstate__(self, state: tuple[Llama, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # a lock and grammars of its own

    def _grammar(self, schema: Mapping[str, Any] | None) -> LlamaGrammar | None:
        if schema is None:
            return None
        key = json.dumps(schema, default=repr)
        if key not in self._grammars:
            self._grammars[key] = LlamaGrammar.from_json_schema(schema)
        return self._grammars[key]


def open_language_model(
    model: str | os.PathLike[str], *, n_ctx: int = 0, n_threads: int | None = None, timeout: float = 300.0
) -> LanguageModel:
    """A model by name, by path, or behind an endpoint written as "https://host/v1#model".

    The endpoint's key is taken from PHIAL_API_KEY where that is set.

    Args:
        n_ctx: tokens of context of a local model; 0 for what it was trained with. Memory grows with use only.
        n_threads: of a local model; None for the physical cores.
        timeout: of an endpoint, seconds without a byte.

    Raises:
        PhialError: no such model, a damaged file, or an address without a model's name.
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        base, _, name = model.partition("#")
        return EndpointModel(base, name, KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None, timeout=timeout)
    return EngineModel(Llama(os.fspath(model), n_ctx=n_ctx, n_threads=n_threads, verbose=False))
