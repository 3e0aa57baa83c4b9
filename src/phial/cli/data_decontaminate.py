"""`phial data decontaminate`: a stage's documents without those that hold questions of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phial.cli import console, options
from phial.cli.data_dedup import Folder, Output, Workers
from phial.cli.data_stages import named_files

if TYPE_CHECKING:
    from phial.data.benchmarks import Benchmark


def decontaminate(
    folder: Folder,
    output: Output,
    benchmark: Annotated[
        list[str],
        typer.Option("--benchmark", "-b", metavar="NAME=FILES", help="jsonl, json, csv or txt, a glob; repeatable."),
    ],
    coverage: Annotated[
        float, typer.Option(metavar="SHARE", min=0.01, max=1, help="Share of a question's words that is a leak.")
    ] = 0.5,
    common: Annotated[
        int, typer.Option(metavar="N", min=1, help="n-grams in more documents than this tell no question apart.")
    ] = 10,
    workers: Workers = 1,
    as_json: options.Json = False,
) -> None:
    """Drop documents that hold benchmark questions, also lightly changed; each names the question."""
    from phial.cli.data_stages import require_data, show_stages

    require_data()
    from phial.data.decontaminate import DecontaminateConfig, benchmark_digests, decontaminate_stage
    from phial.data.pipeline import Machines, digest_of, run_stage
    from phial.data.stage import StageReader, kept_files

    files = kept_files(folder)
    benchmarks = tuple(map(_benchmark, benchmark))
    config = DecontaminateConfig(benchmarks=benchmarks, coverage=coverage, common_documents=common)
    result = run_stage(
        output,
        "decontaminate",
        decontaminate_stage(config, output / "work", len(files)),
        StageReader(folder),
        inputs={"documents": digest_of(files), **benchmark_digests(config)},
        config=config.model_dump(mode="json"),
        machines=Machines(workers=workers),
    )
    _tell_unmatched(output / "work")
    if as_json:
        console.write_json(result)
    else:
        show_stages([result])


def _benchmark(told: str) -> Benchmark:
    from phial.data.benchmarks import Benchmark

    name, files = named_files(told)
    return Benchmark(name=name, files=(files,))


def _tell_unmatched(work: Path) -> None:
    """Says how many questions no text can be found to hold, and the first of them."""
    from phial.data.question_index import Index

    index = Index.load(work / "index.npz")
    if index.unmatched:
        console.note(
            f"{len(index.unmatched)} of {len(index.unmatched) + len(index.labels)} questions are too short or too "
            f"common to be found: {', '.join(index.unmatched[:5])}"
        )
