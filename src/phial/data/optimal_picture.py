"""The picture of the data-optimal regime: loss against tokens for each keep-rate, and what separates them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phial.data.optimal_plan import LEVEL

if TYPE_CHECKING:
    from phial.data.optimal import Result

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_BEYOND = 4  # times the greatest budget that curves go on for


def draw(results: Sequence[Result], keep_rates: Sequence[float], measure: str, folder: Path) -> None:
    """Write optimal.svg and optimal.png: a row a model, and a panel more where shares of phase 2 were tried."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3 if any(result.shares for result in results) else 2
    with matplotlib.rc_context({"svg.hashsalt": "phial", "font.size": 9}):
        figure = Figure(figsize=(5.2 * columns, 4.0 * len(results)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(results), columns, squeeze=False)
        for row, result in zip(axes, results, strict=True):
            _losses(row[0], result, keep_rates, measure)
            _apart(row[1], result, keep_rates)
            if result.shares:
                _shares(row[2], result, measure)
            elif columns == 3:
                row[2].axis("off")
        for kind in ("svg", "png"):
            partial = folder / f"optimal.{kind}.partial"
            figure.savefig(partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            os.replace(partial, folder / f"optimal.{kind}")


def _scale_tokens(axes: Any) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 of each power, written as 500k and 2M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _grid(result: Result) -> Any:
    tokens = [point.tokens for point in result.fitted.points]
    return np.geomspace(0.9 * min(tokens), _BEYOND * max(tokens), 120)


def _losses(axes: Any, result: Result, keep_rates: Sequence[float], measure: str) -> None:
    """Curves with the intervals of the mean, losses, and, where a budget was held out, what was predicted for it."""
    fitted, grid = result.fitted, _grid(result)
    held = result.test["tokens"] if result.test else None
    for i, rate in enumerate(keep_rates):
        colour, keep = _COLOURS[i % len(_COLOURS)], i + 1
        axes.plot(grid, fitted.law.loss(keep, grid), color=colour, label=f"best {100 * rate:g} %")
        axes.fill_between(grid, *fitted.band(keep, grid, LEVEL), color=colour, alpha=0.15, linewidth=0)
        if result.small:
            axes.plot(grid, result.small.law.loss(keep, grid), color=colour, linestyle="--", linewidth=0.9)
        own = [point for point in fitted.points if point.keep == keep]
        for later, face in ((False, colour), (True, "white")):
            chosen = [point for point in own if (point.tokens == held) is later]
            axes.scatter(
                [p.tokens for p in chosen], [p.loss for p in chosen], s=16, color=colour, facecolor=face, zorder=3
            )
    if held:
        axes.axvline(held, color="grey", linestyle=":", linewidth=1)
        axes.plot([], [], color="grey", linestyle="--", linewidth=0.9, label="without the held-out budget (hollow)")
    for cross in result.crossings:
        if cross.tokens is not None and cross.tokens <= grid[-1]:
            keep = list(keep_rates).index(cross.tighter) + 1
            axes.scatter([cross.tokens], fitted.law.loss(keep, cross.tokens), marker="x", s=60, color="black", zorder=4)
    _scale_tokens(axes)
    axes.set(xlabel="tokens", ylabel=measure, title=f"{result.model}: law, measurements, crossovers (x)")
    axes.legend(frameon=False, fontsize=8)


def _apart(axes: Any, result: Result, keep_rates: Sequence[float]) -> None:
    """Each keep-rate less the loosest, drawn and measured: here a crossover is a change of order, and visible."""
    fitted, grid, last = result.fitted, _grid(result), len(keep_rates)
    base, drawn = fitted.law.loss(last, grid), fitted.losses(last, grid)
    budgets = sorted({point.tokens for point in fitted.points})

    def mean(keep: int, tokens: int) -> float:
        return float(np.mean([p.loss for p in fitted.points if (p.keep, p.tokens) == (keep, tokens)]))

    for i, rate in enumerate(keep_rates):
        colour, keep = _COLOURS[i % len(_COLOURS)], i + 1
        axes.plot(grid, fitted.law.loss(keep, grid) - base, color=colour, label=f"best {100 * rate:g} %")
        if keep < last:
            ends = np.quantile(fitted.losses(keep, grid) - drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            axes.fill_between(grid, *ends, color=colour, alpha=0.15, linewidth=0)
            gaps = [mean(keep, tokens) - mean(last, tokens) for tokens in budgets]
            axes.scatter(budgets, gaps, s=16, color=colour, zorder=3)
    for cross in result.crossings:
        if cross.tokens is not None and cross.tokens <= grid[-1]:
            axes.axvline(cross.tokens, color="black", linestyle=":", linewidth=0.8)
    _scale_tokens(axes)
    label = f"loss less that of the best {100 * keep_rates[-1]:g} %"
    axes.set(xlabel="tokens", ylabel=label, title="what separates them; lower is better")


def _shares(axes: Any, result: Result, measure: str) -> None:
    """Losses by share of phase 2, the parabola through them, and its lowest point with its interval."""
    shares = result.shares
    assert shares is not None
    x = np.array([share for share, _ in result.tried])
    grid = np.linspace(x.min(), x.max(), 100)
    axes.scatter(x, [loss for _, loss in result.tried], s=16, color=_COLOURS[0], zorder=3)
    axes.plot(grid, np.polyval(shares.curve, grid), color=_COLOURS[0])
    axes.axvspan(shares.low, shares.high, color="grey", alpha=0.15, linewidth=0)
    axes.axvline(shares.share, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="share of phase 2", ylabel=measure, title="a parabola through measurements, no law")
