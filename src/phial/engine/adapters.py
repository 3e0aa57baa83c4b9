"""LoRA adapters beside a loaded model: read once for an engine, then mixed by each sequence as it likes.

Keys and values depend on the adapters a sequence runs with, so a mix has a digest that goes wherever keys are shared
or saved: two sequences share pages only where adapters and scales are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from phial.errors import ArgumentError


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that an engine holds; made by Engine.load_adapter.

    Attributes:
        name: for people.
        fingerprint: digest of what it computes.
        number: its place in the engine.
    """

    name: str
    fingerprint: str
    number: int


Wanted = Iterable[tuple[LoadedAdapter, float]]


@dataclass(frozen=True)
class Mix:
    """The adapters of one sequence, each with its scale, in an order of their own, not of the asking."""

    parts: tuple[tuple[LoadedAdapter, float], ...] = ()

    @cached_property
    def key(self) -> bytes:
        """What tells the keys computed with this mix from others; empty for none."""
        text = " ".join(f"{adapter.fingerprint}*{scale.hex()}" for adapter, scale in self.parts)
        return blake2b(text.encode(), digest_size=16).digest() if self.parts else b""

    def __str__(self) -> str:
        return " + ".join(f"{scale:g} {adapter.name}" for adapter, scale in self.parts) or "no adapter"


NO_ADAPTERS = Mix()


def mix(loaded: Sequence[LoadedAdapter], wanted: Wanted) -> Mix:
    """Check what a sequence asks for; a scale of 0 is as good as no adapter.

    Raises ArgumentError: an adapter the engine does not hold, one named twice, or a scale that is no number.
    """
    parts: dict[LoadedAdapter, float] = {}
    for adapter, scale in wanted:
        if adapter not in loaded:
            raise ArgumentError(f"adapter {adapter!r:.80} is not loaded", "pass what engine.load_adapter returned")
        if adapter in parts:
            raise ArgumentError(f"adapter {adapter.name!r} is named twice", "name it once, with the sum of the scales")
        parts[adapter] = checked_scale(scale)
    chosen = [(adapter, scale) for adapter, scale in parts.items() if scale]
    return Mix(tuple(sorted(chosen, key=lambda part: part[0].fingerprint)))


def checked_scale(scale: float) -> float:
    """The scale as float32 holds it. ArgumentError where it is no finite number."""
    known = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool)
    with np.errstate(over="ignore"):
        rounded = float(np.float32(scale)) if known else math.nan
    if not math.isfinite(rounded):
        raise ArgumentError(f"the scale of an adapter is {scale!r}", "1 is as trained, 0 is off")
    return rounded
