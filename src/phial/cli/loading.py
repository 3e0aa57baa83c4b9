"""From the model a person names to an open engine or tokenizer, fetched on first use, with word on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.config import ModelConfig
    from phial.engine.adapters import LoadedAdapter
    from phial.engine.engine import Engine
    from phial.language_model import LanguageModel
    from phial.tokenizer.tokenizer import Tokenizer

_USUAL_CONTEXT = 4096  # enough for a chat; a 128k context would let one runaway answer fill the memory


def model_file(model: str) -> Path:
    """The file of a catalogue name, hf:owner/repo/file.gguf or path; what is not here yet is fetched."""
    from phial import hub

    return hub.resolve(model, download=True)


def engine(
    model: str,
    threads: int | None,
    cache_type: str,
    kernels: str | None = None,
    *,
    keep_prefixes: bool = True,
    on_disk: bool = False,
    rope_switch: str = "reprefill",
) -> Engine:
    """Opens the model; a terminal sees that it is loading, for as long as that lasts.

    keep_prefixes: hold what was computed for texts that begin alike; False where none will.
    on_disk: for later commands too, unless PHIAL_PREFIX_CACHE says otherwise.
    """
    disk_bytes = _disk_bytes() if on_disk else 0
    path = model_file(model)
    from phial.engine.engine import PREFIX_BYTES, Engine
    from phial.hub import home

    prefix_bytes = PREFIX_BYTES if keep_prefixes else 0

    shown = sys.stderr.isatty()
    if shown:
        print(f"loading {path.name} …", end="", file=sys.stderr, flush=True)
    try:
        return Engine.open(
            path,
            n_threads=threads,
            cache_type=cache_type,
            kernels=kernels,
            prefix_bytes=prefix_bytes,
            prefix_dir=home() / "prefixes" if disk_bytes else None,
            prefix_dir_bytes=disk_bytes,
            rope_switch=rope_switch,
        )
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _disk_bytes() -> int:
    """PHIAL_PREFIX_CACHE in bytes: a number, of KiB, MiB or GiB where K, M or G follows; 1G where it is not set."""
    text = os.environ.get("PHIAL_PREFIX_CACHE") or "1G"
    number = re.fullmatch(r"(\d{1,12})([KMG]?)", text, re.ASCII | re.IGNORECASE)
    if number is None:
        raise ArgumentError(f"PHIAL_PREFIX_CACHE is {text!r}", "a size such as 500M or 2G; 0 keeps nothing on disk")
    return int(number[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[number[2].upper()]


def adapters(engine: Engine, named: Sequence[str] | None) -> list[tuple[LoadedAdapter, float]]:
    """Loads what --lora names: PATH, or PATH:SCALE where nothing is called that and the scale is a number."""
    chosen = []
    for text in named or ():
        path, scale = text, 1.0
        if ":" in text and not Path(text).exists():
            with contextlib.suppress(ValueError):
                scale, path = float(text.rpartition(":")[2]), text.rpartition(":")[0]
        if not path:
            raise ArgumentError(f"--lora {text!r} names no adapter", "for instance --lora adapter/:0.5")
        chosen.append((engine.load_adapter(Path(path).expanduser()), scale))
    return chosen


def tokenizer(model: str) -> Tokenizer:
    """The model's tokenizer alone, without its weights."""
    from phial.gguf.container import read_gguf
    from phial.tokenizer.tokenizer import Tokenizer

    with read_gguf(model_file(model)) as file:
        return Tokenizer.from_gguf(file.metadata)


def context_size(config: ModelConfig, wanted: int | None) -> int:
    """The context to open: what was asked for, else the model's own up to 4096. The engine checks the number."""
    return min(config.n_ctx_train, _USUAL_CONTEXT) if wanted is None else wanted


def check_drafting(draft: str | None, no_speculation: bool) -> None:
    """Two wishes that exclude each other are said before a model is loaded."""
    if draft is not None and no_speculation:
        raise ArgumentError(f"--draft {draft} with --no-speculation", "leave out one of them")


@contextlib.contextmanager
def speculation(
    engine_: Engine, draft: str | None, no_speculation: bool, threads: int | None, ctx: int | None
) -> Iterator[dict[str, Any]]:
    """What Speaker is told of guessing; --draft's model is open meanwhile."""
    if draft is None:
        yield {"speculate": "off" if no_speculation else "auto"}
        return
    from phial.engine.draft_model import DraftModel, check_same_vocabulary

    with engine(draft, threads, "f16", keep_prefixes=False) as small:
        check_same_vocabulary(engine_, small)
        yield {"drafter": DraftModel(small, context_size(engine_.config, ctx))}


def is_endpoint(model: str) -> bool:
    """Whether a model is named by an address: https://host/v1#model."""
    return model.startswith(("http://", "https://"))


@contextlib.contextmanager
def language_model(model: str, threads: int | None) -> Iterator[LanguageModel]:
    """A teacher or judge by name, path or address, freed at the end."""
    from phial.engine.language_model import open_language_model

    opened = open_language_model(model if is_endpoint(model) else model_file(model), n_threads=threads)
    try:
        yield opened
    finally:
        if close := getattr(opened, "close", None):  # an endpoint has nothing to free
            close()
