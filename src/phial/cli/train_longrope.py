"""`phial train longrope`: a model of a short context becomes one of a long context; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require
from phial.cli.progress import progress

if TYPE_CHECKING:
    from phial.train.longrope.extend import LongropeConfig

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Hugging Face folder of a phi3 or llama model.")]
Target = Annotated[int, typer.Option("--target", "-t", metavar="N", help="Tokens of the new context.")]
Texts = Annotated[
    list[Path],
    typer.Option("--texts", metavar="PATH", help="Long texts, may be repeated: UTF-8, .jsonl.zst, folders, a stage."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML file; see docs/concepts/long-context.md."),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the run; the model: model/ and model.gguf.")
]
Type = Annotated[str, typer.Option("--type", metavar="TYPE", help="Of the GGUF file: f32, f16, bf16 or q8_0.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=0, help="Processes that read ahead.")]


def longrope(
    model: Model,
    target: Target,
    texts: Texts,
    output: Output,
    config: Config = None,
    type: Type = "f16",
    workers: Workers = 0,
    as_json: options.Json = False,
) -> None:
    """Extend a context by LongRoPE. Search the factors, tune if configured, write the model with both lists."""
    require("train", "extend a model")
    require("data", "read texts")
    from phial.config_file import read_config
    from phial.data.vocabulary import texts_of
    from phial.recipe.extension import run_extension
    from phial.train.longrope.extend import LongropeConfig

    settings = LongropeConfig() if config is None else read_config(config, LongropeConfig)
    with console.resumable(output):
        report = _run(model, texts_of(texts), target, settings, output, workers, type, run_extension)
    if as_json:
        console.write_json(report)
    else:
        _show(report)
    console.note(f"the model: {report['model']} and {report['gguf']}; pictures: factors.png, lengths.png in {output}")


def _run(
    model: Path,
    texts: Any,
    target: int,
    config: LongropeConfig,
    output: Path,
    workers: int,
    type: str,
    run_extension: Any,
) -> Any:
    """The run with a bar for each stage."""
    import contextlib

    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, text: str) -> None:
            if stage not in bars:
                stack.close()
                bars[stage] = stack.enter_context(progress(stage, total))
            bars[stage](done, f"{stage}: {text}")

        return run_extension(model, texts, target, config, output, show=show, workers=workers, type=type)


def _show(report: dict[str, Any]) -> None:
    """A row a way, perplexity and passkeys by length."""
    rows = report["rows"]
    lengths = sorted({row["length"] for row in rows})
    passkeys = any(row["found"] is not None for row in rows)
    ways = list(dict.fromkeys(row["way"] for row in rows))
    cells = {(row["way"], row["length"]): row for row in rows}
    table = []
    for way in ways:
        mine = [cells[way, length] for length in lengths]
        found = ["" if row["found"] is None else f"{100 * row['found']:.0f}" for row in mine] if passkeys else []
        table.append([way, *(f"{row['perplexity']:.2f}" for row in mine), *found])
    titles = [f"ppl {length}" for length in lengths]
    titles += [f"found {length}, %" for length in lengths] if passkeys else []
    console.write_table(["way", *titles], table, right=titles)
