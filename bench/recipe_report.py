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
PAIR = ("#2a6f97", "#b5651d", "#4c956c", "#7b4173")
NAMES = {"all": "unfiltered", **{name: f"best {share:.0%}" for name, share in KEEP.items() if share < 1}}
INK = "#777777"
Run = dict[str, Any]
Measure = Callable[[Run], float]
Key = tuple[str, str, int]  # experiment, arm, steps
Contrast = tuple[str, Key, Key]  # a label, an arm, what it is compared with
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


def digit_loss(run: Run) -> float:
    """The first runs did not measure it."""
    return float(run.get("digits", math.nan))


KINDS: dict[str, Measure] = {kind: mean_of([kind]) for kind in (*HELD, "word problems")}
KINDS |= {"template problems": problem_loss}
GOOD_LOSS = mean_of(GOOD)
LEFT_OUT = mean_of(["literature", "dialogue", "noise"])


def interval(values: list[float]) -> Interval:
    """Mean and half-width of what was measured; the latter infinite for a single seed."""
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    half = T95[n] * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return statistics.fmean(values) if n else math.nan, half, n


class Results:
    """Finished runs by arm, steps and seed."""

    def __init__(self, folder: Path) -> None:
        self.runs: dict[Key, dict[int, Run]] = {}
        for path in sorted(folder.glob("*.json")):
            run = json.loads(path.read_text("utf-8"))
            self.runs.setdefault((run["experiment"], run["arm"], run["steps"]), {})[run["seed"]] = run

    def level(self, key: Key, measure: Measure) -> Interval:
        return interval([measure(run) for run in self.runs[key].values()])

    def difference(self, key: Key, base: Key, measure: Measure) -> Interval:
        """Of the seeds that both have, `key` less `base`."""
        ours, theirs = self.runs[key], self.runs[base]
        return interval([measure(ours[seed]) - measure(theirs[seed]) for seed in sorted(set(ours) & set(theirs))])


def shown(value: Interval, places: int = 3, sign: bool = False) -> str:
    mean, half, n = value
    return "not measured" if not n else f"{mean:{'+' if sign else ''}.{places}f} ± {half:.{places}f}"


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


def _contrast_table(found: Results, contrasts: list[Contrast]) -> str:
    """A column for each arm and the difference of another to it."""
    kinds: dict[str, Measure] = {"good": GOOD_LOSS, **KINDS, "digits of template answers": digit_loss}
    kinds["template problems right"] = accuracy()
    head, columns = ["held out"], []
    for label, arm, base in contrasts:
        head += [f"{base[1]}, {base[2] * 1024 / 1e6:.2f} M", f"{label} ({len(found.runs[arm])} seeds)"]
        columns += [[shown(found.level(base, m)) for m in kinds.values()]]
        columns += [[shown(found.difference(arm, base, m), sign=True) for m in kinds.values()]]
    return table(head, [[name, *cells] for name, *cells in zip(kinds, *columns, strict=True)])


def axes_of(count: int, width: float = 3.3, height: float = 2.9) -> tuple[Any, Any]:
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
    """Each filter's difference to no filter, by what is held out."""
    panels = {
        "good (textbooks, encyclopedia, manuals)": GOOD_LOSS,
        "textbooks, manuals": mean_of(["textbook", "reference"]),
        "encyclopedia": KINDS["encyclopedia"],
        "fiction, dialogue, noise": LEFT_OUT,
    }
    figure, axes = axes_of(len(panels), 2.7)
    budgets = sorted({steps for experiment, _, steps in found.runs if experiment == "a"})
    for axis, (title, measure) in zip(axes, panels.items(), strict=True):
        for place, arm in enumerate(name for name in KEEP if name != "all"):
            there = [steps for steps in budgets if ("a", arm, steps) in found.runs]
            x = [steps * 1024 / 1e6 * (0.98 + 0.04 * place) for steps in there]  # side by side
            values = [found.difference(("a", arm, steps), ("a", "all", steps), measure) for steps in there]
            _bars(axis, x, values, PAIR[place], NAMES[arm])
        axis.axhline(0, color=INK, linewidth=1, linestyle=":")
        axis.set_xscale("log")
        axis.set_xticks([steps * 1024 / 1e6 for steps in budgets], [f"{steps * 1024 / 1e6:.2g} M" for steps in budgets])
        axis.minorticks_off()
        axis.set_xlabel("tokens trained on", color=INK)
        axis.set_title(title, color=INK, fontsize=9)
    axes[0].set_ylabel("loss less that of unfiltered, nats", color=INK)
    axes[0].legend(frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, "recipe-filter.svg")


def _dots(axis: Any, found: Results, contrasts: list[Contrast], kinds: dict[str, Measure], label: str) -> None:
    """Differences by what is held out, a row a kind."""
    for place, (name, arm, base) in enumerate(contrasts):
        values = [found.difference(arm, base, measure) for measure in kinds.values()]
        y = [row + 0.3 * (place - (len(contrasts) - 1) / 2) for row in range(len(kinds))]
        reach = [half if math.isfinite(half) else 0.0 for _, half, _ in values]
        axis.errorbar([mean for mean, _, _ in values], y, xerr=reach, fmt="o", markersize=4, capsize=2.5,
                      color=PAIR[place], label=name)  # fmt: skip
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(kinds)), list(kinds))
    axis.invert_yaxis()
    axis.set_xlabel(label, color=INK)
    axis.legend(frameon=False, labelcolor=INK, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _phases_picture(found: Results, contrasts: list[Contrast]) -> None:
    figure, (axis,) = axes_of(1, 6.6, 3.6)
    _dots(axis, found, contrasts, KINDS, "held-out loss less that of one mixture, nats a token (left is better)")
    _save(figure, "recipe-phases.svg")


def _synthetic_picture(found: Results, contrasts: list[Contrast]) -> None:
    """What exercises cost elsewhere, and what they teach about unseen exercises."""
    figure, (elsewhere, own) = axes_of(2, 4.6, 3.4)
    others = {kind: measure for kind, measure in KINDS.items() if kind != "template problems"}
    _dots(elsewhere, found, contrasts, others, "held-out loss less that without, nats a token")
    measures = {"all tokens": problem_loss, "digits": digit_loss}
    longest = contrasts[-1][2]
    arms = {"none": longest, **{name.partition(",")[0]: arm for name, arm, _ in contrasts if arm[2] == longest[2]}}
    for place, (name, arm) in enumerate(arms.items()):
        values = [found.level(arm, measure) for measure in measures.values()]
        reach = [half if math.isfinite(half) else 0.0 for _, half, _ in values]
        x = [n + 0.25 * (place - (len(arms) - 1) / 2) for n in range(len(measures))]
        own.bar(x, [mean for mean, _, _ in values], 0.23, yerr=reach, color=(INK, *PAIR)[place], label=name,
                error_kw={"ecolor": INK, "capsize": 2})  # fmt: skip
    own.axhline(math.log(10), color=INK, linewidth=1, linestyle=":")
    own.text(
        0.99, math.log(10), "ln 10", color=INK, fontsize=8, va="bottom", ha="right", transform=own.get_yaxis_transform()
    )
    own.set_xticks(range(len(measures)), list(measures))
    own.set_title("answers of unseen template problems, nats a token", color=INK, fontsize=9)
    own.legend(frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, "recipe-synthetic.svg")


def report(results: Path, one: int, longest: int) -> None:
    """Everything there is; (b) was run for `one` steps, (c) for these and `longest`."""
    found = Results(results)
    print("## Filtered against unfiltered (unfiltered: loss; filtered: difference to it)\n")
    print(_filter_table(found))
    _filter_picture(found)
    phases: list[Contrast] = [
        ("two phases", ("b", "two phases", one), ("b", "one mixture", one)),
        ("two gentle phases", ("b", "two gentle phases", one), ("b", "one gentle mixture", one)),
    ]
    synthetic: list[Contrast] = [
        (f"20 % synthetic, {steps * 1024 / 1e6:.2f} M", ("c", "synthetic-20", steps), ("a", "keep-40", steps))
        for steps in (one, longest)
    ]
    for title, contrasts, picture in (
        ("Two phases against one mixture of the same windows", phases, _phases_picture),
        ("Synthetic exercises in place of filtered text", synthetic, _synthetic_picture),
    ):
        there = [c for c in contrasts if c[1] in found.runs and c[2] in found.runs]
        if there:
            print(f"## {title}\n")
            print(_contrast_table(found, there))
            picture(found, there)
