"""`phial train sft`: fine-tuning on chats, the loss on the answers alone; a stopped run goes on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require
from phial.cli.tuned import Config, Model, Output, Workers, model_path, say_made, settings_of, write_learnt
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.train.sft import SftConfig
    from phial.train.start import Start

Data = Annotated[
    list[Path], typer.Argument(metavar="DATA...", help="Chats: .jsonl, .json (.gz, .zst) or .parquet; see the guide.")
]
Validation = Annotated[
    list[Path] | None, typer.Option("--validation", metavar="PATH", help="Chats held out, to measure on; repeatable.")
]
ShowMasks = Annotated[
    bool, typer.Option("--show-masks", metavar="", help="Show the first chats, what is learnt marked; train nothing.")
]
_SHOWN = 4


def sft(
    model: Model,
    data: Data,
    output: Output = None,
    config: Config = None,
    validation: Validation = None,
    template: options.Template = None,
    workers: Workers = 0,
    show_masks: ShowMasks = False,
    as_json: options.Json = False,
) -> None:
    """Tune a model on chats. The same command goes on where a run was stopped."""
    require("train", "tune a model")
    from phial.train.sft import SftConfig
    from phial.train.start import open_start

    settings = settings_of(SftConfig, config, template)
    if show_masks:
        output = None
    elif output is None:
        raise ArgumentError("there is no folder for the run", "name a new one with --output, or look with --show-masks")
    seed = settings.loop.seed
    start = open_start(
        model_path(model), template=settings.template, weights=not show_masks, lora=settings.lora, seed=seed
    )
    for text in start.notes:
        console.note(f"note: {text}")
    if output is None:
        _preview(start, data, settings, as_json)
        return
    with console.resumable(output):
        result = _run(settings, start, data, validation or [], output, workers)
    if not console.speaks():
        return
    if as_json:
        console.write_json(result)
    else:
        _show(result)
    say_made(model, result, settings.template)


def _run(
    settings: SftConfig, start: Start, data: list[Path], validation: list[Path], output: Path, workers: int
) -> dict[str, Any]:
    from phial.train.chats import read_chats
    from phial.train.parallel import torchrun_processes
    from phial.train.sft import sft as tune

    with torchrun_processes() as processes:
        held = {name: read_chats([path]) for name, path in _sources(validation).items()}
        return tune(settings, start, read_chats(data), held, output, console.note, workers=workers, processes=processes)


def _sources(validation: list[Path]) -> dict[str, Path]:
    """Files by the names that measurements go by: without folders and endings where that tells them apart."""
    short = [path.name.partition(".")[0] for path in validation]
    distinct = len(set(short)) == len(short) and all(short)
    return dict(zip(short if distinct else map(str, validation), validation, strict=True))


def _show(result: dict[str, Any]) -> None:
    """The loss of held-out answers before and after, by source and of all; where none are, that of the last step."""
    before, after = result["before"], result["after"]
    if not before:
        console.write_table(["", "loss"], [["training, last step", f"{after['loss']:.4f}"]], right=["loss"])
        return
    rows = []
    for name in (name for name in before if name.endswith("/loss")):
        source = name.removesuffix("/loss")
        pairs = (("/loss", ".4f"), ("/perplexity", ".2f"))
        values = [f"{when[source + what]:{form}}" for what, form in pairs for when in (before, after)]
        rows.append([source.removeprefix("validation/") if "/" in source else "all", *values])
    titles = ["loss before", "after", "perplexity before", "after"]
    console.write_table(["held-out answers", *titles], rows, right=titles)


def _preview(start: Start, data: list[Path], settings: SftConfig, as_json: bool) -> None:
    """The first chats with what is learnt marked, then what all of them come to."""
    from phial.train.chats import read_chats
    from phial.train.sft import encode_chat, encode_chats, say, sequence_of

    shown = []
    for chat in itertools.islice(read_chats(data), _SHOWN):
        found = encode_chat(chat, start, settings)
        shown.append({"where": chat.where, "ids": found.ids, "answered": found.answered})
        if not as_json:
            console.note(f"{chat.where}: {len(found.ids)} tokens, {sum(found.answered)} with loss")
            write_learnt(found.ids, found.answered, start.tokenizer)
    encoded = encode_chats(read_chats(data), start, settings)
    if as_json:
        console.write_json({"chats": shown, "data": encoded.report()})
    say(encoded, "all", sequence_of(settings, start), console.note)
