"""Texts as training batches: several packed into a row, none seeing another, pairs dealt anew each epoch.

All of it follows from the seed and the epoch, and a step's pairs from the step: a run that goes on at step s needs s
and nothing else. Shapes: B rows, T tokens; M texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from phial.train.chat_packing import best_fit
from phial.train.objective import Batch

ROW = 128  # tokens: attention over a row costs its square where a fused kernel runs under a mask


class Text(NamedTuple):
    """Tokens, and a number that equal texts share."""

    ids: NDArray[np.int32]
    key: int


class Pair(NamedTuple):
    """A query, its positive and its hard negatives."""

    query: Text
    positive: Text
    negatives: tuple[Text, ...] = ()

    @property
    def texts(self) -> tuple[Text, ...]:
        return (self.query, self.positive, *self.negatives)


class PairBatches:
    """The batches of some epochs over pairs.

    Args:
        batch: pairs of a step, over all processes. micro: pairs that a process runs at once.
        epochs: how often each pair is read, in part where it is no whole number.

    Attributes:
        steps: of all epochs. No step has more than `batch` pairs, and none has two fewer than another.
    """

    def __init__(self, pairs: Sequence[Pair], batch: int, micro: int, *, epochs: float = 1.0, seed: int = 0) -> None:
        self.pairs, self.batch, self.micro, self.seed = list(pairs), batch, micro, seed
        self.visits = max(1, round(epochs * len(self.pairs)))
        self.steps = -(-self.visits // batch)
        self._order = lru_cache(maxsize=2)(self._dealt)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._order = lru_cache(maxsize=2)(self._dealt)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """Process `rank`'s pairs of a step."""
        visits = range(step * self.visits // self.steps, (step + 1) * self.visits // self.steps)
        own = visits[rank * len(visits) // world : (rank + 1) * len(visits) // world]
        pairs = [self.pair(visit) for visit in own]
        return [stacked_pairs(pairs[at : at + self.micro]) for at in range(0, len(pairs), self.micro)]

    def pair(self, visit: int) -> Pair:
        """A pair, counted through all epochs."""
        epoch, place = divmod(visit, len(self.pairs))
        return self.pairs[int(self._order(epoch)[place])]

    def _dealt(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))


def stacked_pairs(pairs: Sequence[Pair]) -> Batch:
    """Pairs as contrastive.Contrast takes them."""
    negatives = [(i, text) for i, pair in enumerate(pairs) for text in pair.negatives]
    texts = [*(pair.query for pair in pairs), *(pair.positive for pair in pairs), *(text for _, text in negatives)]
    return {
        **packed_texts([text.ids for text in texts]),
        "owners": torch.tensor([i for i, _ in negatives], dtype=torch.long),
        "keys": torch.tensor([text.key for text in texts]),
    }


def packed_texts(texts: Sequence[NDArray[np.integer]]) -> Batch:
    """Texts in rows of ROW tokens, or as many as the longest has: "tokens" and "texts", each token's text, (B, T).

    What is left over at a row's end belongs to text -1.
    """
    lengths = [len(ids) for ids in texts]
    rows = best_fit(lengths, range(len(texts)), max(ROW, *lengths))
    width = max(sum(lengths[i] for i in row) for row in rows)
    tokens, numbers = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -1, np.int64)
    for at, row in enumerate(rows):
        done = 0
        for i in row:
            place = slice(done, done + lengths[i])
            tokens[at, place], numbers[at, place] = texts[i], i
            done = place.stop
    return {"tokens": torch.from_numpy(tokens), "texts": torch.from_numpy(numbers)}
