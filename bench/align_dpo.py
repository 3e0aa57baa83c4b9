"""Does DPO on a model's own answers make it keep a format better, on prompts and kinds it never saw? See the guide.

    python bench/align_dpo.py prepare DIR --seeds 3
    phial data prefer DIR/held-out.toml -o DIR/held-out
    phial data prefer DIR/measure.toml -o DIR/greedy-before
    phial data prefer DIR/measure.toml --temperature 0.7 -o DIR/sampled-before

and for each seed, here 0,

    phial data prefer DIR/pairs-0.toml -o DIR/pairs-0
    phial train dpo smollm2-135m DIR/pairs-0/pairs.jsonl --validation DIR/held-out/pairs.jsonl \\
        -c DIR/dpo-0.toml -o DIR/run-0
    phial convert DIR/run-0/model DIR/tuned-0.gguf --type q8_0
    phial data prefer DIR/measure.toml -m DIR/tuned-0.gguf -o DIR/greedy-0
    phial data prefer DIR/measure.toml -m DIR/tuned-0.gguf --temperature 0.7 -o DIR/sampled-0

then

    python bench/align_dpo.py report DIR --seeds 3 --picture docs/images/align-dpo.svg

Every prompt that is measured on has a phrasing, a topic and keys that no prompt of training has; of the untrained kinds
no prompt was trained on at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from phial.data.checks import repetition
from phial.intervals import wilson

TRAINED = ("json_object", "numbered_list", "comma_list", "one_word", "yes_no", "number_only")
UNTRAINED = ("json_list", "bullet_list", "key_value", "begins_with", "number_words", "capitals")
PAIRS, HELD, MEASURED = 28, 5, 20  # prompts of a kind: of a seed, for the loss while training, for the figures
LONGEST = 48  # tokens of an answer
PREFER = """[prefer]
seed = {seed}
split = "{split}"
samples = {samples}
temperature = {temperature}
max_tokens = {longest}
written = {written}

[prefer.formats]
"""
DPO = """beta = 0.1
batch = 8
epochs = 1.0

[loop]
seed = {seed}
precision = "bf16"
evaluate_every = 7

[loop.optimizer]
lr = 5e-6
"""


def prepare(folder: Path, seeds: int) -> None:
    """Write the configurations."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, kinds: Sequence[str], count: int, **settings: Any) -> None:
        text = PREFER.format(longest=LONGEST, **settings) + "".join(f"{kind} = {count}\n" for kind in kinds)
        (folder / f"{name}.toml").write_text(text, "utf-8")

    own = {"samples": 4, "temperature": 0.9, "written": "true"}
    for seed in range(seeds):
        write(f"pairs-{seed}", TRAINED, PAIRS, seed=seed, split="train", **own)
        (folder / f"dpo-{seed}.toml").write_text(DPO.format(seed=seed), "utf-8")
    write("held-out", TRAINED, HELD, seed=1000, split="held_out", **own)
    one = {"samples": 1, "temperature": 0.0, "written": "false"}
    write("measure", (*TRAINED, *UNTRAINED), MEASURED, seed=2000, split="held_out", **one)


class Measured:
    """The answers of a model to the prompts of measure.toml, in their order."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "answers.jsonl").read_text("utf-8").splitlines()
        self.answers: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of(self, kinds: Sequence[str]) -> list[dict[str, Any]]:
        return [answer for answer in self.answers if answer["kind"] in kinds]

    def passed(self, kinds: Sequence[str]) -> list[bool]:
        return [not answer["faults"] for answer in self.of(kinds)]

    def cells(self) -> list[str]:
        """What a collapse would show in."""
        words = [len(answer["text"].split()) for answer in self.answers]
        repeated = [repetition(answer["text"]) for answer in self.answers]
        same = 1 - len({answer["text"] for answer in self.answers}) / len(self.answers)
        cut = mean(answer["cut_off"] for answer in self.answers)
        return [f"{mean(words):.1f}", f"{cut:.0%}", f"{mean(repeated):.1%}", f"{same:.0%}"]


def shared(measured: Sequence[Measured], kinds: Sequence[str]) -> str:
    """The share of passed prompts: of one model with Wilson's interval, of seeds each, and their mean."""
    shares = [mean(one.passed(kinds)) for one in measured]
    if len(shares) > 1:
        return f"{mean(shares):.1%} ({', '.join(f'{share:.1%}' for share in shares)})"
    low, high = wilson(sum(measured[0].passed(kinds)), len(measured[0].passed(kinds)))
    return f"{shares[0]:.1%} ({low:.1%} to {high:.1%})"


def win_rate(before: Measured, after: Measured, kinds: Sequence[str]) -> tuple[int, int, float]:
    """Prompts that only the tuned model got right, that only the other did, and wins with ties by half."""
    both = list(zip(before.passed(kinds), after.passed(kinds), strict=True))
    won, lost = sum(b and not a for a, b in both), sum(a and not b for a, b in both)
    return won, lost, (won + (len(both) - won - lost) / 2) / len(both)


def report(folder: Path, seeds: int, picture: Path | None) -> None:
    """Print the tables; draw shares by kind and what happened while training."""
    groups = {"trained kinds": TRAINED, "untrained kinds": UNTRAINED}
    for way in [way for way in ("greedy", "sampled") if (folder / f"{way}-{seeds - 1}").exists()]:
        before, after = Measured(folder / f"{way}-before"), [Measured(folder / f"{way}-{s}") for s in range(seeds)]
        rows = []
        for name, kinds in {**groups, **{kind: (kind,) for kind in (*TRAINED, *UNTRAINED)}}.items():
            wins = [win_rate(before, one, kinds) for one in after]
            shown = ", ".join(f"{won}:{lost}" for won, lost, _ in wins)
            row = [name, str(len(before.of(kinds))), shared([before], kinds), shared(after, kinds), shown]
            rows.append([*row, f"{mean(rate for *_, rate in wins):.1%}"])
        print(_table([f"passed, {way}", "prompts", "before", "DPO, mean (seeds)", "won:lost", "win rate"], rows))
        cells = [["before", *before.cells()], *([f"seed {seed}", *one.cells()] for seed, one in enumerate(after))]
        print(_table([f"answers, {way}", "words", "cut off", "repeated trigrams", "same as another"], cells))
    print(_table(["training", "pairs", "own answer chosen", *AT_THE_END], list(_training(folder, seeds))))
    if picture:
        _draw(folder, seeds, picture)


AT_THE_END = {
    "accuracy": "rewards/accuracy",
    "margin": "rewards/margin",
    "chosen, log π − log ref": "ratio/chosen",
    "rejected": "ratio/rejected",
    "KL": "kl",
}


def _training(folder: Path, seeds: int) -> Iterator[list[str]]:
    """The pairs of each run, and what held-out pairs came to after it."""
    for seed in range(seeds):
        pairs = [json.loads(line) for line in (folder / f"pairs-{seed}/pairs.jsonl").read_text("utf-8").splitlines()]
        row = [row for row in _metrics(folder, seed) if "validation/loss" in row][-1]
        cells = [f"{row[f'validation/{metric}']:.2f}" for metric in AT_THE_END.values()]
        yield [f"seed {seed}", str(len(pairs)), str(sum(pair["source"] == "sampled" for pair in pairs)), *cells]


def _metrics(folder: Path, seed: int) -> list[dict[str, Any]]:
    lines = (folder / f"run-{seed}/metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _draw(folder: Path, seeds: int, target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, old, new = "#777777", "#b5651d", "#2a6f97"
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    shares, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    kinds = [*TRAINED, *UNTRAINED]
    before = Measured(folder / "greedy-before")
    after = [Measured(folder / f"greedy-{seed}") for seed in range(seeds)]
    places = [place + (place >= len(TRAINED)) * 0.7 for place in range(len(kinds))]
    for place, kind in zip(places, kinds, strict=True):
        found = [mean(one.passed((kind,))) for one in after]
        shares.plot(
            [mean(before.passed((kind,)))], [place], "o", mfc="none", color=old, label="before" if not place else None
        )
        shares.plot(found, [place] * seeds, "|", markersize=9, color=new)
        shares.plot([mean(found)], [place], "o", color=new, label="after DPO, seeds as strokes" if not place else None)
    shares.set_yticks(places, [kind.replace("_", " ") for kind in kinds])
    shares.invert_yaxis()
    shares.set_xlim(-0.03, 1.03)
    shares.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    shares.set_title("held-out prompts answered as asked, greedily\nabove: kinds trained on; below: never", color=ink)
    for seed in range(seeds):
        rows = _metrics(folder, seed)
        for name, colour in (("ratio/chosen", new), ("ratio/rejected", old), ("kl", ink)):
            points = [(0, 0.0)] + [
                (row["step"], row[f"validation/{name}"]) for row in rows if f"validation/{name}" in row
            ]
            label = {"ratio/chosen": "chosen", "ratio/rejected": "rejected", "kl": "KL, k3"}[name]
            curves.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=None if seed else label)
    curves.set_title("held-out pairs: log π − log ref,\nnats a token", color=ink)
    curves.set_xlabel("step", color=ink)
    for axis in (shares, curves):
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(colors=ink)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, labelcolor=ink, fontsize=8)
        axis.title.set_fontsize(9)
    figure.savefig(target, transparent=True, metadata={"Date": None} if target.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "report"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--seeds", type=int, default=3)
        if name == "report":
            command.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.command == "prepare":
        prepare(given.folder, given.seeds)
    else:
        report(given.folder, given.seeds, given.picture)


if __name__ == "__main__":
    main()
