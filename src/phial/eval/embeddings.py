"""How good vectors of texts are: retrieval (recall@k, MRR) and agreement with graded pairs (Spearman on the cosine).

What embeds is given as a function. Intervals are bootstrap percentiles over queries, or over graded pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phial.errors import PhialError

Embed = Callable[[Sequence[str], Literal["query", "document"]], NDArray[np.floating]]
Floats = NDArray[np.float64]
AT = (1, 10)
_ROUNDS, _STRIP = 1000, 512  # resamples; queries scored at once


class Interval(NamedTuple):
    """A value and where 95 of 100 resamples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What one model's vectors come to.

    Attributes:
        ranks: of each query's relevant documents, from 1, in order; texts that are as near count as nearer.
        cosines, scores: of the graded pairs.
    """

    ranks: Sequence[NDArray[np.int64]]
    cosines: Floats
    scores: Floats

    def per_query(self) -> dict[str, Floats]:
        """recall@k and the reciprocal rank of the nearest relevant document, of each query."""
        if not len(self.ranks):
            return {}
        recalls = {f"recall@{k}": np.array([(ranks <= k).mean() for ranks in self.ranks]) for k in AT}
        return recalls | {"mrr": np.array([1 / ranks[0] for ranks in self.ranks])}

    def means(self) -> dict[str, float]:
        """Every measure there is: fractions, and "spearman" times 100."""
        found = {name: float(values.mean()) for name, values in self.per_query().items()}
        return found | ({"spearman": 100 * spearman(self.cosines, self.scores)} if len(self.scores) else {})


@dataclass
class HeldOut:
    """Held-out texts and what is known of them; to be called with a way to embed.

    Attributes:
        relevant: the numbers of each query's documents.
        measured: what each call has found.
    """

    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]
    graded: list[tuple[str, str, float]]
    measured: list[Measured] = field(default_factory=list)

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[str, str, Sequence[str]]], graded: Iterable[tuple[str, str, float]] = ()
    ) -> HeldOut:
        """Pairs (query, positive, negatives): each query is to find its positives among all documents of all pairs.

        Raises PhialError where there is nothing to measure, or the scores of graded pairs are all the same.
        """
        documents: dict[str, int] = {}
        answers: dict[str, dict[int, None]] = {}
        for query, positive, negatives in pairs:
            for text in (positive, *negatives):
                documents.setdefault(text, len(documents))
            answers.setdefault(query, {})[documents[positive]] = None
        held = cls(list(answers), list(documents), [list(found) for found in answers.values()], list(graded))
        if not held.queries and not held.graded:
            raise PhialError("there is nothing to measure on", "give pairs or graded pairs")
        if held.graded and len({score for _, _, score in held.graded}) == 1:
            raise PhialError("all graded pairs have the same score", "give pairs that differ")
        return held

    def __call__(self, embed: Embed) -> dict[str, float]:
        """Measured.means() of vectors; what they are made of is kept."""
        ranks: Sequence[NDArray[np.int64]] = []
        if self.queries:
            ranks = ranks_of(embed(self.queries, "query"), embed(self.documents, "document"), self.relevant)
        cosines: Floats = np.zeros(0)
        if self.graded:
            first, second = (unit(embed(list(texts), "document")) for texts in list(zip(*self.graded, strict=True))[:2])
            cosines = (first * second).sum(1)
        self.measured.append(Measured(ranks, cosines, np.array([pair[2] for pair in self.graded], np.float64)))
        return self.measured[-1].means()


def unit(vectors: ArrayLike) -> Floats:
    """(n, D) scaled to length 1. Raises PhialError for what is no number."""
    values = np.asarray(vectors, np.float64)
    if not np.isfinite(values).all():
        raise PhialError("some vectors hold NaN or infinity", "the model has diverged")
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def ranks_of(queries: ArrayLike, documents: ArrayLike, relevant: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
    """Ranks of each query's relevant documents by cosine, from 1, in order; those as near count as nearer."""
    asked, held = unit(queries).astype(np.float32), unit(documents).astype(np.float32)
    found = []
    for at in range(0, len(asked), _STRIP):
        scores = asked[at : at + _STRIP] @ held.T
        for row, own in zip(scores, relevant[at : at + _STRIP], strict=True):
            ordered = np.sort(row)
            found.append(np.sort(len(row) - np.searchsorted(ordered, row[list(own)], "left")))
    return found


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Correlation of ranks, -1..1, tied values sharing their mean rank; 0 where one side is all the same."""
    x, y = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else 0.0


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)


def intervals(measured: Measured, seed: int = 0) -> dict[str, Interval]:
    """Each measure with its interval."""
    found = {name: _interval(values.mean(), _means(values, seed)) for name, values in measured.per_query().items()}
    if len(measured.scores):
        found["spearman"] = _interval(measured.means()["spearman"], _spearmans(measured, seed))
    return found


def gains(before: Measured, after: Measured, seed: int = 0) -> dict[str, Interval]:
    """What a measure has gained, with its interval: the same queries and pairs are drawn for both."""
    old, new = before.per_query(), after.per_query()
    found = {name: _interval((new[name] - old[name]).mean(), _means(new[name] - old[name], seed)) for name in old}
    if len(before.scores):
        gain = after.means()["spearman"] - before.means()["spearman"]
        found["spearman"] = _interval(gain, _spearmans(after, seed) - _spearmans(before, seed))
    return found


def rounded(found: Mapping[str, Interval]) -> dict[str, list[float]]:
    """For JSON: [value, low, high]."""
    return {name: [round(number, 6) for number in interval] for name, interval in found.items()}


def _means(values: Floats, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    return np.array([values[random.integers(len(values), size=len(values))].mean() for _ in range(_ROUNDS)])


def _spearmans(measured: Measured, seed: int) -> Floats:
    random, n = np.random.default_rng(seed), len(measured.scores)
    draws = (random.integers(n, size=n) for _ in range(_ROUNDS))
    return np.array([100 * spearman(measured.cosines[draw], measured.scores[draw]) for draw in draws])


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
