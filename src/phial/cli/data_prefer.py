"""`phial data prefer`: preference pairs from files, from templates, and from a model's own answers, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options
from phial.cli.progress import progress
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.data.preference import PreferConfig
    from phial.data.preference_prompts import Pair, Prompt


def prefer(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file, table [prefer]; see the guide.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the pairs; a stopped run goes on there.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", help="That answers: as of phial run, or https://host/v1#model."),
    ] = options.DEFAULT_MODEL,
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL", help="That ranks the answers beside the checks.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="HALF", help="Of the templates: train or held_out.", show_default="train")
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Answers to a prompt.", show_default="4")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Of them.", show_default="0.9")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of prompts and answers.", show_default="0")] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Requests at a time.")] = 1,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Sample answers, rank them by checks or a judge, and write best against worst as pairs."""
    given = {"split": split, "samples": samples, "temperature": temperature, "seed": seed}
    settings = _settings(config, {name: value for name, value in given.items() if value is not None})
    if workers > 1 and not all(loading.is_endpoint(name) for name in (model, judge or model)):
        raise ArgumentError(f"--workers {workers} with a model on this machine", "it answers one request at a time")
    rows, pairs = _rows(settings.prompts), _pairs(settings.pairs)
    with console.resumable(output):
        report = _run(settings, output, model, judge, rows, pairs, workers, threads)
    if as_json:
        console.write_json(report)
    else:
        _show(report)
    console.note(f"the pairs: {output / 'pairs.jsonl'}; for phial train dpo")


def _settings(path: Path, above: dict[str, Any]) -> PreferConfig:
    """The file's table [prefer], or the whole file where it has none; paths in it are relative to its folder."""
    from phial.cli.data_stages import require_data

    require_data()
    from phial.config_file import checked, read_toml
    from phial.data.preference import PreferConfig

    tables = read_toml(path)
    table: Any = tables.get("prefer", tables)
    if not isinstance(table, dict):
        raise ArgumentError(f"{path}: prefer is {table!r}", "it is a table")
    for name in ("prompts", "pairs"):
        if isinstance(table.get(name), list):
            table[name] = [path.parent / str(file) for file in table[name]]
    listed = table.get("benchmarks")
    for benchmark in listed if isinstance(listed, list) else ():
        if isinstance(benchmark, dict) and isinstance(benchmark.get("files"), list):
            benchmark["files"] = [str(path.parent / str(file)) for file in benchmark["files"]]
    return checked(PreferConfig, table | above, str(path))


def _rows(paths: Sequence[Path]) -> list[Prompt]:
    from phial.data.preference_prompts import prompt_of
    from phial.train.rows import read_rows

    return [prompt_of(row.value, row.where) for path in paths for row in read_rows(path)]


def _pairs(paths: Sequence[Path]) -> list[Pair]:
    if not paths:
        return []
    from phial.data.preference_prompts import Pair
    from phial.train.pairs import read_pairs

    found = []
    for one in read_pairs(paths):
        if one.chosen[:-1] != one.rejected[:-1] or not one.chosen[:-1]:
            raise ArgumentError(f"{one.where}: {one.fault}", "a pair is two answers to one conversation")
        about = {"kind": "given", "source": one.where}
        found.append(Pair(_plain(one.chosen[:-1]), _plain(one.chosen[-1:]), _plain(one.rejected[-1:]), about))
    return found


def _plain(messages: Sequence[Any]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"] or ""} for message in messages]


def _run(
    config: PreferConfig,
    output: Path,
    model: str,
    judge: str | None,
    rows: list[Prompt],
    pairs: list[Pair],
    workers: int,
    threads: int | None,
) -> dict[str, Any]:
    """The run, its progress on stderr."""
    from contextlib import ExitStack

    from phial.data.preference import plan, prefer

    prompts, _ = plan(config, rows, judged=judge is not None)  # a mistake is told before a model is loaded
    total = len(prompts) * ((config.samples > 0) + (judge is not None)) or 1
    with ExitStack() as stack:
        asked = stack.enter_context(loading.language_model(model, threads)) if prompts and config.samples else None
        same = judge == model
        judging = asked if same else stack.enter_context(loading.language_model(judge, threads)) if judge else None
        show = stack.enter_context(progress("first answer", total))
        names = (_digest(model) if asked else "", _digest(judge) if judge else "")
        return prefer(
            config,
            output,
            model=asked,
            judge=judging,
            rows=rows,
            pairs=pairs,
            names=names,
            workers=workers,
            show=show,
        )


def _digest(model: str) -> str:
    """What tells models apart in the journal: of a file its bytes, since tuned ones are often called the same."""
    from phial.manifest import sha256_of

    return model if loading.is_endpoint(model) else sha256_of(loading.model_file(model))


def _show(report: dict[str, Any]) -> None:
    """A row a kind of prompt on stdout; the judge's bias on stderr."""
    heads = ["KIND", "PROMPTS", "ANSWERS", "PASSED %", "PAIRS", "NO PAIR FOR"]
    rows = []
    for kind, row in report["by_kind"].items():
        share = "" if row["passed_share"] is None else f"{100 * row['passed_share']:.0f}"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in row["no_pair"].items())
        rows.append([kind, f"{row['prompts']:,}", f"{row['answers']:,}", share, f"{row['pairs']:,}", reasons])
    console.write_table(heads, rows, right=heads[1:-1])
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in report["prompts_left_out"].items())
    console.note(f"{report['pairs']:,} pairs and {report['chats']:,} chats" + (left_out and f"; left out: {left_out}"))
    if (position := report["position"]) and position["first_place"] is not None:
        low, high = (100 * end for end in position["first_place_interval"])
        biased = "prefers a place" if position["position_bias"] else "no bias for a place shown"
        agreed = position["agreement_of_orders"]
        told = "" if agreed is None else f", both orders agree in {100 * agreed:.0f} %"
        first = 100 * position["first_place"]
        console.note(f"the judge chose the first place in {first:.0f} % ({low:.0f} to {high:.0f}){told}: {biased}")
    if not report["decontaminated"]:
        console.note("no benchmark was given, so none was looked for")
