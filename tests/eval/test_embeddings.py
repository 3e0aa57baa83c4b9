"""Measures of vectors against scipy and by hand, and intervals that cover what they should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from phial.errors import PhialError
from phial.eval.embeddings import HeldOut, Measured, gains, intervals, ranks_of, spearman


@pytest.mark.parametrize("distinct", [1000, 7, 2])
def test_spearman_is_scipys_with_and_without_ties(distinct: int) -> None:
    random = np.random.default_rng(distinct)
    a, b = random.integers(distinct, size=200), random.normal(size=200)
    a = a + (b > 0) * 2
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, np.ones(200)) == 0.0


def test_ranks_count_what_is_nearer_and_ties_against_the_model() -> None:
    documents = np.array([[1.0, 0], [2, 0], [1, 1], [0, 5], [-1, 0]])
    ranks = ranks_of(np.array([[3.0, 0], [0, 1]]), documents, [[0, 4], [3]])
    assert [r.tolist() for r in ranks] == [[2, 5], [1]]  # document 1 is as near as document 0


def test_ranks_are_those_of_a_whole_matrix_however_many_queries() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(1100, 8)), random.normal(size=(60, 8))
    cosine = (queries @ documents.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(documents, axis=1)
    expected = [1 + int((row > row[i % 60]).sum()) for i, row in enumerate(cosine)]
    assert [int(r[0]) for r in ranks_of(queries, documents, [[i % 60] for i in range(1100)])] == expected


def _table(vectors: dict[str, list[float]]):  # type: ignore[no-untyped-def]
    def embed(texts: Sequence[str], side: str) -> NDArray[np.float64]:
        return np.array([vectors[text if side == "document" else f"? {text}"] for text in texts])

    return embed


def test_a_query_is_to_find_all_its_documents_among_those_of_all() -> None:
    held = HeldOut.of(
        [("q", "a", []), ("r", "b", ["c"]), ("q", "c", []), ("r", "b", [])],
        [("a", "b", 1), ("a", "c", 2), ("b", "c", 3)],
    )
    assert (held.queries, held.documents, held.relevant) == (["q", "r"], ["a", "b", "c"], [[0, 2], [1]])
    table = {"? q": [1, 0], "? r": [1, 0.1], "a": [1, 0.01], "b": [0, 1], "c": [1, 1]}
    found = held(_table(table))  # type: ignore[arg-type]
    assert found["recall@1"] == pytest.approx((0.5 + 0) / 2) and found["recall@10"] == 1
    assert found["mrr"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["spearman"] == pytest.approx(50.0)  # cosines a-b < a-c = b-c nearly: the order 1, 3, 2
    assert len(held.measured) == 1


def test_what_cannot_be_measured_on_is_an_error() -> None:
    with pytest.raises(PhialError, match="nothing to measure on"):
        HeldOut.of([])
    with pytest.raises(PhialError, match="the same score"):
        HeldOut.of([], [("a", "b", 1), ("a", "c", 1)])
    with pytest.raises(PhialError, match="NaN"):
        HeldOut.of([("q", "a", [])])(_table({"? q": [1, float("nan")], "a": [1, 0]}))  # type: ignore[arg-type]


def _measured(random: np.random.Generator, top: int) -> Measured:
    scores = random.normal(size=80)
    return Measured([np.array([r]) for r in random.integers(1, top, size=80)], scores + random.normal(size=80), scores)


def test_intervals_hold_the_value_and_a_gain_is_drawn_in_pairs() -> None:
    random = np.random.default_rng(1)
    one, other = _measured(random, 40), _measured(random, 4)
    for name, interval in intervals(one).items():
        assert interval.low < interval.value < interval.high, name
        assert interval.value == pytest.approx(one.means()[name])
    recall = one.per_query()["recall@10"]
    error = recall.std() / np.sqrt(len(recall))
    found = intervals(one)["recall@10"]
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert set(gains(one, one).values()) == {(0.0, 0.0, 0.0)}  # the same draws on both sides
    gain = gains(one, other)["mrr"]
    assert gain.value == pytest.approx(other.means()["mrr"] - one.means()["mrr"]) and gain.low > 0
