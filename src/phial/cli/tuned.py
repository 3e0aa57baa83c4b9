"""What a command that tunes a model says at its end: what was made, and the commands that run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phial.cli import console


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
