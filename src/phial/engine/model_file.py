"""What the engine asks a model file before and while it loads it: configuration and fingerprint."""

from __future__ import annotations

import hashlib

from phial.config import ROPE_TENSORS, ModelConfig
from phial.errors import FormatError
from phial.gguf.container import GGUFFile


def read_config(file: GGUFFile) -> ModelConfig:
    """Return the model's configuration. Raises FormatError for anything missing, contradictory or not supported."""
    config = _read_config(file)
    if not config.causal:
        raise FormatError(
            "the model's tokens see those after them (attention.causal is false), which this engine cannot do",
            "llama.cpp runs the file; transformers 5 runs the folder it was converted from",
        )
    return config


def _read_config(file: GGUFFile) -> ModelConfig:
    shapes = {name: info.shape for name, info in file.tensors.items()}
    return ModelConfig.from_gguf(file.metadata, shapes, {n: file.dequantized(n) for n in ROPE_TENSORS if n in shapes})


def model_fingerprint(file: GGUFFile, config: ModelConfig) -> str:
    """Return a digest of the configuration, every tensor's place in the model and a sample of its data.

    A sample, because reading all of a large file again would double the time to open it: two files of one shape that
    differ in training differ in nearly every byte.
    """
    digest = hashlib.sha256(repr(config).encode())
    for info in file.tensors.values():
        data = file.data(info.name)
        digest.update(f"{info.name}{info.shape}{info.type.name}".encode())
        digest.update(data[:64].tobytes() + data[len(data) // 2 :][:64].tobytes())
        file.release(info.name)  # touching a byte can map megabytes
    return digest.hexdigest()[:32]
