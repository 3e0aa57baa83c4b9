"""What the commands that tune a model share: their options, which tokens are learnt, and how to run what was made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from phial.cli import console

if TYPE_CHECKING:
    from pydantic import BaseModel

    from phial.tokenizer.tokenizer import Tokenizer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hugging Face folder, run, or GGUF file (path or catalogue name).")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Of the run; model/ or adapter/ is what it makes."),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML; see docs/guides/align.md.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=0, help="Processes that read ahead.")]
Settings = TypeVar("Settings", bound="BaseModel")


def model_path(model: str) -> Path:
    """A folder as it is named, or the file of a model."""
    from phial.cli import loading

    return Path(model) if Path(model).is_dir() else loading.model_file(model)


def settings_of(kind: type[Settings], config: Path | None, template: str | None = None) -> Settings:
    """The configuration in a file, or that of no file; a template named on the command line goes before its own."""
    from phial.config_file import read_config

    settings = kind() if config is None else read_config(config, kind)
    return settings if template is None else settings.model_copy(update={"template": template})


def say_made(model: str, result: Mapping[str, Any], template: str | None = None) -> None:
    """Name the adapter or the model that a run has made, and how to run it.

    Args:
        model: what was tuned, as it was named.
        template: a built-in one it was tuned with, which an adapter cannot carry.
    """
    if adapter := result.get("adapter"):
        file = model
        if Path(model).is_dir():
            file = "base.gguf"
            console.note(f"the base as a file: phial convert {model} {file}")
        flag = "" if template is None else f" --template {template}"
        console.note(f"the adapter: {adapter}; to run it: phial run -m {file} --lora {adapter}{flag}")
    if made := result.get("model"):
        console.note(f"the model: {made}; for phial run: phial convert {made} model.gguf")


def write_learnt(ids: Sequence[int], answered: Sequence[bool], tokenizer: Tokenizer) -> None:
    """Print tokens, those that are learnt in green on a terminal with colours, else in brackets ⟦ ⟧."""
    from rich.console import Console
    from rich.text import Text

    parts = list(_parts(ids, answered, tokenizer))
    out = Console(highlight=False, soft_wrap=True)
    coloured = out.is_terminal and out.color_system is not None and not out.no_color
    if not coloured:
        console.write("".join(f"⟦{text}⟧" if learnt else text for text, learnt in parts).rstrip("\n") + "\n\n")
        return
    shown = Text()
    for text, learnt in parts:
        shown.append(console.printable(text), style="bold green" if learnt else "dim")
    out.print(shown, end="\n\n")


def _parts(ids: Sequence[int], answered: Sequence[bool], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Runs of tokens as text, with whether they are learnt."""
    for learnt, run in itertools.groupby(zip(ids, answered, strict=True), key=lambda pair: pair[1]):
        yield b"".join(tokenizer.token_bytes(i) for i, _ in run).decode("utf-8", "replace"), learnt
