"""What runs a forward step: the face that the native core and the numpy reference share.

A backend owns the weights and the pages of the key-value cache; it knows neither sessions nor text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phial.engine.adapters import LoadedAdapter
from phial.engine.cache import PageStore
from phial.gguf.lora import Adapter


class Want(IntEnum):
    """What a step returns; the numbers are the native core's."""

    LAST = 0  # logits of each sequence's last position, (sequences, n_vocab)
    ALL = 1  # logits of all positions, (tokens, n_vocab)
    HIDDEN = 2  # hidden states of all positions after the final norm, (tokens, n_embd)
    NOTHING = 3  # only fill the cache; (0, n_vocab)


@dataclass(frozen=True)
class Step:
    """New tokens of one sequence: positions n_past, n_past + 1, … with keys of one factor set in these pages.

    adapters: what is added to the weights for this sequence, each with its scale.
    """

    tokens: Sequence[int]
    n_past: int
    long: bool
    pages: Sequence[int]
    adapters: Sequence[tuple[LoadedAdapter, float]] = ()


class Backend(Protocol):
    """Weights and pages. `forward` may run several sequences in one step and writes their keys into their pages.

    Attributes:
        batch_invariant: whether a row of the result is the same bits whatever is computed along with it.
    """

    batch_invariant: bool

    @property
    def name(self) -> str: ...
    @property
    def kernel_set(self) -> str: ...
    @property
    def store(self) -> PageStore: ...
    def load_adapter(self, adapter: Adapter, number: int) -> None: ...
    def forward(self, steps: Sequence[Step], want: Want) -> NDArray[np.float32]: ...
    def collect(self, on: bool) -> None:
        """Begin, at zero, to sum the squares of what each matrix of the layers multiplies; or stop and forget."""
        ...

    def squares(self) -> dict[str, NDArray[np.float64]]:
        """Those sums over all tokens since collect(True), (columns,), by the weight's name."""
        ...

    def close(self) -> None: ...
