"""MinHash of word n-grams: a few hundred bytes a text that tell how alike two texts are.

The signature of a text holds, for each of bands x rows hash functions, the least hash of its word n-grams; two texts
agree in a place with the probability of their Jaccard similarity J (Broder 1997). Texts whose signatures agree in all
rows of a band are candidates: 1 - (1 - J^rows)^bands of the pairs. Of each minimum 16 bits are kept to measure
candidates by (b-bit minwise hashing, Li and König 2010); the error of the measured J is sqrt(J (1 - J) / places).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.word_hashes import U64, mix, ngram_hashes, word_hashes

NO_WORDS = np.uint64(0)  # the band key of a text without words, which is like no other


class Signatures(NamedTuple):
    """One row a text."""

    exact: U64  # (texts, 2): digest of the text but for case and white space
    keys: U64  # (texts, bands): equal where two texts agree in the whole band
    sketches: NDArray[np.uint16]  # (texts, bands * rows)


class MinHash:
    """Signatures by fixed hash functions.

    Args:
        ngram: words in a shingle; a text with fewer words is one shingle.
        bands, rows: see the module.
        seed: chooses the hash functions; signatures of different seeds cannot be compared.
    """

    def __init__(self, ngram: int, bands: int, rows: int, seed: int = 0) -> None:
        self.ngram, self.bands, self.rows = ngram, bands, rows
        drawn = mix(np.arange(1, 2 * bands * rows + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 32))
        factors, offsets = (drawn >> np.uint64(32)).astype(np.uint32).reshape(2, -1)
        self._factors, self._offsets = factors | np.uint32(1), offsets

    def __call__(self, texts: Sequence[str]) -> Signatures:
        """The signatures of these texts."""
        minima = self._minima(texts)
        exact = np.array([exact_digest(text) for text in texts], np.uint64).reshape(-1, 2)
        grouped = minima.reshape(len(texts), self.bands, self.rows).astype(np.uint64)
        keys = np.zeros((len(texts), self.bands), np.uint64)
        for row in range(self.rows):
            keys = mix(keys ^ grouped[:, :, row]) + np.uint64(row + 1)
        keys |= np.uint64(1)
        keys[(minima == 0xFFFFFFFF).all(axis=1)] = NO_WORDS
        return Signatures(exact, keys, minima.astype(np.uint16))

    def _minima(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """(texts, places): the least value of each hash function; all ones for a text without words."""
        shingles, counts = self.shingles(texts)
        places = self.bands * self.rows
        minima = np.full((places, len(texts)), 0xFFFFFFFF, np.uint32)
        filled = np.flatnonzero(counts)
        if len(filled):
            begins = np.cumsum(counts[filled]) - counts[filled]
            values = np.empty_like(shingles)
            for place in range(places):
                np.multiply(shingles, self._factors[place], out=values)
                np.add(values, self._offsets[place], out=values)
                minima[place, filled] = np.minimum.reduceat(values, begins)
        return np.ascontiguousarray(minima.T)

    def shingles(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Hashed n-grams of all texts one after the other, repeats among them, and how many each text has."""
        words, starts = word_hashes(texts)
        sizes = np.diff(starts)
        grams = ngram_hashes(words, self.ngram)
        inside = np.ones(len(grams), np.bool_)
        for k in range(1, self.ngram):  # n-grams that begin less than n words before a text's end leave it
            over = starts[1:] - k
            inside[over[(over >= 0) & (over < len(grams))]] = False
        counts = np.maximum(sizes - self.ngram + 1, 0)
        short = np.flatnonzero((sizes > 0) & (counts == 0))
        shingles = (grams[inside] >> np.uint64(32)).astype(np.uint32)
        if len(short):
            whole = [ngram_hashes(words[starts[i] : starts[i + 1]], int(sizes[i]))[0] >> np.uint64(32) for i in short]
            shingles = np.insert(shingles, np.cumsum(counts)[short], np.array(whole, np.uint32))
            counts[short] = 1
        return shingles, counts


def exact_digest(text: str) -> tuple[int, int]:
    """128 bits that are equal for texts that differ in case, white space and Unicode form only."""
    folded = " ".join(text.casefold().split())
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded)
    digest = hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def likeness(sketch: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of one text to each of the others."""
    agreement: NDArray[np.float64] = (others == sketch).mean(axis=1)
    return agreement
