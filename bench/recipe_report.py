"""Tables and pictures of bench/recipe.py's results: means over seeds with 95 % intervals by Student's t.

Differences are between runs of the same seed, which share the initial weights, so that their intervals are narrower
than those of the means they come from.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from recipe_corpus import GOOD, HELD, KEEP

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # by number of seeds
IMAGES = Path(__file__).parents[1] / "docs/images"
COLOURS = {"all": "#8a8a8a", "keep-40": "#2a6f97", "keep-15": "#b5651d", "keep-5": "#7b4173"}
NAMES = {"all": "unfiltered", **{name: f"best {share:.0%}" for name, share in KEEP.items() if share < 1}}
INK = "#777777"
Run = dict[str, Any]
Measure = Callable[[Run], float]
Interval = tuple[float, float, int]  # mean, half of the 95 % interval, seeds


def mean_of(kinds: Iterable[str]) -> Measure:
    """The mean loss of held-out kinds."""
    names = list(kinds)
    return lambda run: statistics.fmean(run["loss"][name] for name in names)


def accuracy(kinds: Iterable[str] = ()) -> Measure:
    """The share of the templates' problems that are right to the last token."""
    names = list(kinds)
    return lambda run: statistics.fmean(
        share for kind, (_, share) in run["problems"].items() if not names or kind in names
    )


def problem_loss(run: Run) -> float:
    return statistics.fmean(loss for loss, _ in run["problems"].values())


GOOD_LOSS = mean_of(GOOD)
LEFT_OUT = mean_of(kind for kind in HELD if kind not in GOOD)


def interval(values: list[float]) -> Interval:
    """Mean and half-width; the latter infinite for a single seed."""
    n = len(values)
    half = T95[n] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return statistics.fmean(values), half, n


class Results:
    """Finished runs by arm, steps and seed."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[tuple[str, str, int], dict[int, Run]] = {}
        for path in sorted(folder.glob("*.json")):
            run = json.loads(path.read_text("utf-8"))
            self.runs.setdefault((run["experiment"], run["arm"], run["steps"]), {})[run["seed"]] = run

    def level(self, key: tuple[str, str, int], measure: Measure) -> Interval:
        return interval([measure(run) for run in self.runs[key].values()])

    def difference(self, key: tuple[str, str, int], base: tuple[str, str, int], measure: Measure) -> Interval:
        """Of the seeds that both have, `key` less `base`."""
        ours, theirs = self.runs[key], self.runs[base]
        return interval([measure(ours[seed]) - measure(theirs[seed]) for seed in sorted(set(ours) & set(theirs))])


def shown(value: Interval, places: int = 3, sign: bool = False) -> str:
    mean, half, _ = value
    return f"{mean:{'+' if sign else ''}.{places}f} ± {half:.{places}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _filter_table(found: Results) -> str:
    kinds: dict[str, Measure] = {"good": GOOD_LOSS, **{kind: mean_of([kind]) for kind in HELD}}
    rows = []
    for experiment, arm, steps in sorted(
        found.runs, key=lambda key: (key[2], list(KEEP).index(key[1]) if key[0] == "a" else 0)
    ):
        if experiment != "a":
            continue
        key, base = (experiment, arm, steps), ("a", "all", steps)
        cells = [shown(found.level(key, m)) if arm == "all" else shown(found.difference(key, base, m), sign=True)
                 for m in kinds.values()]  # fmt: skip
        rows.append([f"{steps * 1024 / 1e6:.2f} M", NAMES[arm], str(len(found.runs[key])), *cells])
    return table(["tokens", "arm", "seeds", *kinds], rows)


def _contrast_table(found: Results, base: tuple[str, str, int], arms: list[tuple[str, str, int]]) -> str:
    kinds: dict[str, Measure] = {"good": GOOD_LOSS, **{kind: mean_of([kind]) for kind in (*HELD, "word problems")}}
    kinds |= {"templates, loss": problem_loss, "templates, right": accuracy()}
    arms = [arm for arm in arms if arm in found.runs]
    head = ["held out", f"{base[1]} ({len(found.runs[base])} seeds)", *(f"{arm[1]}, less that" for arm in arms)]
    rows = []
    for name, measure in kinds.items():
        rest = [shown(found.difference(arm, base, measure), sign=True) for arm in arms]
        rows.append([name, shown(found.level(base, measure)), *rest])
    return table(head, rows)


def _axes(count: int, width: float = 3.3, height: float = 2.9) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "phial", "font.size": 9})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.tick_params(colors=INK, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
    return figure, axes[0]


def _save(figure: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, transparent=True, metadata={"Date": None})


def _bars(axis: Any, x: Sequence[float], values: list[Interval], colour: str, label: str, line: str = "-") -> None:
    heights = [half if math.isfinite(half) else 0.0 for _, half, _ in values]
    axis.errorbar(x, [mean for mean, _, _ in values], heights, color=colour, label=label, marker="o", markersize=3.5,
                  capsize=2.5, linewidth=1.3, linestyle=line)  # fmt: skip


def _filter_picture(found: Results) -> None:
    """Loss on good text, and each filter's difference to no filter on good text and on what the filter drops."""
    figure, (level, good, rest) = _axes(3)
    budgets = sorted({steps for experiment, _, steps in found.runs if experiment == "a"})
    for place, arm in enumerate(KEEP):
        there = [steps for steps in budgets if ("a", arm, steps) in found.runs]
        x = [steps * 1024 / 1e6 * (1 + 0.03 * (place - 1.5)) for steps in there]  # side by side
        if not there:
            continue
        _bars(level, x, [found.level(("a", arm, steps), GOOD_LOSS) for steps in there], COLOURS[arm], NAMES[arm])
        if arm == "all":
            continue
        for axis, measure in ((good, GOOD_LOSS), (rest, LEFT_OUT)):
            values = [found.difference(("a", arm, steps), ("a", "all", steps), measure) for steps in there]
            _bars(axis, x, values, COLOURS[arm], NAMES[arm])
    titles = (
        "textbooks, encyclopedia, reference",
        "the same, less unfiltered",
        "fiction, dialogue, noise, less unfiltered",
    )
    for axis, title in zip((level, good, rest), titles, strict=True):
        axis.set_xscale("log")
        axis.set_xticks([steps * 1024 / 1e6 for steps in budgets], [f"{steps * 1024 / 1e6:.2g} M" for steps in budgets])
        axis.minorticks_off()
        axis.set_xlabel("tokens trained on", color=INK)
        axis.set_title(title, color=INK, fontsize=9)
    for axis in (good, rest):
        axis.axhline(0, color=COLOURS["all"], linewidth=1)
    level.set_ylabel("held-out loss, nats a token", color=INK)
    level.legend(frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, "recipe-filter.svg")


def _phases_picture(found: Results, base: tuple[str, str, int], arms: dict[tuple[str, str, int], str]) -> None:
    """Differences to one mixture by what is held out."""
    figure, (axis,) = _axes(1, 6.6, 3.4)
    kinds: dict[str, Measure] = {kind: mean_of([kind]) for kind in (*HELD, "word problems")}
    kinds |= {"template problems": problem_loss}
    for place, (arm, colour) in enumerate((arm, colour) for arm, colour in arms.items() if arm in found.runs):
        values = [found.difference(arm, base, measure) for measure in kinds.values()]
        y = [row + 0.18 * (2 * place - 1) for row in range(len(kinds))]
        axis.errorbar([v[0] for v in values], y, xerr=[v[1] if math.isfinite(v[1]) else 0 for v in values], fmt="o",
                      markersize=4, capsize=2.5, color=colour, label=arm[1])  # fmt: skip
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(kinds)), list(kinds))
    axis.invert_yaxis()
    axis.set_xlabel("held-out loss less that of one mixture, nats a token (left is better)", color=INK)
    axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, "recipe-phases.svg")


def _synthetic_picture(found: Results, arms: dict[int, tuple[str, str, int]]) -> None:
    """Loss and accuracy over the share of synthetic text."""
    figure, (loss, right) = _axes(2, 3.9)
    arms = {share: arm for share, arm in arms.items() if arm in found.runs}
    base, x = arms[0], list(arms)
    for name, measure, colour in (
        ("good text", GOOD_LOSS, "#2a6f97"),
        ("fiction, dialogue, noise", LEFT_OUT, "#8a8a8a"),
        ("word problems people wrote", mean_of(["word problems"]), "#b5651d"),
    ):
        _bars(loss, x, [found.difference(arm, base, measure) for arm in arms.values()], colour, name)
    loss.axhline(0, color=INK, linewidth=0.8)
    kinds = list(next(iter(found.runs[base].values()))["problems"])
    for kind, colour in zip(kinds, ("#2a6f97", "#61a5c2", "#b5651d", "#7b4173", "#4c956c", "#8a8a8a"), strict=True):
        _bars(right, x, [found.level(arm, accuracy([kind])) for arm in arms.values()], colour, kind)
    loss.set_title("held-out loss less that without", color=INK, fontsize=9)
    right.set_title("unseen template problems right, working and all", color=INK, fontsize=9)
    for axis in (loss, right):
        axis.set_xticks(x, [f"{share} %" for share in x])
        axis.set_xlabel("share of synthetic text", color=INK)
        axis.legend(frameon=False, labelcolor=INK, fontsize=7)
    _save(figure, "recipe-synthetic.svg")


def report(results: Path, one: int) -> None:
    """Everything there is; `one` is the budget of (b) and (c) in steps."""
    found = Results(results)
    mixture, two, wrong = (("b", arm, one) for arm in ("one mixture", "two phases", "reversed"))
    shares = {0: ("a", "keep-40", one), 10: ("c", "synthetic-10", one), 30: ("c", "synthetic-30", one)}
    print("## Filtered against unfiltered (unfiltered: loss; filtered: difference to it)\n")
    print(_filter_table(found))
    _filter_picture(found)
    if mixture in found.runs:
        print("## Two phases against one mixture of the same windows\n")
        print(_contrast_table(found, mixture, [two, wrong]))
        _phases_picture(found, mixture, {two: "#2a6f97", wrong: "#b5651d"})
    if shares[0] in found.runs and shares[10] in found.runs:
        print("## Synthetic exercises in place of filtered text\n")
        print(_contrast_table(found, shares[0], [shares[10], shares[30]]))
        _synthetic_picture(found, shares)
