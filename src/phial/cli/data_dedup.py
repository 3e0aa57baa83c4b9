"""`phial data dedup`: a stage's documents without duplicates, exact and near."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phial.cli import options

Folder = Annotated[Path, typer.Argument(metavar="STAGE", help="Folder of a finished stage, such as 02-clean.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The new stage's folder.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Tasks at a time.")]


def dedup(
    folder: Folder,
    output: Output,
    threshold: Annotated[
        float, typer.Option(metavar="J", min=0.01, max=1, help="Jaccard similarity from which texts are alike.")
    ] = 0.7,
    ngram: Annotated[int, typer.Option(metavar="N", min=1, help="Words in a shingle.")] = 5,
    near: Annotated[bool, typer.Option("--near/--exact", help="Near duplicates too, or exact ones only.")] = True,
    sources: Annotated[
        str, typer.Option(metavar="A,B,...", help="Sources, those to keep first.", show_default="by name")
    ] = "",
    memory: Annotated[int, typer.Option(metavar="MB", min=1, help="Memory for the keys of one band.")] = 512,
    workers: Workers = 1,
    as_json: options.Json = False,
) -> None:
    """Drop documents that are, or nearly are, another one; each names the one that is kept."""
    from phial.cli.data_stages import require_data, show_stages

    require_data()
    from phial.data.dedup import DedupConfig, dedup_stage
    from phial.data.pipeline import Machines, digest_of, run_stage
    from phial.data.stage import StageReader, kept_files

    files = kept_files(folder)
    config = DedupConfig(threshold=threshold, ngram=ngram, near=near, memory_mb=memory)
    order = _order(folder, sources)
    result = run_stage(
        output,
        "dedup",
        dedup_stage(config, output / "work", len(files), order),
        StageReader(folder),
        inputs={"documents": digest_of(files)},
        config={**config.model_dump(mode="json"), "sources": order},
        machines=Machines(workers=workers),
    )
    if as_json:
        from phial.cli import console

        console.write_json(result)
    else:
        show_stages([result])


def _order(folder: Path, wanted: str) -> list[str]:
    """The stage's sources: those wanted first, then the others by name."""
    import json

    from phial.data.stage import STAGE
    from phial.errors import ArgumentError

    present = sorted(json.loads((folder / STAGE).read_text("utf-8"))["by_source"])
    first = [name.strip() for name in wanted.split(",") if name.strip()]
    if unknown := [name for name in first if name not in present]:
        raise ArgumentError(f"no source is {', '.join(unknown)}", f"sources of {folder}: {', '.join(present)}")
    return [*dict.fromkeys(first), *(name for name in present if name not in first)]
