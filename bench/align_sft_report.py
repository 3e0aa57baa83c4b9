"""The tables and the picture of bench/align_sft.py: the untuned model first, then one file for each seed.

    python bench/align_sft_report.py untuned.json tuned-0.json tuned-1.json tuned-2.json --picture align-sft.svg

Shares have Wilson's 95 % interval over the prompts, the same for every model; a mean over seeds has that of as many
prompts as one seed answered, so that seeds do not count as new prompts. Losses have Student's over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align_sft import TRAINED
from recipe_report import INK, PAIR, axes_of, interval, shown, table

from phial.eval.proportions import Share, wilson

Answer = dict[str, Any]
MEASURES: dict[str, Callable[[Answer], bool]] = {
    "in the form asked for": lambda answer: answer["kept"],
    "right and in the form": lambda answer: answer["right"],
    "right in any form": lambda answer: answer["meant"],
}
GROUPS = {**{form: (form,) for form in TRAINED}, "all three": TRAINED, "brackets, never trained": ("brackets",)}


def shares(models: Sequence[dict[str, Any]], measure: str, forms: Sequence[str]) -> list[float]:
    """Each model's share of answers to prompts of these forms."""
    chosen = [[answer for answer in model["answers"] if answer["form"] in forms] for model in models]
    return [statistics.fmean(map(MEASURES[measure], answers)) for answers in chosen]


def count(model: dict[str, Any], forms: Sequence[str]) -> int:
    return sum(answer["form"] in forms for answer in model["answers"])


def write_tables(untuned: dict[str, Any], tuned: Sequence[dict[str, Any]]) -> None:
    for measure in MEASURES:
        rows = []
        for name, forms in GROUPS.items():
            n, (before,), after = (
                count(untuned, forms),
                shares([untuned], measure, forms),
                shares(tuned, measure, forms),
            )
            cells = [_percent(wilson(before * n, n)), ", ".join(f"{share:.0%}" for share in after)]
            rows.append([name, str(n), *cells, _percent(wilson(statistics.fmean(after) * n, n))])
        print(table([f"answers {measure}", "prompts", "untuned", "seeds", "tuned, mean"], rows))
    guess = statistics.fmean(answer["guess"] for answer in untuned["answers"])
    print(f"Guessing among the options would be right {guess:.1%} of the time.\n")
    rows = []
    for name, before in untuned["losses"].items():
        after = [model["losses"][name] for model in tuned]
        rows.append([name, f"{before:.3f}", ", ".join(f"{loss:.3f}" for loss in after), shown(interval(after))])
    print(table(["loss, nats a token", "untuned", "seeds", "tuned, mean"], rows))


def _percent(share: Share) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def draw(untuned: dict[str, Any], tuned: Sequence[dict[str, Any]], target: Path) -> None:
    """Shares by form, before and after, for the form and for the right answer in it."""
    panels = ("in the form asked for", "right in any form")
    names = [name for name in GROUPS if name != "all three"]
    figure, axes = axes_of(len(panels), 3.9, 2.6)
    for axis, measure in zip(axes, panels, strict=True):
        for place, (label, models) in enumerate((("untuned", [untuned]), ("tuned", tuned))):
            y = [row + 0.3 * (place - 0.5) for row in range(len(names))]
            all_of = [shares(models, measure, GROUPS[name]) for name in names]
            counts = [count(untuned, GROUPS[name]) for name in names]
            means = [wilson(statistics.fmean(each) * n, n) for each, n in zip(all_of, counts, strict=True)]
            x, colour = [mean.value for mean in means], PAIR[1 - place]
            reach = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
            axis.errorbar(x, y, xerr=reach, fmt="o", markersize=5, capsize=2.5, color=colour, label=label)
            for row, each in zip(y, all_of, strict=True):
                if len(each) > 1:
                    axis.plot(each, [row] * len(each), "|", markersize=8, color=colour, alpha=0.6)
        if measure == "right in any form":
            guess = statistics.fmean(answer["guess"] for answer in untuned["answers"])
            axis.axvline(guess, color=INK, linewidth=1, linestyle=":")
            axis.text(guess + 0.02, len(names) - 1.4, "guessing", color=INK, fontsize=8)
        axis.set_xlim(-0.03, 1.03)
        axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.25, linewidth=0.6)
        axis.set_title(f"held-out answers {measure}", color=INK, fontsize=9)
    axes[0].legend(frameon=False, labelcolor=INK, fontsize=8, loc="lower right")
    figure.savefig(target, transparent=True, metadata={"Date": None} if target.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a picture of bench/align_sft.py measure.")
    parser.add_argument("untuned", type=Path)
    parser.add_argument("tuned", type=Path, nargs="+", help="one file a seed")
    parser.add_argument("--picture", type=Path, help="SVG or PNG")
    options = parser.parse_args()
    untuned, *tuned = (json.loads(path.read_text("utf-8")) for path in (options.untuned, *options.tuned))
    write_tables(untuned, tuned)
    if options.picture:
        draw(untuned, tuned, options.picture)


if __name__ == "__main__":
    main()
