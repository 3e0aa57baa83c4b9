"""`phial train embed`: a decoder into an embedder, by contrast of texts; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require
from phial.cli.tuned import Config, Model, Workers, model_path, settings_of

if TYPE_CHECKING:
    from phial.eval.embeddings import HeldOut
    from phial.train.embed import EmbedConfig

Data = Annotated[
    list[Path], typer.Argument(metavar="DATA...", help="Pairs or texts: .jsonl, .json (.gz, .zst) or .parquet.")
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the run; what is made goes to model/ or adapter/.")
]
Validation = Annotated[
    list[Path] | None,
    typer.Option("--validation", metavar="PATH", help="Pairs held out, with or without scores; repeatable."),
]


def embed(
    model: Model,
    data: Data,
    output: Output,
    config: Config = None,
    validation: Validation = None,
    workers: Workers = 0,
    as_json: options.Json = False,
) -> None:
    """Tune a model to embed texts. The same command goes on where a run was stopped."""
    require("train", "tune a model")
    from phial.train.embed import EmbedConfig

    settings = settings_of(EmbedConfig, config)
    held = _held_out(validation or [])
    with console.resumable(output):
        result = _run(settings, model, data, held, output, workers)
    if not console.speaks():
        return
    if held is not None:
        result |= _compared(held)
    if as_json:
        console.write_json(result)
    else:
        _show(result)
    _say_how(settings, model, result)


def _held_out(validation: list[Path]) -> HeldOut | None:
    from phial.eval.embeddings import HeldOut
    from phial.train.text_pairs import read_held_out

    if not validation:
        return None
    pairs, scored = read_held_out(validation)
    return HeldOut.of([pair[:3] for pair in pairs], [pair[:3] for pair in scored])


def _run(
    settings: EmbedConfig, model: str, data: list[Path], held: HeldOut | None, output: Path, workers: int
) -> dict[str, Any]:
    from phial.train.embed import embed as tune
    from phial.train.parallel import torchrun_processes
    from phial.train.start import open_start
    from phial.train.text_pairs import read_pairs

    start = open_start(
        model_path(model),
        lora=settings.lora,
        seed=settings.loop.seed,
        causal=False if settings.bidirectional else None,
        chat=False,
    )
    for text in start.notes:
        console.note(f"note: {text}")
    with torchrun_processes() as processes:
        pairs = read_pairs(data)
        return tune(settings, start, pairs, output, console.note, measure=held, workers=workers, processes=processes)


def _compared(held: HeldOut) -> dict[str, Any]:
    """Before, after and the gain, each with its interval, and what was measured on."""
    from phial.eval.embeddings import gains, intervals, rounded

    before, after = held.measured[0], held.measured[-1]
    counts = {"queries": len(held.queries), "documents": len(held.documents), "graded": len(held.graded)}
    measures = {"before": intervals(before), "after": intervals(after), "gain": gains(before, after)}
    return {"held_out": {**counts, **{name: rounded(found) for name, found in measures.items()}}}


def _show(result: dict[str, Any]) -> None:
    """The measures before and after with their intervals, else the loss of the last step."""
    found = result.get("held_out")
    if found is None:
        loss = f"{result['after']['loss']:.4f}"
        console.write_table(["", "loss"], [["training, last step", loss]], right=["loss"])
        return
    rows = []
    for name in found["before"]:
        form = "{:.1f}" if name == "spearman" else "{:.3f}"
        cells = [[form.format(value) for value in found[column][name]] for column in ("before", "after", "gain")]
        rows.append([name, *(f"{value} ({low} to {high})" for value, low, high in cells)])
    what = f"{found['queries']:,} queries, {found['documents']:,} documents, {found['graded']:,} graded pairs"
    titles = ["before", "after", "gain"]
    console.write_table([what, *titles], rows, right=titles)


def _say_how(settings: EmbedConfig, model: str, result: dict[str, Any]) -> None:
    """What was made and how to embed with it: the pooling where no file can say it, and the prefixes."""
    numbers = {"mean": 1, "first": 2, "last": 3}
    if made := result.get("model"):
        console.note(
            f"the model: {made}; phial convert {made} model.gguf; Llama('model.gguf', embedding=True).embed(text)"
        )
    if adapter := result.get("adapter"):
        options = f"lora_path={adapter!r}, embedding=True, pooling_type={numbers[settings.pooling]}"
        console.note(f"the adapter: {adapter}; Llama(the file of {model}, {options}).embed(text)")
    for side, prefix in settings.prefixes.items():
        if prefix:
            console.note(f"each {side} begins with {prefix!r}, which Llama.embed does not add")
