"""The shapes of Llama's answers as TypedDicts: those of llama-cpp-python, which are OpenAI's (phi3-spec §10.3).

Keys stand in the order in which the answers hold them. Left out: function and tool calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError

FinishReason = Literal["stop", "length"]
Processor = Callable[[NDArray[np.intc], NDArray[np.float32]], NDArray[np.float32]]
Criterion = Callable[[NDArray[np.intc], NDArray[np.float32]], bool]


class CompletionLogprobs(TypedDict):
    """One entry per token in each list; the first entries of an echoed prompt are None."""

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChunk(TypedDict):
    """One piece of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]


class Completion(CompletionChunk):
    """A whole completion."""

    usage: CompletionUsage


class ChatTopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TypedDict):
    token: str
    bytes: list[int] | None
    logprob: float | None
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatDelta(TypedDict, total=False):
    """The role first, then pieces of content, then nothing beside the finish reason."""

    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    id: str
    model: str
    created: int
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class Embedding(TypedDict):
    object: Literal["embedding"]
    embedding: list[float] | list[list[float]]
    index: int


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class LlamaTokenizer(Protocol):
    """What may be passed as Llama(tokenizer=...)."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]: ...
    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes: ...


class ChatHandler(Protocol):
    """What may be passed as Llama(chat_handler=...): gets `llama`, `messages` and every chat argument by name."""

    def __call__(self, **arguments: Any) -> ChatCompletion | Iterator[ChatCompletionChunk]: ...


class LogitsProcessorList(list[Processor]):
    """Processors one after the other, each given the ids so far and the logits, each returning the logits."""

    def __call__(self, input_ids: NDArray[np.intc], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[Criterion]):
    """Criteria of which any one ends the generation."""

    def __call__(self, input_ids: NDArray[np.intc], logits: NDArray[np.float32]) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


def as_processor(processors: Processor | Sequence[Processor] | None) -> Processor | None:
    """One callable from what may be passed as logits_processor: nothing, a callable, or several."""
    if processors is None or callable(processors):
        return processors
    return LogitsProcessorList(processors)


def as_criterion(criteria: Criterion | Sequence[Criterion] | None) -> Criterion | None:
    """One callable from what may be passed as stopping_criteria."""
    if criteria is None or callable(criteria):
        return criteria
    return StoppingCriteriaList(criteria)


def processed(processor: Processor | None, ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits after the processor, which gets a copy it may change.

    Raises:
        ArgumentError: it returned an array of another shape.
    """
    if processor is None:
        return logits
    result = np.asarray(processor(np.array(ids, np.intc), logits.copy()), np.float32)
    if result.shape != logits.shape:
        raise ArgumentError(f"a logits processor returned the shape {result.shape}", f"expected {logits.shape}")
    return result
