"""An index of benchmark questions by their word n-grams, for texts to be looked up in.

A question is cut into n-grams of one length, the longest of which twelve fit into it, else the shortest: 13 words for
a passage of 156 words and more, 5 for a question of fewer than 96. Left out are n-grams that more questions of a
benchmark have than can be about one passage: instructions and templates. A question too short or too common by itself
is taken with its answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.benchmarks import Item
from phial.data.word_hashes import U64, Words, ngram_hashes, word_hashes
from phial.errors import ArgumentError

SHORT = 10  # words; a shorter question may well be a phrase that many texts have
FEWEST = 7  # words that tell a question apart, below which it cannot be matched
_FIT = 12  # n-grams that fit into a question for it to have such long ones: with fewer, a few changed words hide it
_ITEMS_AT_MOST = 20  # questions that may share an n-gram, fewer in small benchmarks
_BITS_A_GRAM = 64  # of the filter in front of the search: 1.5 % of other n-grams pass it
_QUOTED = re.compile(r'"[^"\n]{25,}"|“[^”\n]{25,}”|«[^»\n]{25,}»')
_ARRAYS = "grams bits starts owners places counts lengths word_starts outside".split()


class Hits(NamedTuple):
    """Places where a text and a question have the same n-gram: a row each, sorted by text, item, position."""

    texts: NDArray[np.int64]  # place in the batch
    items: NDArray[np.int64]
    positions: NDArray[np.int64]  # word of the batch
    places: NDArray[np.int64]  # word of the question
    grams: NDArray[np.int64]  # row of the index


class Index:
    """n-grams of questions and where they stand in them.

    Memory: at most 48 bytes a word of the questions (`nbytes` says how much) and 300 bytes a question; three times as
    much while it is made.

    Args:
        items: the questions; the same text twice is one.
        ngrams: the lengths, in words.

    Raises:
        ArgumentError: lengths that cannot tell questions apart.
    """

    def __init__(self, items: Iterable[Item], ngrams: Sequence[int] = (5, 8, 13)) -> None:
        if not ngrams or min(ngrams) < 3 or max(ngrams) > 50:
            raise ArgumentError(f"n-grams of {list(ngrams)} words", "give lengths from 3 to 50, such as 5, 8 and 13")
        self.ngrams = tuple(sorted(set(ngrams)))
        self.labels: list[str] = []
        self.benchmarks: list[str] = []
        self.unmatched: list[str] = []  # labels of questions too short or too common to be found
        self._build(list(items))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(sum(getattr(self, name).nbytes for name in _ARRAYS))

    def _build(self, items: list[Item]) -> None:
        shared, texts = _texts(items, self.ngrams[0])
        words, starts = word_hashes(texts)
        grams = {n: ngram_hashes(words, n) ^ np.uint64(n) for n in self.ngrams}
        telling = _are_telling(grams[self.ngrams[0]] ^ np.uint64(self.ngrams[0]), shared)
        seen: set[bytes] = set()
        rows: list[tuple[U64, NDArray[np.int64]]] = []
        lengths, outside = [], [np.zeros(0, np.bool_)]
        for item, text, start, end in zip(items, texts, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            size, key = end - start, words[start:end].tobytes()
            if key in seen:
                continue
            seen.add(key)
            n = max([n for n in self.ngrams if _FIT * n <= size], default=self.ngrams[0])
            places = _telling_places(telling[start:end], size, n, self.ngrams[0])
            if covered(places, n, size).sum() < FEWEST:
                self.unmatched.append(item.label)
                continue
            rows.append((grams[n][start + places], places))
            self.labels.append(item.label)
            self.benchmarks.append(item.benchmark)
            lengths.append(n)
            outside.append(_outside_quotations(text, size))
        self.lengths = np.array(lengths, np.int32)  # of each question's n-grams
        self.outside = np.concatenate(outside)  # of each question's words: whether it stands outside quotations
        self.word_starts = np.cumsum([0] + [len(part) for part in outside[1:]])
        self._arrange(rows)

    def _arrange(self, rows: list[tuple[U64, NDArray[np.int64]]]) -> None:
        """Sorts the n-grams; those of row g stand at entries starts[g]:starts[g + 1] of owners and places."""
        self.counts = np.array([len(places) for _, places in rows], np.int32)
        every = np.concatenate([np.zeros(0, np.uint64), *(grams for grams, _ in rows)])
        order = np.argsort(every, kind="stable")
        self.grams, first = np.unique(every[order], return_index=True)
        self.starts = np.append(first, len(every)).astype(np.int32)
        self.owners = np.repeat(np.arange(len(rows), dtype=np.int32), self.counts)[order]
        self.places = np.concatenate([np.zeros(0, np.int64), *(places for _, places in rows)])[order].astype(np.int32)
        width = max(10, (len(self.grams) * _BITS_A_GRAM).bit_length() - 1)
        slots = self.grams >> np.uint64(64 - width)
        self.bits = np.zeros(1 << (width - 3), np.uint8)
        np.bitwise_or.at(self.bits, slots >> np.uint64(3), np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8))

    def save(self, path: Path) -> None:
        """Writes the index; `load` gives it back."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        for name in ("labels", "benchmarks", "unmatched"):
            arrays[name] = np.frombuffer("\n".join(getattr(self, name)).encode(), np.uint8)
        with open(path, "wb") as file:
            np.savez(file, ngrams=np.array(self.ngrams), **arrays)

    @classmethod
    def load(cls, path: Path) -> Index:
        """What `save` wrote."""
        index = cls.__new__(cls)
        with np.load(path, allow_pickle=False) as arrays:
            for name in _ARRAYS:
                setattr(index, name, arrays[name])
            for name in ("labels", "benchmarks", "unmatched"):
                setattr(index, name, arrays[name].tobytes().decode().splitlines())
            index.ngrams = tuple(arrays["ngrams"].tolist())
        return index

    def hits(self, texts: Sequence[str]) -> Hits:
        """All n-grams the texts share with the questions."""
        words, bounds = word_hashes(texts)
        found = [np.zeros((3, 0), np.int64)]
        for n in self.ngrams:
            hashes = ngram_hashes(words, n) ^ np.uint64(n)
            positions = self._maybe(hashes)
            rows = np.searchsorted(self.grams, hashes[positions])
            same = rows < len(self.grams)
            same[same] = self.grams[rows[same]] == hashes[positions[same]]
            positions, rows = positions[same], rows[same]
            texts_of = np.searchsorted(bounds, positions, side="right") - 1
            inside = positions + n <= bounds[texts_of + 1]
            found.append(np.stack([texts_of[inside], positions[inside], rows[inside]]))
        return self._expanded(*np.concatenate(found, axis=1))

    def _maybe(self, hashes: U64) -> NDArray[np.int64]:
        """Places of the hashes that may be in the index; most others are seen not to be by one bit."""
        slots = hashes >> np.uint64(64 - (8 * len(self.bits)).bit_length() + 1)
        bits = self.bits[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8)
        return np.flatnonzero(bits & np.uint8(1))

    def _expanded(self, texts: NDArray[np.int64], positions: NDArray[np.int64], rows: NDArray[np.int64]) -> Hits:
        """A row for every question an n-gram belongs to."""
        firsts = self.starts[rows].astype(np.int64)
        counts = self.starts[rows + 1] - firsts
        ends = np.cumsum(counts)
        entries = np.arange(int(counts.sum())) - np.repeat(ends - counts - firsts, counts)
        items = self.owners[entries].astype(np.int64)
        texts, positions, rows = (np.repeat(part, counts) for part in (texts, positions, rows))
        order = np.lexsort((positions, items, texts))
        places = self.places[entries].astype(np.int64)
        return Hits(*(part[order] for part in (texts, items, positions, places, rows)))


def covered(places: NDArray[Any], n: int, size: int) -> NDArray[np.bool_]:
    """Which words of a question of this size its n-grams at these places have."""
    words = np.zeros(size, np.bool_)
    for k in range(n):
        words[places + k] = True
    return words


def _texts(items: list[Item], n: int) -> tuple[U64, list[str]]:
    """The n-grams too many questions share, and the questions, with their answers where they need them."""
    words, starts = word_hashes([item.question for item in items])
    shared = _shared_grams(items, Words(words, starts), n)
    telling = _are_telling(ngram_hashes(words, n), shared)
    texts = []
    for item, start, end in zip(items, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        places = _telling_places(telling[start:end], end - start, n, n)
        enough = covered(places, n, end - start).sum() >= FEWEST
        texts.append(item.question if enough else f"{item.question}\n{item.answers}")
    return shared, texts


def _shared_grams(items: list[Item], questions: Words, n: int) -> U64:
    """n-grams, sorted, that more questions of one benchmark have than can be about the same passage."""
    found = [np.zeros(0, np.uint64)]
    own: dict[str, dict[tuple[str, str], U64]] = {}
    for item, start, end in zip(items, questions.starts[:-1], questions.starts[1:], strict=True):
        grams = np.unique(ngram_hashes(questions.hashes[start:end], n))
        own.setdefault(item.benchmark, {})[item.question, item.answers] = grams
    for grams_of in own.values():
        limit = min(_ITEMS_AT_MOST, max(3, len(grams_of) // 10))
        grams, counts = np.unique(np.concatenate([*grams_of.values()]), return_counts=True)
        found.append(grams[counts > limit])
    return np.unique(np.concatenate(found))


def _are_telling(grams: U64, shared: U64) -> NDArray[np.bool_]:
    """Which n-grams are not among the shared ones."""
    rows = np.searchsorted(shared, grams)
    telling: NDArray[np.bool_] = np.append(shared, np.uint64(0))[rows] != grams
    return telling


def _telling_places(telling: NDArray[np.bool_], size: int, n: int, shortest: int) -> NDArray[np.int64]:
    """Places of a question's n-grams that hold a shortest n-gram which is telling."""
    sums = np.concatenate([[0], np.cumsum(telling[: max(0, size - shortest + 1)])])
    width = n - shortest + 1
    return np.flatnonzero(sums[width:] > sums[: max(0, len(sums) - width)])


def _outside_quotations(text: str, size: int) -> NDArray[np.bool_]:
    """Which of the words stand outside long quotations."""
    parts: list[str] = []
    quoted: list[bool] = []
    at = 0
    for match in _QUOTED.finditer(text):
        parts += [text[at : match.start()], match.group()]
        quoted += [False, True]
        at = match.end()
    if not parts:
        return np.ones(size, np.bool_)
    counts = np.diff(word_hashes([*parts, text[at:]]).starts)
    outside = ~np.repeat(np.array([*quoted, False]), counts)
    return outside if len(outside) == size else np.ones(size, np.bool_)
