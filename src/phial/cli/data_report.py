"""`phial data report`: the page about a run, with its pictures and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phial.cli import console, options
from phial.cli.progress import progress


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as phial data run made it.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the page goes.", show_default="RUN/report.html"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write one HTML page about a run: what was dropped where and why, and what is left."""
    from phial.cli.data_stages import require_data

    require_data()
    from phial.data.report import write_report

    with progress("reading the run", 100, counted=False) as show:
        path = write_report(run, output, lambda done, of: show(100 * done // of, f"file {done} of {of}"))
    if as_json:
        console.write_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        console.write(f"{path}\n")
