"""Log-probabilities of tokens from logits, and the lists in which an answer carries them (phi3-spec §10.3, §10.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phial.engine.llama_types import CompletionLogprobs
from phial.engine.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer: its text, where that begins, its log-probability and those of the likeliest tokens.

    logprob and top are None for the first token of an echoed prompt, which nothing predicts.
    """

    text: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


def logits_to_logprobs(logits: ArrayLike, axis: int = -1) -> NDArray[np.float32]:
    """ln softmax along an axis, in float32; -inf stays -inf."""
    values = np.asarray(logits, np.float32)
    largest = np.max(values, axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, np.float32(0))
    below = values - largest
    with np.errstate(divide="ignore"):
        result: NDArray[np.float32] = below - np.log(np.sum(np.exp(below), axis=axis, keepdims=True))
    return result


def likeliest(logprobs: NDArray[np.float32], count: int) -> list[int]:
    """The ids of the `count` largest, largest first; of equal ones the higher id first."""
    count = min(count, len(logprobs))
    if count == 0:
        return []
    smallest = np.partition(logprobs, len(logprobs) - count)[len(logprobs) - count]
    ids = np.flatnonzero(logprobs >= smallest)
    order = np.lexsort((-ids, -logprobs[ids]))[:count]
    return [int(i) for i in ids[order]]


def token_logprob(
    vocabulary: Vocabulary, logits: NDArray[np.float32], token: int, text: str, offset: int, count: int
) -> TokenLogprob:
    """Describe a token by the logits that predicted it; `top` holds the `count` likeliest and the token itself."""
    logprobs = logits_to_logprobs(logits)
    top = {vocabulary.text(i): float(logprobs[i]) for i in likeliest(logprobs, count)}
    top[text] = float(logprobs[token])
    return TokenLogprob(text, offset, float(logprobs[token]), top)


def as_lists(entries: Iterable[Any]) -> CompletionLogprobs:
    """TokenLogprobs as the four lists of an answer."""
    entries = list(entries)
    return {
        "tokens": [entry.text for entry in entries],
        "text_offset": [entry.offset for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [entry.top for entry in entries],
    }
