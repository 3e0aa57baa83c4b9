"""The quality classifier: educational value 0-5 of a text, from hashed n-grams and a linear model.

For each class the model sums a weight of every n-gram (ngrams.py), divides by how many there are in the group and
adds a bias; softmax makes probabilities, their mean is the raw score, and a rising curve fitted on held-out labels
calibrates it. Weights are whole numbers of 8 bits, summed exactly, so that a text's score is the same to the last bit
in any batch and any order. Linear models over hashed n-grams follow fastText (Joulin et al. 2016); labelling a sample
with a language model and letting a cheap model score the rest follows the phi-1 report and FineWeb-Edu.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.data import ngrams
from phial.errors import ArgumentError

MAX_SCORE = 5
_BATCH = 256 << 10  # bytes of text hashed at once: what stays in the processor's cache
_LANE, _LANES = 21, 3  # three sums side by side in 64 bits
_CHUNK = 8192  # so many 8-bit numbers add up within a lane

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to one vector each
Sums = NDArray[np.float64]  # text, group, class


def _no_projection() -> NDArray[np.float64]:
    return np.zeros((0, 0))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier: phial.data.quality_training makes one, phial.data.quality_file keeps it.

    Attributes:
        bits: each group's table has 2**bits rows.
        classes: the scores it was taught, rising.
        tables: int8 weights by group, bucket, class.
        scales: what a weight of 1 is worth, by group.
        bias: added to the sums, by class.
        curve: rising raw scores and the calibrated scores there; straight lines between.
        embedding: the name of the sentence embedding it needs, or "".
        projection: the embedding's weights by dimension and class; empty without one.
        about: name, sources, licences, metrics: what whoever trained it wrote down.
    """

    bits: int
    classes: tuple[int, ...]
    tables: NDArray[np.int8]
    scales: NDArray[np.float64]
    bias: NDArray[np.float64]
    curve: NDArray[np.float64]
    embedding: str = ""
    projection: NDArray[np.float64] = field(default_factory=_no_projection)
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of everything that decides a score; kept beside the scores."""
        digest = hashlib.sha256(json.dumps([ngrams.VERSION, self.bits, self.classes, self.embedding]).encode())
        for array in (self.tables, self.scales, self.bias, self.curve, self.projection):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def scores(self, texts: Sequence[str], embed: Embed | None = None) -> NDArray[np.float64]:
        """The calibrated score of each text, 0 to 5.

        Args:
            embed: makes the sentence embeddings, for a classifier that was trained with them.

        Raises:
            ArgumentError: the classifier needs embeddings and there are none, or the other way round.
        """
        return np.asarray(np.interp(self.raw_scores(texts, embed), self.curve[0], self.curve[1]))

    def raw_scores(self, texts: Sequence[str], embed: Embed | None = None) -> NDArray[np.float64]:
        """The mean class of each text before calibration; arguments and errors as in `scores`."""
        probabilities = self.probabilities(texts, embed)
        raw = np.zeros(len(texts))
        for column, value in enumerate(self.classes):  # not a matrix product: its rounding depends on the batch
            raw += value * probabilities[:, column]
        return raw

    def probabilities(self, texts: Sequence[str], embed: Embed | None = None) -> NDArray[np.float64]:
        """Of each text the probability of each class; arguments and errors as in `scores`."""
        if bool(self.embedding) != (embed is not None):
            raise ArgumentError(
                f"classifier {self.version} was trained with{'' if self.embedding else 'out'} sentence embeddings",
                f"give the embedding {self.embedding!r}" if self.embedding else "score without embed",
            )
        logits = np.zeros((len(texts), len(self.classes)))
        for first, batch in _batches(texts):
            means = self._means(batch)
            for group, scale in enumerate(self.scales):
                logits[first : first + len(batch)] += scale * means[:, group]
        logits += self.bias
        if embed is not None:
            logits += [np.asarray(row, np.float64) @ self.projection for row in embed(texts)]
        logits = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(texts) else logits
        total = np.zeros(len(texts))
        for column in range(len(self.classes)):
            total += logits[:, column]
        return np.asarray(logits / total[:, None])

    @cached_property
    def _packed(self) -> NDArray[np.uint64]:
        """The tables made positive, three classes in a 64-bit word: by word, group, bucket."""
        words = -(-len(self.classes) // _LANES)
        positive = (self.tables.astype(np.int16) + 128).astype(np.uint64)
        packed = np.zeros((words, *self.tables.shape[:2]), np.uint64)
        for column in range(len(self.classes)):
            packed[column // _LANES] |= positive[:, :, column] << np.uint64(_LANE * (column % _LANES))
        return packed

    def _means(self, texts: Sequence[str]) -> Sums:
        """The mean weight of the n-grams of each text, by group and class."""
        data, owner = ngrams.pieces(texts)
        total = np.zeros((len(texts), len(self.scales), len(self.classes)), np.int64)
        count = np.zeros((len(texts), len(self.scales)), np.int64)
        for first, some in _batches(data):  # the pieces of a long text one after the other
            owners = owner[first : first + len(some)]
            for group, found in enumerate(ngrams.hashed(some, self.bits)):
                sums, counts = self._sums(group, found)
                np.add.at(total[:, group], owners, sums)
                np.add.at(count[:, group], owners, counts)
        return np.asarray(total / count[:, :, None])

    def _sums(self, group: int, found: ngrams.Hashed) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The summed weights of each piece by class, and how many n-grams it has."""
        ends = np.append(found.starts[1:], len(found.buckets))
        counts = (ends - found.starts).astype(np.int64)
        chunks = -(-counts // _CHUNK)  # long pieces are summed in several
        first = np.cumsum(chunks) - chunks
        within = np.arange(chunks.sum()) - np.repeat(first, chunks)
        starts = np.repeat(found.starts, chunks) + within * _CHUNK
        sums = np.empty((len(counts), len(self.classes)), np.int64)
        buckets = found.buckets.astype(np.intp)
        mask = np.uint64((1 << _LANE) - 1)
        for word, table in enumerate(self._packed[:, group]):
            packed = np.add.reduceat(table[buckets], starts)
            for lane in range(min(_LANES, len(self.classes) - word * _LANES)):
                lanes = ((packed >> np.uint64(_LANE * lane)) & mask).astype(np.int64)
                sums[:, word * _LANES + lane] = np.add.reduceat(lanes, first)
        return sums - 128 * counts[:, None], counts


def _batches(texts: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    """The texts in runs of about _BATCH characters or bytes, each with the number of its first."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _BATCH:
            yield first, texts[first:number]
            first, size = number, 0
        size += len(text) + 1
    if first < len(texts):
        yield first, texts[first:]
