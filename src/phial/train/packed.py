"""Rows of tokens as training batches: windows cut from a phase's documents, which neither see nor predict one another.

A phase's N tokens are one row. Window k holds the inputs from k*n on and, one further, its n targets; the last window
ends with the row, and the targets that the one before it has are IGNORED. So an epoch has every target once. The first
token of a document is nobody's target: what came before it says nothing about it.

Windows are visited in another order each epoch, and everything is a function of the step: a run that goes on at step s
needs s and nothing else. A phase's visits are shared out evenly over its steps, so that no step has a lone window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from phial.errors import ArgumentError
from phial.train.objective import IGNORED, Batch

Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # tokens, targets, documents: n each
_ROUNDS = 4


class TokenSource(Protocol):
    """Tokens with the documents they belong to, as data.shards.ShardReader has them."""

    n_tokens: int

    def window(self, position: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The n + 1 tokens from a position on, and the number of each one's document."""
        ...


class Phase(NamedTuple):
    """A stretch of training.

    Attributes:
        visits: windows read, those of a second epoch counted again.
    """

    name: str
    source: TokenSource
    visits: int


class Packed:
    """The batches of phases, one after the other.

    Args:
        n: tokens of a window.
        batch: most windows of a step, over all processes.
        micro: most windows that a process runs at once.
        shuffle: False reads windows in the order of the source, epoch after epoch.

    Raises ArgumentError for a phase that has no n + 1 tokens.
    """

    def __init__(
        self, phases: Sequence[Phase], n: int, batch: int, micro: int, *, seed: int = 0, shuffle: bool = True
    ) -> None:
        self.phases, self.n, self.batch, self.micro = list(phases), n, batch, micro
        self.seed, self.shuffle = seed, shuffle
        self.counts = [count_windows(phase.source, n, phase.name) for phase in phases]
        self.steps = [-(-phase.visits // batch) for phase in phases]

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """Process `rank`'s rows of a step."""
        number, windows = self.windows_of(step)
        own = windows[rank * len(windows) // world : (rank + 1) * len(windows) // world]
        rows = [row_of(self.phases[number].source, window, self.n) for window in own]
        return [stacked(rows[at : at + self.micro]) for at in range(0, len(rows), self.micro)]

    def windows_of(self, step: int) -> tuple[int, list[int]]:
        """The number of a step's phase, and the windows it reads there."""
        number = 0
        while number + 1 < len(self.phases) and step >= self.steps[number]:
            step -= self.steps[number]
            number += 1
        visits, steps = self.phases[number].visits, self.steps[number]
        return number, [self._window(number, v) for v in range(step * visits // steps, (step + 1) * visits // steps)]

    def _window(self, number: int, visit: int) -> int:
        epoch, index = divmod(visit, self.counts[number])
        if not self.shuffle:
            return index
        return permuted(index, self.counts[number], f"{self.seed} {number} {epoch}")


def count_windows(source: TokenSource, n: int, name: str) -> int:
    """How many windows of n tokens hold every target once. Raises ArgumentError where there are not n + 1 tokens."""
    if source.n_tokens <= n:
        raise ArgumentError(f"{name} has {source.n_tokens} tokens", f"a sequence of {n} needs one more than that")
    return -(-(source.n_tokens - 1) // n)


def row_of(source: TokenSource, window: int, n: int) -> Row:
    """A window's tokens, targets and documents."""
    wanted, last = window * n, source.n_tokens - 1 - n
    position = min(wanted, last)
    tokens, documents = source.window(position, n)
    targets = np.where(documents[1:] == documents[:-1], tokens[1:], IGNORED)
    targets[: wanted - position] = IGNORED
    return tokens[:-1], targets, documents[:-1]


def permuted(index: int, size: int, seed: str) -> int:
    """Where `index` stands in a permutation of range(size): a Feistel network over a power of four, walked until it
    comes back into the range (Black and Rogaway, 2002), so that no permutation is ever held in memory."""
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> bits, index & (1 << bits) - 1
        for turn in range(_ROUNDS):
            digest = hashlib.blake2b(f"{seed} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ int.from_bytes(digest, "little") & (1 << bits) - 1
        index = left << bits | right
        if index < size:
            return index


def stacked(rows: Sequence[Row]) -> Batch:
    """Rows as a micro-batch."""
    parts = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return dict(zip(("tokens", "targets", "documents"), parts, strict=True))
