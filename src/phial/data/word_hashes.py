"""Texts as arrays of 64-bit word hashes: what near-duplicate search and decontamination compare.

Two texts are the same here when only case, punctuation, white space, accents, Unicode form, apostrophes or the commas
within numbers differ. A character of a script written without spaces is a word of its own. All steps are array
operations over many texts at once: no Python loop runs over characters or words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
BATCH_CHARACTERS = 1 << 17  # of text worked on at once; bounds the temporary arrays to about 10 MB
_SEPARATOR, _LETTER, _ALONE, _SKIPPED = range(4)
_UNSPACED = [  # Thai to Lao, Myanmar, Khmer, kana, CJK ideographs
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
]
_APOSTROPHES = [0x27, 0x2BC, 0x2019, 0xAD]  # and the soft hyphen: they stand within words
_COMMA = 0x2C
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_STEP = np.uint64(0xD6E8FEB86659FD93)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)


class Words(NamedTuple):
    """Word hashes of several texts, one after the other; text i has hashes[starts[i]:starts[i + 1]]."""

    hashes: U64
    starts: NDArray[np.int64]


def word_hashes(texts: Sequence[str]) -> Words:
    """The hashes of the words of each text; equal on every machine and in every run.

    Memory: about 80 bytes a character of at most BATCH_CHARACTERS, and 8 bytes a word.
    """
    counts = np.zeros(len(texts), np.int64)
    found: list[U64] = []
    for numbers, pieces in _batches(texts):
        hashes, sizes = _hash_batch(pieces)
        found.append(hashes)
        np.add.at(counts, numbers, sizes)
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return Words(_numerals(np.concatenate(found) if found else np.zeros(0, np.uint64)), starts)


def ngram_hashes(words: U64, n: int) -> U64:
    """The hash of words[i:i + n] for every i; one that spans two texts is for the caller to leave out."""
    if len(words) < n:
        return np.zeros(0, np.uint64)
    last = len(words) - n + 1
    total = words[:last].copy()
    for k in range(1, n):
        total *= _STEP
        total += words[k : k + last]
    return mix(total)


def mix(values: U64) -> U64:
    """Each value scrambled so that all its bits depend on all of them (the finalizer of splitmix64), in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def _batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Pieces of texts, BATCH_CHARACTERS at most together, each with the number of its text."""
    numbers: list[int] = []
    pieces: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(_folded(text)):
            if size + len(piece) > BATCH_CHARACTERS and pieces:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            size += len(piece) + 1
    if pieces:
        yield numbers, pieces


def _folded(text: str) -> str:
    folded = text.casefold()
    return folded if folded.isascii() else unicodedata.normalize("NFKD", folded).casefold()


def _pieces(text: str) -> Iterator[str]:
    """The text, in parts that end at white space where it is longer than a batch."""
    while len(text) > BATCH_CHARACTERS:
        cut = max(text.rfind(" ", 1, BATCH_CHARACTERS), text.rfind("\n", 1, BATCH_CHARACTERS))
        cut = cut if cut > 0 else BATCH_CHARACTERS
        yield text[:cut]
        text = text[cut:]
    yield text


def _hash_batch(pieces: list[str]) -> tuple[U64, NDArray[np.int64]]:
    """The word hashes of all pieces, and how many each has."""
    joined = "\n".join(pieces) + "\n"
    codes: NDArray[np.uint8] | NDArray[np.uint32]
    if joined.isascii():
        codes = np.frombuffer(joined.encode("ascii"), np.uint8)
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    commas = np.flatnonzero(codes[1:-1] == _COMMA) + 1
    kinds[commas[_is_digit(codes[commas - 1]) & _is_digit(codes[commas + 1])]] = _SKIPPED
    begins = np.cumsum([0] + [len(piece) + 1 for piece in pieces[:-1]])
    kept = kinds != _SKIPPED
    sizes = np.add.reduceat(kept, begins, dtype=np.int64)
    codes, kinds = codes[kept], kinds[kept]
    starts, ends = _word_bounds(kinds)
    powers, inverses = _powers()
    values = codes * powers[: len(codes)]
    sums = np.cumsum(values)
    hashes = (sums[ends] - sums[starts] + values[starts]) * inverses[starts]
    counts = np.diff(np.searchsorted(starts, np.cumsum(sizes)), prepend=0)
    return mix(hashes), counts


def _is_digit(codes: NDArray[np.uint8] | NDArray[np.uint32]) -> NDArray[np.bool_]:
    return (codes >= 48) & (codes <= 57)


def _word_bounds(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last place of each word; the last of `kinds` is a separator."""
    letter = kinds == _LETTER
    alone = kinds == _ALONE
    first, last = letter.copy(), letter.copy()
    first[1:] &= ~letter[:-1]
    last[:-1] &= ~letter[1:]
    return np.flatnonzero(first | alone), np.flatnonzero(last | alone)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each code point is: 1.1 MB, made in about a third of a second once a process."""
    kinds = np.zeros(0x110000, np.uint8)
    kinds[[c for c in range(0x110000) if chr(c).isalnum() or unicodedata.category(chr(c))[0] == "M"]] = _LETTER
    for first, last in _UNSPACED:
        part = kinds[first : last + 1]
        part[part == _LETTER] = _ALONE
    kinds[0x300:0x370] = _SKIPPED  # accents of Latin, Greek and Cyrillic letters, which NFKD has set apart
    kinds[_APOSTROPHES] = _SKIPPED
    return kinds


@lru_cache(maxsize=1)
def _powers() -> tuple[U64, U64]:
    """_BASE to the power of each place in a batch, and the inverses modulo 2^64."""
    size = 2 * BATCH_CHARACTERS + 1  # a batch's pieces and the separators between them
    powers = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        powers.append(np.multiply.accumulate(factors))
    return powers[0], powers[1]


@lru_cache(maxsize=1)
def _number_words() -> tuple[U64, U64, NDArray[np.bool_]]:
    """Hashes of the number words in order, those of their digits, and which values of 12 bits they have."""
    names = _NUMBERS.split()
    words, _ = _hash_batch(names)
    digits, _ = _hash_batch([str(value) for value in range(len(names))])
    order = np.argsort(words)
    seen = np.zeros(1 << 12, np.bool_)
    seen[words >> np.uint64(52)] = True
    return words[order], digits[order], seen


def _numerals(hashes: U64) -> U64:
    """The hashes with `five` as `5`, in place."""
    words, digits, seen = _number_words()
    places = np.flatnonzero(seen[hashes >> np.uint64(52)])
    found = np.searchsorted(words, hashes[places]).clip(max=len(words) - 1)
    same = words[found] == hashes[places]
    hashes[places[same]] = digits[found[same]]
    return hashes
