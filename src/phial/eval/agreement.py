"""How far two judges agree beyond chance: Cohen's kappa (1960), unweighted and with quadratic weights (1968)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two lists of labels: 1 for full agreement, 0 for what chance gives.

    NaN where both judges gave one and the same label only: agreement is certain then and proves nothing.
    """
    labels = {label: number for number, label in enumerate(dict.fromkeys([*first, *second]))}
    table = _table([labels[x] for x in first], [labels[x] for x in second], len(labels))
    return _kappa(table, 1.0 - np.eye(len(labels)))


def weighted_kappa(first: Sequence[int], second: Sequence[int], largest: int) -> float:
    """Cohen's kappa of grades 0 to `largest`, disagreement growing with the square of the distance; NaN as kappa()."""
    grades = np.arange(largest + 1)
    return _kappa(_table(first, second, largest + 1), ((grades[:, None] - grades[None, :]) / largest) ** 2)


def _table(first: Sequence[int], second: Sequence[int], n: int) -> np.ndarray:
    table = np.zeros((n, n))
    np.add.at(table, (np.asarray(first, int), np.asarray(second, int)), 1.0)
    return table / max(len(first), 1)


def _kappa(table: np.ndarray, weights: np.ndarray) -> float:
    by_chance = float((weights * np.outer(table.sum(1), table.sum(0))).sum())
    return 1.0 - float((weights * table).sum()) / by_chance if by_chance > 0 else float("nan")
