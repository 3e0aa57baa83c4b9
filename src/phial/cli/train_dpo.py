"""`phial train dpo`: preference tuning on pairs of answers; a stopped run goes on."""

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
    from phial.train.dpo import DpoConfig
    from phial.train.start import Start

Data = Annotated[
    list[Path], typer.Argument(metavar="PAIRS...", help="Pairs: .jsonl, .json (.gz, .zst) or .parquet; see the guide.")
]
Validation = Annotated[
    list[Path] | None, typer.Option("--validation", metavar="PATH", help="Pairs held out, to measure on; repeatable.")
]
Chats = Annotated[
    list[Path] | None, typer.Option("--chats", metavar="PATH", help="Chats learnt beside the pairs; repeatable.")
]
ShowPairs = Annotated[
    bool, typer.Option("--show-pairs", metavar="", help="Show the first pairs, what is learnt marked; train nothing.")
]
_SHOWN = 3


def dpo(
    model: Model,
    data: Data,
    output: Output = None,
    config: Config = None,
    validation: Validation = None,
    chats: Chats = None,
    template: options.Template = None,
    workers: Workers = 0,
    show_pairs: ShowPairs = False,
    as_json: options.Json = False,
) -> None:
    """Tune a model on pairs of answers, one preferred. The same command goes on where a run was stopped."""
    require("train", "tune a model")
    from phial.train.dpo import DpoConfig
    from phial.train.start import open_start

    settings = settings_of(DpoConfig, config, template)
    if show_pairs:
        output = None
    elif output is None:
        raise ArgumentError("there is no folder for the run", "name a new one with --output, or look with --show-pairs")
    seed = settings.loop.seed
    path = model_path(model)
    start = open_start(path, template=settings.template, weights=not show_pairs, lora=settings.lora, seed=seed)
    for text in start.notes:
        console.note(f"note: {text}")
    if output is None:
        _preview(start, data, settings, as_json)
        return
    with console.resumable(output):
        result = _run(settings, start, data, validation or [], chats or [], output, workers)
    if not console.speaks():
        return
    if as_json:
        console.write_json(result)
    else:
        _show(result)
    say_made(model, result, settings.template)


def _run(
    settings: DpoConfig,
    start: Start,
    data: list[Path],
    validation: list[Path],
    chats: list[Path],
    output: Path,
    workers: int,
) -> dict[str, Any]:
    from phial.train.chats import read_chats
    from phial.train.dpo import dpo as tune
    from phial.train.pairs import read_pairs
    from phial.train.parallel import torchrun_processes

    with torchrun_processes() as processes:
        held, beside = read_pairs(validation), read_chats(chats)
        return tune(
            settings, start, read_pairs(data), held, output, console.note, chats=beside, workers=workers,
            processes=processes,
        )  # fmt: skip


def _show(result: dict[str, Any]) -> None:
    """Loss, accuracy and margin of held-out pairs before and after, else those of the last step."""
    names = {"loss": "loss", "accuracy": "rewards/accuracy", "margin": "rewards/margin", "kl": "kl"}
    before, after = result["before"], result["after"]
    if before:
        names = {short: f"validation/{name}" for short, name in names.items()}
        found = {"before": before, "after": after}
    else:
        found = {"training, last step": after}
    rows = [[when, *(f"{values[name]:.4f}" for name in names.values())] for when, values in found.items()]
    console.write_table(["held-out pairs" if before else "", *names], rows, right=list(names))


def _preview(start: Start, data: list[Path], settings: DpoConfig, as_json: bool) -> None:
    """The first pairs with what is learnt marked, then what all of them come to."""
    from phial.train.dpo import encoded_pairs, say_pairs
    from phial.train.pair_encoding import encode_side
    from phial.train.pairs import read_pairs

    shown = []
    for pair in itertools.islice((pair for pair in read_pairs(data) if not pair.fault), _SHOWN):
        for name, messages in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            side = encode_side(messages, start, settings.date)
            shown.append({"where": pair.where, "side": name, "ids": side.ids, "answered": side.answered})
            if not as_json:
                console.note(f"{pair.where}, {name}: {len(side.ids)} tokens, {sum(side.answered)} of the answer")
                write_learnt(side.ids, side.answered, start.tokenizer)
    encoded = encoded_pairs(read_pairs(data), start, settings)
    if as_json:
        console.write_json({"sides": shown, "data": encoded.report()})
    say_pairs(encoded, "all", console.note)
