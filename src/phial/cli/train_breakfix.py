"""`phial train breakfix`: attack, judge, fix, tune and measure a model, round after round; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require
from phial.cli.progress import progress
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.recipe.breakfix_config import BreakfixConfig

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; see docs/guides/align.md.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Of the run.")]
Check = Annotated[bool, typer.Option("--check", metavar="", help="Read everything, say what is asked, ask nothing.")]

_ASKED = ("held_out", "plain", "labelled", "exact", "fixing", "harmless", "general")


def breakfix(config: Config, output: Output = None, check: Check = False, as_json: options.Json = False) -> None:
    """Make a model safer. Find attacks that succeed, tune on refusals of them, measure with attacks held out."""
    require("train", "tune a model")
    if output is None and not check:
        raise ArgumentError("there is no folder for the run", "name a new one with --output, or look with --check")
    from phial.config_file import read_config
    from phial.recipe.breakfix_config import BreakfixConfig, make_plan, resolve

    settings = resolve(read_config(config, BreakfixConfig), config.parent)
    if output is None or check:
        from phial.recipe.breakfix import general_chats

        plan = make_plan(settings)
        general_chats(settings, plan)
        told = {name: len(getattr(plan, name)) for name in _ASKED}
        _tell(told | {"left_out": plan.left_out}, as_json)
        return
    with console.resumable(output):
        report = _run(settings, output)
    if as_json:
        console.write_json(report)
    else:
        _show(report)
    console.note(f"stopped: {report['stopped']}; kept: round {report['best']}; see {output / 'report.md'}")
    if report["files"]:
        console.note(f"what round {report['best']} made: {', '.join(report['files'])}")


def _run(config: BreakfixConfig, output: Path) -> dict[str, Any]:
    """The cycle with a bar for each of its parts."""
    import contextlib

    from phial.cli import loading
    from phial.engine.language_model import open_language_model
    from phial.recipe.breakfix import Cycle
    from phial.recipe.breakfix_models import TunedModels

    models = TunedModels(config, loading.model_file(config.model))
    judge = open_language_model(_judge(config.judge), n_ctx=config.n_ctx) if config.judge else None
    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars or done == 1:
                stack.close()
                bars.clear()
                bars[what] = stack.enter_context(progress(what, total))
            bars[what](done, f"{what}: {done} of {total}")

        return Cycle(config, output, models, judge, console.note, show).run()


def _judge(name: str) -> str:
    from phial.cli import loading

    return name if name.startswith(("http://", "https://")) else str(loading.model_file(name))


def _tell(told: dict[str, int], as_json: bool) -> None:
    if as_json:
        console.write_json(told)
    else:
        console.write_table(["asked", "count"], [[name, str(count)] for name, count in told.items()], right=["count"])


def _show(report: dict[str, Any]) -> None:
    """A row a measure, a column a round."""
    from phial.recipe.breakfix_report import table

    heads = ["", "before", *(f"round {number}" for number in range(1, len(report["rounds"])))]
    console.write_table(heads, table(report["rounds"]), right=heads[1:])
