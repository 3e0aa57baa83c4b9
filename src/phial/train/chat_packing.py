"""Chats as training batches: several in a row, none cut over two, none seeing another, losses on answers alone.

Each epoch deals the chats in another order into rows of at most n tokens, each into the fullest row that has room (best
fit), and visits the rows in another order. All of it follows from the seed and the epoch, and a step's rows from the
step: a run that goes on at step s needs s and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.train.objective import IGNORED, Batch
from phial.train.packed import Row, stacked


class Example(NamedTuple):
    """A chat up to its last target: tokens and, at each, what comes next, IGNORED where no loss is taken."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]


def example_of(ids: Sequence[int], answered: Sequence[bool]) -> Example:
    """A chat from its tokens and the mask of those that are learnt; there is one beyond the first token."""
    tokens, learnt = np.asarray(ids, np.int32), np.asarray(answered, bool)
    last = int(np.flatnonzero(learnt)[-1])
    return Example(tokens[:last], np.where(learnt[1 : last + 1], tokens[1 : last + 1], np.int32(IGNORED)))


class PackedChats:
    """The batches of some epochs over chats.

    Args:
        n: tokens of a row; no chat is longer.
        batch: most rows of a step, over all processes. micro: most rows that a process runs at once.
        epochs: how often each chat is read, in part where it is no whole number.

    Attributes:
        steps: of all epochs.
        rows: in all of them.
    """

    def __init__(
        self, examples: Sequence[Example], n: int, batch: int, micro: int, *, epochs: float = 1.0, seed: int = 0
    ) -> None:
        self.examples, self.n, self.batch, self.micro, self.seed = list(examples), n, batch, micro, seed
        self._lengths = [len(example.tokens) for example in self.examples]
        self._of_epoch = lru_cache(maxsize=2)(self._packed)
        whole, part = divmod(epochs, 1)
        counts = [len(self._of_epoch(epoch)) for epoch in range(int(whole) + (part > 0))]
        if part:
            counts[-1] = max(1, round(part * counts[-1]))
        self._ends = list(accumulate(counts))
        self.rows = self._ends[-1]
        self.steps = -(-self.rows // batch)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_of_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._of_epoch = lru_cache(maxsize=2)(self._packed)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """Process `rank`'s rows of a step."""
        visits = range(step * self.rows // self.steps, (step + 1) * self.rows // self.steps)
        own = visits[rank * len(visits) // world : (rank + 1) * len(visits) // world]
        rows = [self.row(visit) for visit in own]
        return [self._stacked(rows[at : at + self.micro]) for at in range(0, len(rows), self.micro)]

    def row(self, visit: int) -> list[int]:
        """The chats of a row, counted through all epochs."""
        epoch = bisect_right(self._ends, visit)
        return self._of_epoch(epoch)[visit - (self._ends[epoch - 1] if epoch else 0)]

    def _packed(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self.seed, epoch])
        rows = best_fit(self._lengths, random.permutation(len(self._lengths)).tolist(), self.n)
        return [rows[i] for i in random.permutation(len(rows))]

    def _stacked(self, rows: Sequence[Sequence[int]]) -> Batch:
        return stacked_chats([[self.examples[i] for i in row] for row in rows])


def best_fit(lengths: Sequence[int], order: Iterable[int], n: int) -> list[list[int]]:
    """Items dealt in this order into bins of n, each into the fullest that has room; bins in order of their opening."""
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # room, bin
    for item in order:
        at = bisect_left(open_bins, (lengths[item], -1))
        room, place = open_bins.pop(at) if at < len(open_bins) else (n, len(bins))
        if place == len(bins):
            bins.append([])
        bins[place].append(item)
        if room > lengths[item]:
            insort(open_bins, (room - lengths[item], place))
    return bins


def stacked_chats(rows: Sequence[Sequence[Example]]) -> Batch:
    """Rows of chats as a micro-batch, as wide as the fullest of them.

    What is left over at a row's end is a document of its own, without targets.
    """
    width = max(sum(len(example.tokens) for example in row) for row in rows)
    return stacked([_joined(row, width) for row in rows])


def _joined(examples: Sequence[Example], width: int) -> Row:
    lengths = [len(example.tokens) for example in examples]
    left = width - sum(lengths)
    tokens = np.concatenate([*(example.tokens for example in examples), np.zeros(left, np.int64)])
    targets = np.concatenate([*(example.targets for example in examples), np.full(left, IGNORED, np.int64)])
    return tokens, targets, np.repeat(np.arange(len(examples) + 1), [*lengths, left])
