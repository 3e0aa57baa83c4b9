"""An adapter of either kind by its path, and what it adds to a model's weights."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.config import ModelConfig
from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.lora import Adapter, read_gguf_adapter
from phial.gguf.lora_peft import read_peft_adapter


def read_adapter(path: str | PathLike[str], config: ModelConfig) -> Adapter:
    """A PEFT folder or a GGUF file. Raises FormatError as their readers do, PhialError where nothing is there."""
    path = Path(path)
    if not path.exists():
        raise PhialError(f"there is no adapter {path}", "name a folder that PEFT saved or a GGUF adapter")
    try:
        return (read_peft_adapter if path.is_dir() else read_gguf_adapter)(path, config)
    except FormatError as error:
        raise FormatError(f"adapter {path}: {error.message}", error.hint) from error


class Merge:
    """What is added to weights while they are converted: nothing without an adapter."""

    def __init__(self, path: str | PathLike[str] | None, config: ModelConfig) -> None:
        """Raises as read_adapter(); ArgumentError for an output matrix that is the embedding."""
        self._deltas = {} if path is None else read_adapter(path, config).deltas
        if "output.weight" in self._deltas and config.tie_embeddings:
            raise ArgumentError(
                f"adapter {path} changes the output matrix, which in this model is the embedding",
                "run it beside the model: phial run --lora",
            )

    def __call__(self, name: str, rows: slice, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Some rows of a weight, in GGUF's order, with what the adapter adds to them."""
        if (delta := self._deltas.get(name)) is None:
            return values
        return values + delta.b[rows] @ delta.a
