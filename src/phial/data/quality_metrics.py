"""How well scores agree with labels: F1 at a threshold, calibration, rank correlation, quadratic kappa."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.quality import MAX_SCORE

THRESHOLD = 3.0  # FineWeb-Edu's choice: 3 and more is kept


class Reliability(NamedTuple):
    """Scores between `low` and `high`: how many, their mean, and the mean of their labels."""

    low: float
    high: float
    texts: int
    score: float
    label: float


@dataclass(frozen=True)
class Report:
    """Agreement on labels that training did not see.

    Attributes:
        precision, recall, f1: of "score >= 3" against "label >= 3".
        f1_by_label: of each label, the score being rounded; labels that occur only.
        mean_error: mean absolute difference of score and label.
        calibration_error: mean over the bins of |mean score - mean label|, weighted by count; in points of the score.
        spearman: rank correlation; kappa: quadratically weighted, the score being rounded.
    """

    count: int
    precision: float
    recall: float
    f1: float
    f1_by_label: dict[int, float]
    mean_error: float
    calibration_error: float
    spearman: float
    kappa: float
    reliability: tuple[Reliability, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON has it, figures to four digits."""
        rows = [{k: _short(v) for k, v in row._asdict().items()} for row in self.reliability]
        flat = {k: _short(v) for k, v in asdict(self).items() if k not in ("reliability", "f1_by_label")}
        return flat | {"f1_by_label": {str(k): _short(v) for k, v in self.f1_by_label.items()}, "reliability": rows}


def measure(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64], bins: int = 10) -> Report:
    """The report of scores (0 to 5) against labels (0 to 5); at least one of each."""
    rounded = np.clip(np.floor(scores + 0.5), 0, MAX_SCORE).astype(int)
    precision, recall, f1 = _f1(labels >= THRESHOLD, scores >= THRESHOLD)
    table = _reliability(labels, scores, bins)
    error = sum(row.texts * abs(row.score - row.label) for row in table) / len(labels)
    return Report(
        count=len(labels),
        precision=precision,
        recall=recall,
        f1=f1,
        f1_by_label={int(k): _f1(labels == k, rounded == k)[2] for k in np.unique(labels)},
        mean_error=float(np.abs(scores - labels).mean()),
        calibration_error=error,
        spearman=_spearman(labels.astype(np.float64), scores),
        kappa=_kappa(labels.astype(int), rounded),
        reliability=table,
    )


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _f1(wanted: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Precision, recall, F1; 0 where there is nothing to divide by."""
    both = int((wanted & found).sum())
    precision = both / max(int(found.sum()), 1)
    recall = both / max(int(wanted.sum()), 1)
    return precision, recall, 2 * both / max(int(wanted.sum() + found.sum()), 1)


def _reliability(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64], bins: int) -> tuple[Reliability, ...]:
    edges = np.linspace(0, MAX_SCORE, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, "right") - 1, 0, bins - 1)
    rows = []
    for number in np.unique(place):
        here = place == number
        low, high = float(edges[number]), float(edges[number + 1])
        rows.append(Reliability(low, high, int(here.sum()), float(scores[here].mean()), float(labels[here].mean())))
    return tuple(rows)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; 0 where one side is constant."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[inverse])
    x, y = (rank - rank.mean() for rank in ranks)
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size else 0.0


def _kappa(a: NDArray[np.int_], b: NDArray[np.int_]) -> float:
    """Cohen's kappa with squared distances (Cohen 1968): 1 - observed / expected disagreement."""
    joint = np.zeros((MAX_SCORE + 1, MAX_SCORE + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    distance = np.subtract.outer(np.arange(MAX_SCORE + 1), np.arange(MAX_SCORE + 1)) ** 2
    expected = float((np.outer(joint.sum(axis=1), joint.sum(axis=0)) * distance).sum())
    return 1 - float((joint * distance).sum()) / expected if expected else 0.0
