"""Shares with intervals: Wilson's (1927) for one share, a bootstrap over groups for the change between two runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from phial import intervals

_DRAWS = 4000


class Share(NamedTuple):
    """A count of successes among n trials, with the ends of its 95 % interval."""

    successes: float
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; 0 of 0 trials."""
        return self.successes / self.n if self.n else 0.0

    def json(self) -> dict[str, float]:
        """What a program would read."""
        return {"value": self.value, "count": self.successes, "n": self.n, "low": self.low, "high": self.high}


class Change(NamedTuple):
    """How much a share has changed on the same trials, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def share(values: Sequence[bool]) -> Share:
    """The share of what is true, with Wilson's interval. Trials are taken for independent; (0, 1) of none."""
    return wilson(sum(values), len(values))


def wilson(count: float, n: int) -> Share:
    """The share of a count among n, with Wilson's interval."""
    return Share(count, n, *intervals.wilson(count, n))


def change(before: Sequence[float], after: Sequence[float], groups: Sequence[Hashable], seed: int = 0) -> Change:
    """Mean of after - before over paired trials; its interval by resampling whole groups (all attacks of one request).

    Trials of one group rise and fall together, so that a group counts as one draw. Raises ValueError for unequal lists.
    """
    difference = np.asarray(after, float) - np.asarray(before, float)
    if len(groups) != len(difference):
        raise ValueError(f"{len(groups)} groups for {len(difference)} trials")
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    at = np.array([names[name] for name in groups], int)
    sums = np.bincount(at, difference, len(names))
    counts = np.bincount(at, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(_DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Change(float(difference.mean()), float(low), float(high))
