"""`phial data mix`: documents into the token shards of each training phase, with the plan as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phial.cli import console, options

if TYPE_CHECKING:
    from phial.data.mixture import Plan

Folder = Annotated[Path, typer.Argument(metavar="STAGE", help="Folder of a finished stage, such as 05-decontaminate.")]
Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="TOML file with a [mix] table.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A folder of shards for each phase.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Processes.")]
PlanOnly = Annotated[bool, typer.Option("--plan", metavar="", help="Tokenise and plan, write no shards.")]


def mix(
    stage: Folder,
    config: Config,
    output: Output,
    workers: Workers = 1,
    plan_only: PlanOnly = False,
    as_json: options.Json = False,
) -> None:
    """Tokenise a stage's documents and write the shards of every phase, no document in two of them."""
    from phial.cli.data_stages import require_data

    require_data()
    from phial.data import mixing

    settings = mixing.read_mix(config)
    if plan_only:
        plan, _ = mixing.plan_mixture(stage, settings, output, workers=workers)
    else:
        plan = mixing.mix(stage, settings, output, workers=workers)
    if as_json:
        console.write_json(plan.json())
    else:
        _show(plan)


def _show(plan: Plan) -> None:
    rows = [
        [
            slot.phase,
            slot.source,
            _scores(slot.min_quality, slot.max_quality),
            f"{slot.documents:,}",
            f"{slot.unique_tokens:,}",
            f"{slot.epochs:.2f}",
            f"{slot.cap:g}",
            f"{slot.tokens:,}",
            f"{100 * slot.share:.1f}",
        ]
        for slot in plan.slots
    ]
    left = (("validation", plan.validation), ("(unused)", plan.unused))
    for name, table in left:
        rows += [[name, source, "", f"{n:,}", f"{tokens:,}", "", "", "", ""] for source, (n, tokens) in table.items()]
    titles = ["phase", "source", "scores", "documents", "unique tokens", "epochs", "cap", "tokens", "share, %"]
    console.write_table(titles, rows, right=titles[3:])


def _scores(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"{'' if low is None else low} to {'' if high is None else high}"
