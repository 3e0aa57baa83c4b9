"""The picture of `phial quantize --report`: which matrices lost how much, and where the bytes went."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phial.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from phial.gguf.quantize import Plan, TensorReport

_KINDS = ("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_WHOLE = ("token_embd", "output")


def check_drawing(path: Path) -> None:
    """ArgumentError where no picture could be drawn, before the work that it would show."""
    if path.suffix.lower() != ".png":
        raise ArgumentError(f"--report {path} is no .png file", "name a file as report.png")
    if importlib.util.find_spec("matplotlib") is None:
        raise ArgumentError("--report needs matplotlib, which is not installed", "pip install 'phial[plot]'")


def draw(plan: Plan, reports: list[TensorReport], path: Path, *, title: str) -> None:
    """Write the picture. OSError where that fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_layer = plan.source.config.n_layer
    kinds = [kind for kind in _KINDS if any(f".{kind}." in report.name for report in reports)]
    figure = Figure(figsize=(max(9.0, 3.5 + 0.27 * n_layer), 2.9 + 0.36 * len(kinds)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    top, bottom = figure.subplots(2, 1, height_ratios=[len(kinds) + 1.2, 2.6])
    _errors(figure, top, reports, kinds, n_layer)
    _sizes(bottom, plan)
    figure.savefig(path, format="png")


def _grid(reports: list[TensorReport], kinds: list[str], n_layer: int) -> tuple[NDArray[np.float64], list[list[str]]]:
    """Relative errors in percent, and types, of the matrices in layers: (kinds, layers)."""
    import numpy as np

    values = np.full((len(kinds), n_layer), np.nan)
    types = [[""] * n_layer for _ in kinds]
    for report in reports:
        parts = report.name.split(".")
        if parts[0] == "blk" and parts[2] in kinds:
            row, column = kinds.index(parts[2]), int(parts[1])
            values[row, column], types[row][column] = 100 * report.relative, report.type.name
    return values, types


def _errors(figure: Any, axes: Any, reports: list[TensorReport], kinds: list[str], n_layer: int) -> None:
    """Layers by kinds, darker where more was lost, each with its type; a frame around the worst."""
    from matplotlib.patches import Rectangle

    from phial.gguf.quantize import WORST, worst

    marked = worst(reports, WORST)
    values, types = _grid(reports, kinds, n_layer)
    image = axes.imshow(values, cmap="YlOrRd", aspect="auto", vmin=0)
    axes.set_yticks(range(len(kinds)), kinds)
    step = 1 if n_layer <= 40 else 5
    axes.set_xticks(range(0, n_layer, step), [str(i) for i in range(0, n_layer, step)], fontsize=8)
    axes.set_xlabel("layer")
    axes.set_xticks([i - 0.5 for i in range(1, n_layer)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(kinds))], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, line in enumerate(types):
        for column, kind in enumerate(line):
            if kind and n_layer <= 48:
                dark = values[row, column] > 0.6 * image.get_clim()[1]
                axes.text(column, row, kind, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    for name in (r.name for r in reports if r.name in marked and r.name.startswith("blk.")):
        _, layer, kind, _ = name.split(".")
        corner = (int(layer) - 0.5, kinds.index(kind) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.4))
    whole = {r.name.removesuffix(".weight"): r for r in reports}
    parts = [f"{n} ({whole[n].type.name}) {100 * whole[n].relative:.2f} %" for n in _WHOLE if n in whole]
    axes.set_title(
        f"error of each matrix, % of its root mean square; the {len(marked)} largest framed.   {',  '.join(parts)}",
        fontsize=9,
        loc="left",
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _sizes(axes: Any, plan: Plan) -> None:
    """Megabytes by type, the widest type last."""
    from phial.gguf.formats import BLOCK_SIZES, n_bytes

    sizes: dict[str, int] = {}
    tensors = plan.source.tensors
    for name in sorted(tensors, key=lambda n: BLOCK_SIZES[plan.types[n]][1] / BLOCK_SIZES[plan.types[n]][0]):
        kind = plan.types[name]
        sizes[kind.name] = sizes.get(kind.name, 0) + n_bytes(kind, tensors[name].shape)
    names, total = list(sizes), sum(sizes.values())
    bars = axes.barh(range(len(names)), [sizes[n] / 1e6 for n in names], color="#4878a8", height=0.7)
    labels = [f"{sizes[n] / 1e6:,.1f} MB, {100 * sizes[n] / total:.1f} %" for n in names]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(sizes.values()) / 1e6 * 1.18)
    axes.set_title(f"size by type, {total / 1e6:,.1f} MB in all", fontsize=9, loc="left")
    axes.set_xlabel("MB")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
