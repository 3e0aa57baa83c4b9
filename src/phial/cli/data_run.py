"""`phial data run`: all stages of a configuration, in order; what is finished is not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phial.cli import console, options

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; see docs/concepts/data.md.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the stages' folders go.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", help="Tasks at a time.")]
Executor = Annotated[str, typer.Option(metavar="NAME", help="local, ray or slurm.")]


def run(
    config: Config,
    output: Output,
    workers: Workers = 1,
    executor: Executor = "local",
    as_json: options.Json = False,
) -> None:
    """Make a corpus: run every stage of CONFIG, and the report at the end."""
    from phial.cli.data_stages import require_data, show_stages

    require_data()
    from phial.data.run import run_all

    stages = run_all(config, output, workers=workers, executor=executor)
    if as_json:
        console.write_json(stages)
    else:
        show_stages(stages)
        console.note(f"what was kept and dropped, and why: {output / 'report.html'}")
