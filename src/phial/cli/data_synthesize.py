"""`phial data synthesize`: textbooks, exercises, questions, dialogues and rewrites from a teacher, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options
from phial.cli.data_stages import named_files
from phial.cli.progress import progress
from phial.errors import ArgumentError

if TYPE_CHECKING:
    pass


def synthesize(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the documents; a stopped run goes on there.")
    ],
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="TOML file, table [synthesize]; options stand above it.")
    ] = None,
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="As --model of phial run, or an endpoint: https://host/v1#model.")
    ] = options.DEFAULT_MODEL,
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=N", help="N of textbook, exercise, python, qa, dialogue or rewrite; repeatable."),
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="ID", help="Of what this teacher writes, such as MIT.")] = None,
    topics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own topic tree.", show_default="the one built in")
    ] = None,
    rewrite: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Documents to rewrite, jsonl or jsonl.zst; repeatable.")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", "-b", metavar="NAME=FILES", help="Keep its questions out; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Decides what is asked.", show_default="0")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Of the teacher.", show_default="0.8")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Of an answer.", show_default="1024")
    ] = None,
    price_in: Annotated[float | None, typer.Option(metavar="X", help="Price of a million tokens asked.")] = None,
    price_out: Annotated[float | None, typer.Option(metavar="X", help="Price of a million tokens answered.")] = None,
    weak_sandbox: Annotated[
        bool, typer.Option("--weak-sandbox", help="Execute exercises even where the system cannot isolate them.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Requests at a time.")] = 1,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Have a teacher write texts on a grid of topics; keep what passes the checks."""
    given = {
        "requests": _requests(ask) if ask else None,
        "licence": licence,
        "topics": topics,
        "rewrite": rewrite or None,
        "benchmarks": [_benchmark(told) for told in benchmark] if benchmark else None,
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "price_in": price_in,
        "price_out": price_out,
        "weak_sandbox": weak_sandbox or None,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    report = _run(config, settings, output, teacher, workers, threads)
    if as_json:
        console.write_json(report)
    else:
        _show(report)
    console.note(f'as a source of phial data run: paths = ["{output / "kept"}"], synthetic = true')


def _run(
    config: Path | None, settings: dict[str, Any], output: Path, teacher: str, workers: int, threads: int | None
) -> dict[str, Any]:
    """The synthesis, its progress on stderr."""
    from phial.cli.data_stages import require_data

    require_data()
    from phial.data.synthesize import checked_config, load_config, plan, synthesize

    checked = checked_config((load_config(config) if config else {}) | settings)
    if workers > 1 and not loading.is_endpoint(teacher):
        raise ArgumentError(f"--workers {workers} with a model on this machine", "it answers one request at a time")
    total = len(plan(checked, teacher))  # a mistake in the configuration is told before the model is loaded
    with loading.language_model(teacher, threads) as model, progress("first answer", total) as show:
        try:
            return synthesize(checked, model, output, workers=workers, show=show)
        except KeyboardInterrupt:
            console.note(f"stopped; the same command goes on from {output}")
            raise


def _requests(asked: Sequence[str]) -> dict[str, int]:
    """{"qa": 20} of qa=20. Raises ArgumentError."""
    requests: dict[str, int] = {}
    for told in asked:
        kind, _, count = told.partition("=")
        if not count.isdecimal() or kind in requests:
            raise ArgumentError(f"--ask {told}", "KIND=N, each kind once, such as --ask qa=20")
        requests[kind] = int(count)
    return requests


def _benchmark(told: str) -> dict[str, Any]:
    """{"name", "files"} of NAME=FILES. Raises ArgumentError."""
    name, files = named_files(told)
    return {"name": name, "files": [files]}


def _show(report: dict[str, Any]) -> None:
    """A row a kind on stdout; the sums, and what was not looked for, on stderr."""
    heads = ["KIND", "ASKED", "KEPT", "%", "TOKENS IN", "OUT", "SECONDS", "DROPPED FOR"]
    rows = []
    for kind, row in report["by_kind"].items():
        numbers = [f"{row[name]:,}" for name in ("requests", "kept")]
        spent = [f"{row['tokens_in']:,}", f"{row['tokens_out']:,}", f"{row['seconds']:,.1f}"]
        reasons = sorted(row["dropped"].items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        rows.append([kind, *numbers, f"{100 * row['acceptance']:.0f}", *spent, told])
    console.write_table(heads, rows, right=heads[1:-1])
    price = "" if report["price"] is None else f", price {report['price']:,.4f}"
    console.note(f"{report['kept']:,} of {report['documents_in']:,} accepted{price}; teacher {report['teacher']}")
    if not report["decontaminated"]:
        console.note("no benchmark was given, so none was looked for: see --benchmark")
