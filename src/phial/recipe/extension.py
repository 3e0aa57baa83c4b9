"""Texts handed to LongRoPE, and what it makes as files: a Hugging Face folder, a GGUF file, pictures, a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from phial.errors import PhialError
from phial.gguf.convert import hf_to_gguf
from phial.gguf.open_tokenizer import open_tokenizer
from phial.manifest import write_json
from phial.train.longrope.extend import LongropeConfig, Result, Show, extend
from phial.train.longrope.pictures import draw_factors, draw_lengths

GGUF = "model.gguf"


def run_extension(
    model: Path,
    texts: Iterable[str],
    target: int,
    config: LongropeConfig,
    folder: Path,
    *,
    show: Show,
    workers: int = 0,
    type: str = "f16",
) -> dict[str, Any]:
    """Extend a Hugging Face folder's model; what report.json holds: paths, both lists, and a row a way and length.

    Args:
        texts: long ones.
        type: of the GGUF file.

    Raises PhialError as train.longrope.extend() and gguf.convert.hf_to_gguf().
    """
    if not model.is_dir():
        raise PhialError(f"{model} is no folder", "name a Hugging Face folder; phial convert makes one of a GGUF file")
    tokenizer = open_tokenizer(str(model)).tokenizer

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_bos=False)

    documents = [encode(text) for text in texts]
    result = extend(model, documents, encode, target, config, folder, show=show, workers=workers)
    if not (folder / GGUF).exists():
        hf_to_gguf(result.folder, folder / GGUF, type)
    _draw(result, folder)
    report = {
        "model": str(result.folder),
        "gguf": str(folder / GGUF),
        "original": result.config.rope_original_context,
        "target": target,
        "attn_factor": result.config.rope_attn_factor,
        "long": result.config.rope_long_factors,
        "short": result.config.rope_short_factors,
        "curve": result.curve,
        "rows": result.rows,
    }
    write_json(folder / "report.json", report)
    return report


def _draw(result: Result, folder: Path) -> None:
    config = result.config
    long, short = config.rope_long_factors or (), config.rope_short_factors or ()
    lists = {**result.seeds, "found": long, "short list": short}
    original = config.rope_original_context
    draw_factors(lists, folder / "factors.png", f"factors from {original} to {config.n_ctx_train} tokens")
    draw_lengths(
        result.rows, original, folder / "lengths.png", f"a model of {original} tokens at up to {config.n_ctx_train}"
    )
