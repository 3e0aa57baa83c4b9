"""Which benchmark questions a text holds, by the share of their words in n-grams that stand together in it.

One shared n-gram proves nothing: a text holds a question where n-grams near each other cover enough of its words. Left
out on both sides of that share are n-grams that many texts of the corpus have: famous quotations and phrases. Where a
question quotes somebody, the words around the quotation must be covered by themselves: a text with the quotation does
not hold the question about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.benchmarks import Benchmark, read_items
from phial.data.question_index import FEWEST, SHORT, Hits, Index, covered

ENOUGH = 8  # words of a question a text must have in n-grams, however short the question


class Found(NamedTuple):
    """A question found in a text."""

    text: int  # place in the batch
    item: int
    coverage: float  # share of the question's words


class Matcher:
    """Finds an index' questions in texts.

    Memory: the index, and 3 bytes a word of its questions.

    Args:
        coverage: share of a question's words from which a text holds it, but no fewer than ENOUGH words; of a
            question of fewer it must have all.
        common: for each n-gram of the index, whether it is left out because many texts have it. A question of SHORT
            words or more that is there as a whole is found nevertheless.
    """

    def __init__(self, index: Index, coverage: float, common: NDArray[np.bool_] | None = None) -> None:
        self.index, self.coverage = index, coverage
        self._common = np.zeros(len(index.grams), np.bool_) if common is None else common
        every = np.ones(len(index.places), np.bool_)
        self._all = self._counted(every)
        self._telling = self._counted(~np.repeat(self._common, np.diff(index.starts)))
        words = np.diff(np.concatenate([[0], np.cumsum(self._telling)])[index.word_starts])
        self._needed = np.minimum(np.maximum(coverage * words, ENOUGH), words)
        self._shares = self._needed / np.maximum(words, 1)

    def find(self, texts: Sequence[str]) -> list[Found]:
        """The questions each text holds, by text, the best covered first."""
        index, hits = self.index, self.index.hits(texts)
        if not len(hits.texts):
            return []
        whole = are_whole(index, hits)
        kept = whole | ~self._common[hits.grams]
        hits, whole = Hits(*(column[kept] for column in hits)), whole[kept]
        starts = np.flatnonzero((np.diff(hits.texts, prepend=-1) != 0) | (np.diff(hits.items, prepend=-1) != 0))
        ends = np.append(starts[1:], len(hits.texts))
        items = hits.items[starts]
        most = (ends - starts) * index.lengths[items]  # words that so many n-grams can cover
        likely = whole[starts] | (most >= self._needed[items])
        found = []
        for start, end in zip(starts[likely].tolist(), ends[likely].tolist(), strict=True):
            item = int(hits.items[start])
            share = self._share(item, Hits(*(column[start:end] for column in hits)), bool(whole[start]))
            if share >= self._shares[item]:
                found.append(Found(int(hits.texts[start]), item, share))
        return sorted(found, key=lambda one: (one.text, -one.coverage, one.item))

    def _share(self, item: int, hits: Hits, whole: bool) -> float:
        """The greatest share of the item's words in n-grams that stand together; 0 where too few tell it apart."""
        words = slice(int(self.index.word_starts[item]), int(self.index.word_starts[item + 1]))
        n, size = int(self.index.lengths[item]), self._size(item)
        counted = (self._all if whole else self._telling)[words]
        if counted.sum() < FEWEST:
            return 0.0
        outside = self.index.outside[words] & counted
        if outside.sum() < FEWEST // 2:
            outside = counted
        best = 0.0
        last = np.searchsorted(hits.positions, hits.positions + size + size // 2, side="right")
        for start in np.flatnonzero(np.diff(last, prepend=-1)).tolist():  # windows that reach farther than the last
            window = slice(start, int(last[start]))
            there = covered(hits.places[window], n, size) & counted
            # A phrase that a question has twice and the text once covers it once.
            read = covered(hits.positions[window] - hits.positions[start], n, size + size // 2 + n).sum()
            share = min(there.sum(), read) / counted.sum()
            best = max(best, float(min(share, (there & outside).sum() / outside.sum())))
        return best

    def _size(self, item: int) -> int:
        return int(self.index.word_starts[item + 1] - self.index.word_starts[item])

    def _counted(self, entries: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the words of all questions, those in these n-grams."""
        index = self.index
        words = np.zeros(len(index.outside), np.bool_)
        places = index.word_starts[index.owners[entries]] + index.places[entries]
        lengths = index.lengths[index.owners[entries]]
        for k in range(max(index.ngrams)):
            words[places[lengths > k] + k] = True
        return words


def benchmark_check(benchmarks: Sequence[Benchmark], coverage: float) -> Callable[[str], bool] | None:
    """Whether a text holds a question of these benchmarks, or is one; None where there are no benchmarks."""
    if not benchmarks:
        return None
    items = [item for benchmark in benchmarks for item in read_items(benchmark)]
    matcher, whole = Matcher(Index(items), coverage), {_plain(item.question) for item in items}
    return lambda text: _plain(text) in whole or bool(matcher.find([text]))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def are_whole(index: Index, hits: Hits) -> NDArray[np.bool_]:
    """For each hit, whether its text has all n-grams of its question, which is not a short one."""
    groups = hits.texts * (len(index.labels) + 1) + hits.items
    width = int(index.places.max()) + 1
    distinct = np.unique(groups * width + hits.places) // width
    keys, counts = np.unique(distinct, return_counts=True)
    every = counts[np.searchsorted(keys, groups)] == index.counts[hits.items]
    sizes = np.diff(index.word_starts)[hits.items]
    whole: NDArray[np.bool_] = every & (sizes >= SHORT)
    return whole


def count_texts(index: Index, texts: Sequence[str], counts: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
    """For each n-gram, how many texts have it but not the whole question it is from, added to `counts`, in place.

    Copies of a question say nothing about how common its words are.
    """
    hits = index.hits(texts)
    counts = np.zeros(len(index.grams), np.uint32) if counts is None else counts
    if len(hits.texts):
        keys = hits.texts * len(index.grams) + hits.grams
        counted = np.setdiff1d(keys, keys[are_whole(index, hits)])
        np.add.at(counts, counted % len(index.grams), 1)
    return counts
