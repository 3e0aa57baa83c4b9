"""`phial data vocabulary`: train a tokenizer on text, for those who start from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phial.cli import console, options

Files = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="UTF-8 texts, .jsonl.zst documents, folders, or a stage.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The new Hugging Face folder.")]
Size = Annotated[int, typer.Option("--size", metavar="N", help="Tokens, special ones among them.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="NAME", help="byte-level or byte-fallback.")]
Pre = Annotated[str, typer.Option("--pre", metavar="NAME", help="How a byte-level vocabulary cuts words.")]


def vocabulary(
    paths: Files,
    output: Output,
    size: Size = 32_000,
    kind: KindOption = "byte-level",
    pre: Pre = "qwen2",
    as_json: options.Json = False,
) -> None:
    """Train a vocabulary on text and write it as a Hugging Face tokenizer folder."""
    from phial.cli.data_stages import require_data

    require_data()
    from phial.data.vocabulary import texts_of, write_vocabulary

    metadata = write_vocabulary(texts_of(paths), size, output, kind, pre=pre)  # type: ignore[arg-type]
    count = len(metadata["tokenizer.ggml.tokens"])
    if as_json:
        console.write_json({"folder": str(output), "kind": kind, "tokens": count})
    else:
        console.write(f"{output}: {count} tokens, {kind}\n")
