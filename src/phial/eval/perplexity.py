"""How well a model predicts a text, and how far its predictions are from another model's, window by window.

Perplexity is exp of the mean negative log-likelihood of the scored tokens. Against a base, each scored position has
the KL divergence KL(base || model) over the whole vocabulary (Kullback and Leibler, 1951), whether both have the same
likeliest token, and the difference of the true token's probability. One row of logits is worked on at a time, in
float64. Left out: what the numbers amount to (statistics.py), where they are kept (journal.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phial.errors import PhialError
from phial.eval.journal import COMPARED, NLL, Journal, base_record
from phial.eval.statistics import Tally
from phial.eval.windows import Windows

Row = NDArray[np.float64]
Record = NDArray[Any]  # structured, one element per scored token
Measure = Callable[[int, list[int], int], Record]  # (window, its tokens, first) -> what was found

RANGE = 20.0  # natural logarithms below the likeliest token that a saved base tells apart
_TOP = 65535


class LanguageModel(Protocol):
    """What is measured: tokens in, logits out."""

    @property
    def n_vocab(self) -> int: ...

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """Yield rows of logits (n, n_vocab), in pieces of any size: those that predict tokens[first + 1:]."""


class Base(Protocol):
    """What a model is compared with: another model, or what one said before."""

    def log_probs(self, window: int, tokens: list[int], first: int) -> Iterator[tuple[float, Row]]:
        """For each of tokens[first + 1:], its negative log-likelihood and all log-probabilities (n_vocab,)."""


def log_softmax(row: NDArray[Any]) -> Row:
    """Logits (n_vocab,) as log-probabilities."""
    with np.errstate(invalid="ignore"):  # infinite and NaN logits are refused where the score is taken
        shifted: Row = row.astype(np.float64) - float(row.max())
        return shifted - float(np.log(np.exp(shifted).sum()))


class ModelBase:
    """Another model that reads the same windows alongside; also how the measured model itself is read."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def log_probs(self, window: int, tokens: list[int], first: int) -> Iterator[tuple[float, Row]]:
        rows = chain.from_iterable(self.model.logits(tokens, first))
        for row, target in zip(rows, tokens[first + 1 :], strict=True):
            log_probs = log_softmax(row)
            yield _finite(-float(log_probs[target]), window), log_probs


class SavedBase:
    """What a model said before, from a finished journal of kind "base"."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def log_probs(self, window: int, tokens: list[int], first: int) -> Iterator[tuple[float, Row]]:
        for saved in self.journal.read(window):
            yield float(saved["nll"]), decode(saved["low"], saved["step"], saved["codes"])


def encode(log_probs: Row) -> tuple[float, float, NDArray[np.uint16]]:
    """A row as (low, step, codes): log-probability = low + step * code, renormalised by decode.

    The error of a log-probability is at most step, which is at most RANGE/65535 = 3.1e-4, and what renormalising adds
    (n_vocab * exp(-RANGE): 1e-4 for 50,000 tokens). Tokens rarer than exp(-RANGE) of the likeliest are raised to that.
    The likeliest token alone has the highest code, so it stays the likeliest.
    """
    top = int(log_probs.argmax())
    low = max(float(log_probs.min()), float(log_probs[top]) - RANGE)
    step = (float(log_probs[top]) - low) / _TOP
    if step == 0.0:
        return low, 0.0, np.zeros(len(log_probs), np.uint16)
    codes = np.minimum(np.rint((np.maximum(log_probs, low) - low) / step), _TOP - 1).astype(np.uint16)
    codes[top] = _TOP
    return low, step, codes


def decode(low: float, step: float, codes: NDArray[np.uint16]) -> Row:
    """The log-probabilities of a row; their exponentials sum to one."""
    return log_softmax(low + step * codes.astype(np.float64))


def scoring(model: LanguageModel) -> Measure:
    """Negative log-likelihoods only."""

    def measure(window: int, tokens: list[int], first: int) -> Record:
        return np.array([(nll,) for nll, _ in ModelBase(model).log_probs(window, tokens, first)], NLL)

    return measure


def saving(model: LanguageModel) -> Measure:
    """Negative log-likelihoods, and all log-probabilities in the compact form of `encode`."""
    kind = base_record(model.n_vocab)

    def measure(window: int, tokens: list[int], first: int) -> Record:
        record = np.empty(len(tokens) - first - 1, kind)
        for i, (nll, log_probs) in enumerate(ModelBase(model).log_probs(window, tokens, first)):
            record[i] = (nll, *encode(log_probs))
        return record

    return measure


def comparing(model: LanguageModel, base: Base) -> Measure:
    """Both negative log-likelihoods, KL(base || model), and whether the likeliest token is the same."""

    def measure(window: int, tokens: list[int], first: int) -> Record:
        ours, theirs = ModelBase(model).log_probs(window, tokens, first), base.log_probs(window, tokens, first)
        record = np.empty(len(tokens) - first - 1, COMPARED)
        for i, ((nll, q), (base_nll, p)) in enumerate(zip(ours, theirs, strict=True)):
            record[i] = (nll, base_nll, _finite(kl_divergence(p, q), window), p.argmax() == q.argmax())
        return record

    return measure


def kl_divergence(p: Row, q: Row) -> float:
    """KL(p || q) in nats, of two rows of log-probabilities; a token that p excludes counts nothing."""
    possible = p > -np.inf
    return float((np.exp(p[possible]) * (p[possible] - q[possible])).sum())


def _finite(score: float, window: int) -> float:
    """The score itself; PhialError where it is NaN or infinite."""
    if not np.isfinite(score):
        raise PhialError(
            f"window {window + 1}: a model's logits give no finite score",
            "that model is damaged, or holds a token of the text for impossible",
        )
    return score


def evaluate(measure: Measure, ids: Sequence[int], windows: Windows, journal: Journal | None = None) -> Iterator[Tally]:
    """Measure every window; yield the tally after each (one object, growing).

    Windows the journal holds are taken from there, the others are added to it: a run that was stopped and goes on
    gives the same numbers to the last bit.
    """
    tally = Tally()
    for window in range(windows.count):
        if journal is not None and window < journal.n_records:
            record = journal.read(window)
        else:
            record = measure(window, windows.tokens(ids, window), windows.first)
            if journal is not None:
                journal.append(record)
        tally.add(record)
        yield tally
