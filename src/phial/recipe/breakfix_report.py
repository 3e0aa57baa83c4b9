"""The report of a break-fix run: report.json for programs, report.md and breakfix.png for people; no answer in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phial.manifest import write_json

REPORT, PICTURE = "report.json", "breakfix.png"
ROWS = (  # what a table shows: words, and where it stands in a round's measures
    ("held-out attacks that succeed", ("held-out", "success")),
    ("held-out, DR-1", ("held-out", "DR-1")),
    ("held-out, DR-3", ("held-out", "DR-3")),
    ("held-out attacks refused", ("held-out", "refused")),
    ("held-out attacks babbled at", ("held-out", "babbled")),
    ("plain requests that succeed", ("plain", "success")),
    ("plain requests refused", ("plain", "refused")),
    ("safe prompts refused", ("labelled", "safe refused")),
    ("safe prompts babbled at", ("labelled", "safe babbled")),
    ("unsafe prompts refused", ("labelled", "unsafe refused")),
    ("exact answers right", ("exact",)),
)
_COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73")


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write all three."""
    write_json(folder / REPORT, report)
    partial = folder / "report.md.partial"
    partial.write_text(_markdown(report), "utf-8")
    os.replace(partial, folder / "report.md")
    draw(report["rounds"], report["best"], folder / PICTURE)


def table(rounds: list[dict[str, Any]]) -> list[list[str]]:
    """A row a measure, a column a round: the share and its 95 % interval; the loss of general chats as it is."""
    rows = []
    for words, keys in ROWS:
        cells = [at(found, keys) for found in rounds]
        if cells[0] is not None:
            rows.append([words, *(_cell(cell) for cell in cells)])
    if "loss" in rounds[0]:
        rows.append(["loss of general chats", *(f"{found['loss']:.3f}" for found in rounds)])
    return rows


def draw(rounds: list[dict[str, Any]], best: int, path: Path) -> None:
    """Write the picture: attacks that succeed and what it costs, by round, with intervals. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    attacks = {
        "held-out attacks": ("held-out", "success"),
        "plain requests": ("plain", "success"),
        "DR-1, held out": ("held-out", "DR-1"),
    }
    _lines(left, rounds, attacks, "attacks that succeed, %")
    prompts = {"unsafe prompts": ("labelled", "unsafe refused"), "safe prompts": ("labelled", "safe refused")}
    _lines(right, rounds, prompts, "prompts refused, %")
    if "loss" in rounds[0]:
        losses = ", ".join(f"{found['loss']:.3f}" for found in rounds)
        right.set_title(f"loss of general chats: {losses}", fontsize=8)
    left.set_title(f"kept: round {best}" if best else "kept: the model before tuning", fontsize=8)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)


def _lines(axes: Any, rounds: list[dict[str, Any]], names: Mapping[str, tuple[str, ...]], label: str) -> None:
    for place, (name, keys) in enumerate(names.items()):
        shares = [at(found, keys) for found in rounds]
        if shares[0] is None:
            continue
        values = [100 * share["value"] for share in shares]
        errors = [[v - 100 * s["low"] for v, s in zip(values, shares, strict=True)]]
        errors.append([100 * s["high"] - v for v, s in zip(values, shares, strict=True)])
        xs = [number + 0.04 * place for number in range(len(rounds))]
        axes.errorbar(xs, values, yerr=errors, marker="o", capsize=3, label=name, color=_COLOURS[place])
    axes.set_xticks(range(len(rounds)), ["before", *(f"round {number}" for number in range(1, len(rounds)))])
    axes.set_ylabel(label)
    axes.set_ylim(-2, 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _markdown(report: dict[str, Any]) -> str:
    rounds = report["rounds"]
    heads = ["", "before", *(f"round {number}" for number in range(1, len(rounds)))]
    lines = [f"# Break-fix: {report['model']}", "", f"Stopped: {report['stopped']}. Kept: round {report['best']}.", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(rounds) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in table(rounds)]
    for number, changes in enumerate(report["changes"], 1):
        for name, found in changes.items():
            change = f"{found['value']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})"
            lines += ["", f"Round {number}, success of {name} attacks against before, same attacks: {change}."]
    for kind in ("by persona", "by mutator"):
        lines += [
            "",
            f"| held-out success {kind} | " + " | ".join(heads[1:]) + " |",
            "|---" + "|---:" * len(rounds) + "|",
        ]
        for name in rounds[0]["held-out"][kind]:
            lines.append(f"| {name} | " + " | ".join(_cell(found["held-out"][kind][name]) for found in rounds) + " |")
    lines += _agreement(rounds)
    return "\n".join(lines) + "\n"


def _agreement(rounds: list[dict[str, Any]]) -> list[str]:
    lines = list[str]()
    for number, found in enumerate(rounds):
        if judges := found.get("held-out judges"):
            kappas = ", ".join(f"{key} {_kappa(judges[key])}" for key in ("severity", "success"))
            same = f"{judges['same']['value']:.0%} of attacks alike"
            lines += ["", f"Judges {' and '.join(judges['judges'])}, round {number}: kappa of {kappas}; {same}."]
    return lines


def _kappa(value: float | None) -> str:
    return "undefined (one value throughout)" if value is None else f"{value:.2f}"


def at(found: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """What stands in a round's measures at that place; None where there is nothing."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _cell(share: dict[str, Any]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%}-{share['high']:.1%}, n {share['n']})"
