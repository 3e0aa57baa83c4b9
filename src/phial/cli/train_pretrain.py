"""`phial train pretrain`: a new model from token shards, phase by phase; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; see docs/guides/make-a-model.md.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the run; the model goes to model/.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=0, help="Processes that read ahead.")]


def pretrain(config: Config, output: Output, workers: Workers = 0, as_json: options.Json = False) -> None:
    """Train a new model from token shards, in phases. The same command goes on where a run was stopped."""
    require("train", "train a model")
    from phial.recipe.pretraining import run_pretraining
    from phial.train.pretrain import read_pretrain

    settings = read_pretrain(config)
    with console.resumable(output):
        result = run_pretraining(settings, output, console.note, workers=workers)
    if not console.speaks():
        return
    if as_json:
        console.write_json(result)
    else:
        show_losses(result["metrics"])
    console.note(f"the model: {result['model']}; for phial run: phial convert {result['model']} model.gguf")


def show_losses(metrics: dict[str, Any]) -> None:
    """A row for each validation source, the whole last; the training loss where there is no validation."""
    names = [name.removesuffix("/perplexity") for name in metrics if name.endswith("/perplexity")]
    if not names:
        console.write_table(["", "loss"], [["training", f"{metrics['loss']:.4f}"]], right=["loss"])
        return
    rows = [[n, f"{metrics[f'{n}/loss']:.4f}", f"{metrics[f'{n}/perplexity']:.2f}"] for n in names]
    console.write_table(["validation", "loss", "perplexity"], rows, right=["loss", "perplexity"])
