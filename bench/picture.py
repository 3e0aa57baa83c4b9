"""The README's picture of speed: `python bench/picture.py bench/results/TABLE.md docs/images/speed.svg`.

Reads the first table of a results file (the rows `bench/engine.py --table` writes) and draws each ratio to llama.cpp
as a bar; for memory, where less is better, the row already holds the inverse.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from phial.errors import PhialError

ROW = re.compile(r"^\| (?P<model>\S+) (?P<what>.+?) \| (?P<ours>[\d.]+) \| (?P<peer>[\d.]+) \| (?P<ratio>[\d.]+) \|")


def read_rows(path: Path) -> dict[str, list[tuple[str, float]]]:
    """(what was measured, ratio) of each model, in the file's order; raises PhialError where there are none."""
    models: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text("utf-8").splitlines():
        if found := ROW.match(line):
            models.setdefault(found["model"], []).append((found["what"], float(found["ratio"])))
        elif models:
            break  # the first table alone
    if not models:
        raise PhialError(f"{path} has no table of ratios", "take one that bench/engine.py --table wrote")
    return models


def draw(models: dict[str, list[tuple[str, float]]], target: Path) -> None:
    """Bars per model, the line at 1 being llama.cpp."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "phial", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(models), figsize=(3.1 * len(models), 2.3), sharex=True, layout="constrained")
    for axis, (model, rows) in zip([axes] if len(models) == 1 else axes, models.items(), strict=True):
        names = [re.sub(r" tok/s| MB", "", what).replace("peak resident", "memory") for what, _ in rows]
        ratios = [ratio for _, ratio in rows]
        bars = axis.barh(names, ratios, color=["#2a6f97" if ratio >= 1 else "#b5651d" for ratio in ratios])
        axis.bar_label(bars, [f"{ratio:.1f}×" for ratio in ratios], padding=2, color="#777777")
        axis.axvline(1, color="#777777", linewidth=1)
        axis.invert_yaxis()
        axis.set_title(model, color="#777777", fontsize=9)
        axis.tick_params(colors="#777777")
        axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axis.set_xticks([])
    axis.set_xlim(0, 1.18 * max(ratio for rows in models.values() for _, ratio in rows))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the ratios of a results table.")
    parser.add_argument("table", type=Path)
    parser.add_argument("picture", type=Path, help="SVG or PNG")
    options = parser.parse_args()
    try:
        draw(read_rows(options.table), options.picture)
    except PhialError as error:
        print(f"error: {error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
