"""Pictures of an extension: the factors beside the usual ones, and perplexity and passkeys by length."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.train.longrope.seeds import Factors

COLOURS = {"none": "#999999", "pi": "#4878a8", "ntk": "#6aa84f", "yarn": "#e69138", "found": "#cc0000"}
NAMES = {"none": "unchanged", "pi": "PI", "ntk": "NTK", "yarn": "YaRN", "found": "found"}
_MORE = ("#cc0000", "#8e44ad", "#16a085", "#2c3e50")


def draw_factors(lists: Mapping[str, Factors], path: Path, title: str) -> None:
    """Each list over the rotated pairs, fast ones first. OSError where the file cannot be written."""
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (way, factors) in enumerate(lists.items()):
        mark = "o" if way not in COLOURS or way == "found" else ""
        axes.plot(
            range(len(factors)), factors, marker=mark, markersize=3.5, color=_colour(way, number), label=_name(way)
        )
    axes.set_xlabel("rotated pair, fastest first")
    axes.set_ylabel("factor")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    _write(figure, path)


def draw_lengths(rows: Sequence[Mapping[str, Any]], original: int, path: Path, title: str) -> None:
    """Perplexity by length, and the share of passkeys found where it was measured; a line marks the original context.

    rows: {"way", "length", "perplexity", "found"}, and where several runs were made "low" and "high" of the
    perplexity, "found_low" and "found_high".
    """
    passkeys = any(row.get("found") is not None for row in rows)
    figure = _figure(12.4 if passkeys else 8.0, 4.2)
    panels = figure.subplots(1, 2 if passkeys else 1, squeeze=False)[0]
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for number, way in enumerate(dict.fromkeys(str(row["way"]) for row in rows)):
        mine = [row for row in rows if row["way"] == way]
        style = {"color": _colour(way, number), "label": _name(way)}
        _line(panels[0], mine, "perplexity", ("low", "high"), style)
        if passkeys:
            _line(
                panels[1], [r for r in mine if r.get("found") is not None], "found", ("found_low", "found_high"), style
            )
    _log_scale(panels[0])
    panels[0].set_ylabel("perplexity of the same tokens")
    if passkeys:
        panels[1].set_ylabel("passkeys found")
        panels[1].set_ylim(-0.03, 1.03)
    for axes in panels:
        lengths = sorted({row["length"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(n) for n in lengths])
        axes.axvline(original, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.set_xlabel("tokens of context")
        _plain(axes)
    panels[-1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    _write(figure, path)


def _line(
    axes: Any, rows: Sequence[Mapping[str, Any]], what: str, bounds: tuple[str, str], style: dict[str, Any]
) -> None:
    lengths = [row["length"] for row in rows]
    axes.plot(lengths, [row[what] for row in rows], marker="o", markersize=3.5, **style)
    if rows and bounds[0] in rows[0]:
        low, high = ([row[bound] for row in rows] for bound in bounds)
        axes.fill_between(lengths, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _log_scale(axes: Any) -> None:
    """With numbers at least twice in an octave, because all perplexities may lie within one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colour(way: str, number: int) -> str:
    return COLOURS.get(way, _MORE[number % len(_MORE)])


def _name(way: str) -> str:
    return NAMES.get(way, way)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.minorticks_off()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _write(figure: Any, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format=path.suffix[1:])
    os.replace(partial, path)
