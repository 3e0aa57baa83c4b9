"""preferences.png of a run: rewards, accuracy, what the chosen answers lose, and lengths, drawn from metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phial.train.metrics import METRICS, Row, read_metrics

PICTURE = "preferences.png"
_PANELS: dict[str, dict[str, str]] = {  # what is drawn together: metric, its name
    "implicit reward": {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margin": "margin"},
    "accuracy": {"rewards/accuracy": "training"},
    "nats a token": {"ratio/chosen": "chosen, log π − log ref", "kl": "KL(ref ‖ π), k3"},
    "tokens": {"length/chosen": "chosen", "length/rejected": "rejected", "length/preferred": "preferred by reward"},
}


def draw_preferences(folder: Path) -> None:
    """Write the picture; validation as points. Needs matplotlib. Nothing is drawn of a run without steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in read_metrics(folder / METRICS) if "rewards/margin" in row]
    if not rows:
        return
    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, metrics) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
        for number, (metric, name) in enumerate(metrics.items()):
            _draw(axes, rows, metric, name, f"C{number}")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.supxlabel("step; points: held-out pairs")
    partial = folder / (PICTURE + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, folder / PICTURE)


def _draw(axes: Any, rows: Sequence[Row], metric: str, name: str, colour: str) -> None:
    """A metric of each step in a pale line under its moving mean, and its validation values as points."""
    steps, values = [row["step"] for row in rows], [row[metric] for row in rows]
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(steps, _smooth(values), color=colour, linewidth=1.6, label=name)
    held = [(row["step"], row[f"validation/{metric}"]) for row in rows if row.get(f"validation/{metric}") is not None]
    if held:
        axes.plot(*zip(*held, strict=True), color=colour, marker="o", markersize=3.5, linestyle="", markeredgecolor="k")


def _smooth(values: Sequence[float]) -> list[float]:
    """The exponential mean over about a twentieth of the steps."""
    decay, mean, weight, means = 1 - 1 / max(1.0, len(values) / 20), 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        means.append(mean / weight)
    return means
