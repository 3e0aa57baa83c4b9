"""Llama: the class of llama-cpp-python over phial's engine, so that programs written for it run here.

    from phial import Llama

    llm = Llama(model_path="Phi-3-mini-4k-instruct-q4.gguf", n_ctx=4096)
    print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])

Arguments, defaults and answers are its own (phi3-spec §10.1-10.4), written against recorded answers. Every argument
works or is answered: llama_arguments.py. Left out: tools.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phial import hub
from phial.engine import logprobs as logprobs_module
from phial.engine.chat_completion import (
    as_chat,
    as_chat_chunks,
    chat_grammar,
    number_of_logprobs,
    refuse_tools,
)
from phial.engine.chat_formats import ChatFormat, check_format, choose_format
from phial.engine.completion import CompletionRequest, CompletionRun
from phial.engine.embedding import Vector, pool
from phial.engine.grammar import LlamaGrammar
from phial.engine.llama_arguments import (
    RANDOM_SEED,
    check_constructor,
    chosen_seed,
    sampling_params,
    say,
    say_gpu_layers,
    stop_strings,
)
from phial.engine.llama_core import LlamaCore
from phial.engine.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from phial.engine.llama_state import (
    LlamaCache,
    LlamaDiskCache,
    LlamaRAMCache,
    LlamaState,
    longest_token_prefix,
)
from phial.engine.llama_types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatHandler,
    Completion,
    CompletionChunk,
    Criterion,
    Embedding,
    EmbeddingResponse,
    LlamaTokenizer,
    LogitsProcessorList,
    Processor,
    StoppingCriteriaList,
    as_criterion,
    as_processor,
)
from phial.engine.pretrained import fetch
from phial.engine.prompts import infill_ids, read_prompt, room_for
from phial.errors import ArgumentError, PhialError

__all__ = [
    "Llama", "LlamaCache", "LlamaDiskCache", "LlamaDraftModel", "LlamaGrammar", "LlamaPromptLookupDecoding",
    "LlamaRAMCache", "LlamaState", "LogitsProcessorList", "StoppingCriteriaList",
]  # fmt: skip


# what create_completion does not pass on to the sampler
_NOT_FOR_SAMPLING = (
    "prompt", "suffix", "max_tokens", "logprobs", "echo", "stop", "stream", "seed", "model", "stopping_criteria",
    "logits_processor", "grammar",
)  # fmt: skip


class Llama(LlamaCore):
    """A model with the interface of llama_cpp.Llama; the low-level methods are LlamaCore's."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = RANDOM_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int = -1,
        attention_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float | Sequence[float] = 1.0,
        lora_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: ChatHandler | None = None,
        draft_model: object = None,
        tokenizer: LlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
    ) -> None:
        """Open a model: a GGUF file, or a name that `phial pull` has stored; n_ctx 0 is the trained length.

        lora_path: a LoRA adapter, a PEFT folder or a GGUF file, or several with a lora_scale each.
        draft_model: who guesses tokens ahead, False for nobody (llama_speculative.py); it changes no answer.

        Raises:
            ArgumentError: no such model (a ValueError), or an argument that cannot be honoured.
            FormatError: the file is no model we can run.
        """
        self._begin({name: value for name, value in locals().items() if name != "self"})

    def _begin(self, arguments: dict[str, Any]) -> None:
        check_constructor(arguments)
        check_format(arguments["chat_format"])
        self._arguments = arguments
        self._embedding = bool(arguments["embedding"])
        try:
            path = hub.resolve(arguments["model_path"])
        except PhialError as error:  # a ValueError too: llama_cpp's users catch that
            raise ArgumentError(error.message, error.hint) from error
        try:
            self._open(str(path), arguments)
        except BaseException:
            self.close()
            raise
        self._infill = infill_ids(self._raw_metadata)
        if arguments["spm_infill"] and self._infill is None:
            self.close()
            raise ArgumentError("spm_infill=True, but this model has no infill tokens", "leave spm_infill out")
        self.chat_format: str | None = arguments["chat_format"]
        self.chat_handler: ChatHandler | None = arguments["chat_handler"]
        self._style: ChatFormat | None = None
        if self._engine is not None:
            say_gpu_layers(arguments["n_gpu_layers"], self._engine.config.n_layer)

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Criterion | Sequence[Criterion] | None = None,
        logits_processor: Processor | Sequence[Processor] | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
    ) -> Completion | Iterator[CompletionChunk]:
        """Continue a prompt, text or ids; a dict, or with `stream` an iterator of dicts.

        max_tokens None, 0 or less: until the context is full. logprobs: how many likeliest tokens to name for each
        token, for a model opened with logits_all=True. logit_bias: added to the logits of these ids. grammar: a
        LlamaGrammar the text is held to; it is a whole one unless finish_reason is "length". Everything is checked
        before this returns, also when streaming.

        Raises:
            ContextLimitError: the prompt fills the context (a ValueError).
            ArgumentError: an argument is outside its range or cannot be honoured (a ValueError).
        """
        arguments = dict(locals())
        del arguments["self"]
        return self._complete(arguments, self.vocabulary.tokenizer.eog_ids)

    __call__ = create_completion

    def _complete(self, arguments: dict[str, Any], stop_ids: Collection[int]) -> Completion | Iterator[CompletionChunk]:
        """Check create_completion's arguments and run."""
        chosen = {name: arguments.pop(name) for name in _NOT_FOR_SAMPLING}
        run = CompletionRun(self, self._request(chosen, arguments, stop_ids))
        return run.chunks() if chosen["stream"] else run.whole()

    def _request(
        self, chosen: Mapping[str, Any], sampling: Mapping[str, Any], stop_ids: Collection[int]
    ) -> CompletionRequest:
        seed, logprobs = chosen["seed"], chosen["logprobs"]
        if logprobs is not None:
            if isinstance(logprobs, bool) or not isinstance(logprobs, int) or logprobs < 0:
                raise ArgumentError(
                    f"logprobs is {logprobs!r}", "how many likeliest tokens to name: 0 or more, or None"
                )
            if not self._logits_all:
                raise ArgumentError("logprobs needs logits_all=True", "open the model with Llama(..., logits_all=True)")
        stops = stop_strings(chosen["stop"])
        prompt = read_prompt(
            self.vocabulary, chosen["prompt"], chosen["suffix"], self._infill, self._arguments["spm_infill"]
        )
        max_tokens = room_for(prompt.ids, self.token_bos(), self._n_ctx, chosen["max_tokens"])
        params = sampling_params(
            **sampling,
            penalty_last_n=self.last_n_tokens_size,
            seed=self._next_seed() if seed is None else chosen_seed(seed),
        )
        if seed is not None:
            self.set_seed(seed)
        return CompletionRequest(
            prompt=prompt.text,
            prompt_ids=prompt.ids,
            suffix=prompt.suffix,
            max_tokens=max_tokens,
            params=params,
            stop=stops,
            stop_ids=stop_ids,
            echo=chosen["echo"],
            logprobs=logprobs,
            model=self.model_path if chosen["model"] is None else chosen["model"],
            processor=as_processor(chosen["logits_processor"]),
            criterion=as_criterion(chosen["stopping_criteria"]),
            constraint=self._constraint(chosen["grammar"], stop_ids),
        )

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Any] | None = None,
        function_call: Any = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Processor | Sequence[Processor] | None = None,
        grammar: object = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Answer a conversation; a dict, or with `stream` an iterator of dicts.

        The prompt is made by chat_handler, else by chat_format, else by the model file's template, else as for
        Llama 2. What the messages say is never read as control tokens. response_format: {"type": "json_object"}, with
        "schema" or not, or OpenAI's "json_schema"; the answer is then JSON, unless finish_reason is "length".

        Raises: as create_completion does; ArgumentError for tools, which come later.
        """
        arguments = dict(locals())
        del arguments["self"]
        if self.chat_handler is not None:
            return self.chat_handler(llama=self, **arguments)
        refuse_tools(arguments)
        arguments["grammar"] = chat_grammar(response_format, grammar)
        for name in ("functions", "function_call", "tools", "tool_choice", "response_format", "top_logprobs"):
            del arguments[name]
        arguments |= {"suffix": None, "echo": False, "stopping_criteria": None}
        style, tokenizer = self._chat_format(), self.vocabulary.tokenizer
        arguments["prompt"] = style.template.encode(arguments.pop("messages"), tokenizer)
        arguments["logprobs"] = number_of_logprobs(logprobs, top_logprobs)
        arguments["stop"] = [*stop_strings(stop), *style.stop_strings]
        answer = self._complete(arguments, style.stop_ids)
        return as_chat_chunks(answer) if isinstance(answer, Iterator) else as_chat(answer)

    def _chat_format(self) -> ChatFormat:
        if self._style is None:
            self._style = choose_format(self.chat_format, self._raw_metadata, self.vocabulary.tokenizer)
        return self._style

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """create_chat_completion, as the objects of the openai package (ChatCompletion, ChatCompletionChunk)."""
        try:
            chat = import_module("openai.types.chat")
        except ImportError as error:
            raise PhialError("the openai package is not installed", "pip install openai") from error
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, Iterator):
            return (chat.ChatCompletionChunk(**chunk) for chunk in answer)
        return chat.ChatCompletion(**answer)

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> EmbeddingResponse:
        """Embed one text or several, in OpenAI's form."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors, count = self.embed(texts, return_count=True)
        data: list[Embedding] = [
            {"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)
        ]
        name = self.model_path if model is None else model
        return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": count, "total_tokens": count}}

    def embed(
        self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Vectors of one text or a list of texts; one per token where pooling_type is none (0).

        truncate: cut texts at n_batch tokens, saying so on stderr; else a longer one is an error. return_count: a
        pair with the number of tokens read.
        """
        if not self._embedding:
            raise PhialError("embeddings need embedding=True", "open the model with Llama(..., embedding=True)")
        texts = [input] if isinstance(input, str) else list(input)
        vectors: list[Vector | list[Vector]] = []
        count = 0
        for i, text in enumerate(texts):
            ids = self.vocabulary.tokenize(text)
            if not ids:
                raise ArgumentError(f"input {i} is empty", "pass texts of at least one character")
            if len(ids) > self.n_batch:
                if not truncate:
                    raise ArgumentError(f"input {i} has {len(ids)} tokens, n_batch is {self.n_batch}", "raise n_batch")
                say(f"input {i} is cut from {len(ids)} to {self.n_batch} tokens (n_batch)")
            hidden = self.ctx.hidden(ids[: self.n_batch])
            vectors.append(pool(hidden, self.pooling_type(), normalize))
            count += min(len(ids), self.n_batch)
        output = vectors[0] if isinstance(input, str) else vectors
        return (output, count) if return_count else output

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments: a pickled Llama opens the model anew."""
        return dict(self._arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # how llama_cpp.Llama unpickles

    @staticmethod
    def logits_to_logprobs(logits: ArrayLike, axis: int = -1) -> NDArray[np.float32]:
        """ln softmax along an axis."""
        return logprobs_module.logits_to_logprobs(logits, axis)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two sequences share at their beginning."""
        return longest_token_prefix(a, b)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Fetch the one file of a Hugging Face repository that matches a pattern, and open it.

        Raises:
            ArgumentError: not exactly one file matches (a ValueError).
        """
        if local_dir_use_symlinks is True:
            raise ArgumentError("local_dir_use_symlinks=True is not supported", "files in local_dir are never links")
        return cls(model_path=fetch(repo_id, filename, additional_files, local_dir, cache_dir), **kwargs)
