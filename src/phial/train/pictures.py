"""loss.png of a run: its losses over the tokens seen, drawn from metrics.jsonl while it goes on and at its end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phial.train.metrics import METRICS, Row, read_metrics

PICTURE = "loss.png"
_PATIENCE = 30.0  # seconds between two pictures at least
_SHARE = 0.01  # of the time, at most, goes into drawing


class Pictures:
    """Draws a folder's picture now and then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = time.monotonic() + _PATIENCE

    def step(self) -> None:
        """Draw if it is time."""
        if time.monotonic() >= self._next:
            self.draw()

    def draw(self) -> None:
        """Draw now."""
        started = time.monotonic()
        draw_losses(self.folder)
        now = time.monotonic()
        self._next = now + max(_PATIENCE, (now - started) / _SHARE)


def draw_losses(folder: Path) -> None:
    """Write a run's loss.png: training loss with a moving mean, validation losses by source, the learning rate.

    Needs matplotlib. Nothing is drawn of a run without steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in read_metrics(folder / METRICS) if row.get("loss") is not None]
    if not rows:
        return
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[5, 1], sharex=True)
    unit, name = _unit(rows)
    _draw_training(top, rows, unit)
    for source, points in _validation(rows).items():
        xs, ys = zip(*points, strict=True)
        top.plot([x / unit for x in xs], ys, marker="o", markersize=3, linewidth=1.2, label=source)
    top.set_ylabel("loss, nats")
    top.legend(frameon=False)
    bottom.plot(_places(rows, unit), [row["lr"] for row in rows], color="0.4", linewidth=1, marker=_dot(rows))
    bottom.set_ylabel("rate")
    bottom.set_xlabel(name)
    bottom.set_ylim(bottom=0)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    partial = folder / (PICTURE + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, folder / PICTURE)


def _draw_training(axes: Any, rows: Sequence[Row], unit: float) -> None:
    """Each step's loss in a pale line under the mean of the last fiftieth of the steps, of a short run the last few."""
    losses = [row["loss"] for row in rows]
    decay = 1 - 1 / max(1.0, len(rows) / 50, min(len(rows) / 5, 8.0))
    means, weight, mean = [], 0.0, 0.0
    for loss in losses:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + 1 - decay
        means.append(mean / weight)
    xs = _places(rows, unit)
    axes.plot(xs, losses, color="0.3", alpha=0.3, linewidth=0.7)
    axes.plot(xs, means, color="0.2", linewidth=1.8, marker=_dot(rows), label="training")
    later = sorted(losses[len(losses) // 50 :] + [value for p in _validation(rows).values() for _, value in p])
    low, high = later[0], later[math.ceil(0.995 * (len(later) - 1))]  # a few spikes shall not flatten the rest
    axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)


def _dot(rows: Sequence[Row]) -> str:
    """What shows a step where no line can."""
    return "o" if len(rows) == 1 else ""


def _validation(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Points (tokens or step, loss) of each source, and of all."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("validation") and name.endswith("/loss") and value is not None:
                curves.setdefault(name.removesuffix("/loss"), []).append((_place(row), value))
    return curves


def _place(row: Row) -> float:
    return float(row["tokens"] or row["step"])


def _places(rows: Sequence[Row], unit: float) -> list[float]:
    return [_place(row) / unit for row in rows]


def _unit(rows: Sequence[Row]) -> tuple[float, str]:
    """What the axis counts in, and its label."""
    last = rows[-1]["tokens"]
    if not last:
        return 1.0, "steps"
    return next((size, f"{word}tokens") for size, word in _UNITS if last >= size)


_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "), (1.0, ""))
