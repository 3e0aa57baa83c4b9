"""What Llama takes as its draft_model: llama-cpp-python's prompt lookup, any callable of that kind, or a second Llama.

None of them changes what is generated. Without one, Llama looks prompts up by itself; False turns that off.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.engine.draft_model import CostlyDrafter, DraftModel, check_same_vocabulary
from phial.engine.engine import Engine
from phial.engine.lookup import Lookup
from phial.engine.speculation import Drafter
from phial.errors import ArgumentError


class LlamaDraftModel(ABC):
    """Base of draft models: called with all ids so far, (n,) of int32, returns ids that may follow."""

    @abstractmethod
    def __call__(self, input_ids: NDArray[np.intc], /, **kwargs: Any) -> NDArray[np.intc]: ...


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Drafts copied from where the text has said the last tokens before (lookup.py).

    Attributes:
        max_ngram_size: how many last tokens are looked up at most.
        num_pred_tokens: how many are drafted at most; Llama drafts fewer where fewer are faster.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        for name, value in (("max_ngram_size", max_ngram_size), ("num_pred_tokens", num_pred_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name}={value!r} is outside its range", "a whole number from 1")
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    def drafter(self) -> Lookup:
        """The same as a Drafter that follows one text."""
        return Lookup(range(self.max_ngram_size, 0, -1), self.num_pred_tokens)

    def __call__(self, input_ids: NDArray[np.intc], /, **kwargs: Any) -> NDArray[np.intc]:
        ids, lookup = [int(i) for i in input_ids], self.drafter()
        if ids:
            lookup.begin(ids)
        return np.array(lookup.draft(self.num_pred_tokens), np.intc)


class CalledDrafter(CostlyDrafter):
    """A callable as a Drafter."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self._call = call

    def _ask(self, n: int) -> list[int]:
        drafts = np.asarray(self._call(np.array(self._text, np.intc))).reshape(-1)
        if len(drafts) and drafts.dtype.kind not in "iu":
            raise ArgumentError(f"draft_model returned {drafts.dtype.name}s", "it must return token ids: whole numbers")
        return [int(draft) for draft in drafts[:n]]


def drafter_for(draft_model: Any, engine: Engine, n_ctx: int) -> Drafter | None:
    """The Drafter that a draft_model is; None where none is given.

    Raises:
        ArgumentError: it is nothing that could draft, or a Llama of another vocabulary.
    """
    if draft_model is None or draft_model is False:
        return None
    if isinstance(draft_model, LlamaPromptLookupDecoding):
        return draft_model.drafter()
    small = getattr(draft_model, "model", None)
    if isinstance(small, Engine):
        check_same_vocabulary(engine, small)
        return DraftModel(small, n_ctx)
    if not callable(draft_model):
        raise ArgumentError(
            f"draft_model={draft_model!r} cannot draft",
            "LlamaPromptLookupDecoding(), a smaller Llama, or False",
        )
    return CalledDrafter(draft_model)
