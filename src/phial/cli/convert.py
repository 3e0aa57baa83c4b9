"""`phial convert`: a Hugging Face folder to a GGUF file, and back; which way, the source decides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from phial.cli import console
from phial.errors import ArgumentError


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Hugging Face folder, or a GGUF file (path or catalogue name).")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="GGUF file, or new folder, to write.")],
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="f32, f16, bf16, or q8_0 (GGUF only).",
            show_default="f16 for GGUF, f32 for a folder",
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option("--lora", metavar="PATH", help="Merge a LoRA adapter, a PEFT folder or GGUF file.")
    ] = None,
) -> None:
    """Convert a Hugging Face folder to a GGUF file, or a GGUF file to a folder."""
    from phial import hub
    from phial.gguf import convert as conversion

    if Path(source).is_dir():
        if target.is_dir():
            raise ArgumentError(f"{target} is a folder", f"name a file, as {target / 'model.gguf'}")
        notes = conversion.hf_to_gguf(source, target, type or "f16", _Progress(), adapter=lora)
        for note in notes:
            console.note(f"note: {note}")
    else:
        file = hub.resolve(source)
        if target.suffix.lower() == ".gguf":
            raise ArgumentError(
                f"of a file a folder is made, and {target} is named as a file",
                f"name {target.with_suffix('')}; then phial convert {target.with_suffix('')} {target}",
            )
        conversion.gguf_to_hf(file, target, type or "f32", _Progress(), adapter=lora)
    console.note(f"wrote {target}")


class _Progress:
    """Tensors done on stderr: one line that changes on a terminal, every tenth part otherwise."""

    def __init__(self) -> None:
        self._said = 0

    def __call__(self, name: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            line = console.one_line(f"{done}/{total} {name}")[:79]
            print(f"\r{line:<79}", end="" if done < total else "\n", file=sys.stderr, flush=True)
        elif total and done * 10 // total > self._said:
            self._said = done * 10 // total
            console.note(f"{done}/{total} tensors")
