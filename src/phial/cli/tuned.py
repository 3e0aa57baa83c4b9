"""What a command that tunes a model shows: which tokens it learns; at its end what was made, and how to run it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phial.cli import console

if TYPE_CHECKING:
    from phial.tokenizer.tokenizer import Tokenizer


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
