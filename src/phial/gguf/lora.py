"""A LoRA adapter (Hu et al., arXiv 2106.09685): what it adds to which matrices of a model, and llama.cpp's file of it.

An adapted matrix computes W x + s B (A x), s being alpha / rank (already multiplied into B here) times the scale its
user asks for. Both readers, this one and lora_peft.py, end in Adapter. What an adapter may change is every matrix
product of the model; embeddings, norms, biases and anything else in a file is an error that names it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.config import ModelConfig, Shape
from phial.errors import FormatError
from phial.gguf.container import GGUFFile, read_gguf

F32 = NDArray[np.float32]
OTHER_MODEL = "the adapter was trained on another model"
_HALVES = {".lora_a": "a", ".lora_b": "b"}
# What an adapter's file may say of itself; any other adapter.* key may change what it computes.
_KNOWN_KEYS = ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix")


@dataclass(frozen=True)
class LowRank:
    """What is added to one matrix, b @ a, float32. a: (rank, columns); b: (rows, rank), alpha / rank within."""

    a: F32
    b: F32


@dataclass(frozen=True)
class Adapter:
    """A whole adapter. name: for people. deltas: by the GGUF name of the matrix they are added to."""

    name: str
    deltas: Mapping[str, LowRank]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of every value: adapters are the same where, and only where, they compute the same."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            digest.update(f"{name} {delta.a.shape} {delta.b.shape}".encode())
            digest.update(delta.a.tobytes())
            digest.update(delta.b.tobytes())
        return digest.hexdigest()[:32]


@dataclass
class Halves:
    """A and B of one matrix as a file brings them. name: what the file calls the matrix."""

    name: str
    a: F32 | None = None
    b: F32 | None = None


def adaptable(config: ModelConfig) -> dict[str, Shape]:
    """Matrices an adapter may change, with their shapes. A tied model has an output matrix in this sense too."""
    shapes = config.tensor_shapes()
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and name != "token_embd.weight"}
    return matrices | {"output.weight": shapes["token_embd.weight"]}


def low_rank(halves: Halves, shape: Shape) -> tuple[F32, F32]:
    """Both halves, checked against each other and the matrix they change. FormatError naming what does not fit."""
    if halves.a is None or halves.b is None:
        missing, other = ("A", "B") if halves.a is None else ("B", "A")
        raise FormatError(
            f"{halves.name} has a LoRA {other} but no {missing}", "the adapter is damaged; fetch it again"
        )
    a, b = halves.a, halves.b
    rows, columns = shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise FormatError(f"{halves.name}: LoRA A {a.shape} and B {b.shape} are not (rank, columns) and (rows, rank)")
    if (b.shape[0], a.shape[1]) != (rows, columns):
        found = f"B {b.shape} times A {a.shape}"
        raise FormatError(f"{halves.name}: {found} does not fit the model's {rows} x {columns}", OTHER_MODEL)
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise FormatError(f"{halves.name} holds NaN or infinity", "the adapter is damaged")
    return a, b


def scaled(name: str, b: F32, scale: float) -> F32:
    """B times the adapter's own scale. FormatError where that is no number or leads beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = b * np.float32(scale)
    if not math.isfinite(scale) or not np.isfinite(result).all():
        raise FormatError(f"{name}: LoRA B times alpha / rank = {scale:g} is not finite", "the adapter is damaged")
    return result


def unknown_target(name: str, config: ModelConfig) -> FormatError:
    """The error for a matrix that the model does not have, or that no adapter may change."""
    known = sorted(
        {part.removeprefix("blk.0.").removesuffix(".weight") for part in adaptable(config) if "blk.0." in part}
    )
    hint = f"adapters of {config.architecture} models may change {', '.join([*known, 'output'])}"
    return FormatError(f"{name} has no matrix in this {config.architecture} model to be added to", hint)


def read_gguf_adapter(path: Path, config: ModelConfig) -> Adapter:
    """An adapter as llama.cpp's converter writes it; rows are in the order of the model's file already.

    Raises FormatError: no adapter, another architecture's, or one that does not fit; the message names the field.
    """
    with read_gguf(path) as file:
        alpha = _alpha(file, config)
        deltas = {}
        for name, halves in _pairs(file, config):
            a, b = low_rank(halves, adaptable(config)[name])
            deltas[name] = LowRank(a, scaled(name, b, alpha / len(a) if alpha else 1.0))  # 0: none was set
        return Adapter(str(file.metadata.get("general.name") or path.stem), deltas)


def _alpha(file: GGUFFile, config: ModelConfig) -> float:
    """adapter.lora.alpha, once the metadata say that this is an adapter for the model."""
    metadata = file.metadata
    expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": config.architecture}
    for key, wanted in expected.items():
        found: Any = metadata.get(key)
        if not isinstance(found, str) or found != wanted:
            hint = OTHER_MODEL if key == "general.architecture" else "name a LoRA adapter, not a model"
            raise FormatError(f"{key} is {found!r:.60}, not {wanted!r}", hint)
    for key, value in metadata.items():
        if key.startswith("adapter.") and key not in _KNOWN_KEYS:
            raise FormatError(f"{key} = {value!r:.60} is not supported", "it may change what is computed")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FormatError(f"adapter.lora.alpha is {alpha!r:.60}, not a number")
    return float(alpha)


def _pairs(file: GGUFFile, config: ModelConfig) -> Iterable[tuple[str, Halves]]:
    """The halves by the name of their matrix."""
    known, found = adaptable(config), dict[str, Halves]()
    for tensor in file.tensors:
        name, half = tensor[:-7], _HALVES.get(tensor[-7:])
        if half is None:
            raise FormatError(f"tensor {tensor} is no half of a LoRA product", "it cannot be honoured")
        if name not in known:
            raise unknown_target(tensor, config)
        setattr(found.setdefault(name, Halves(name)), half, file.dequantized(tensor))
    if not found:
        raise FormatError("it holds no LoRA tensors", "the adapter is empty")
    return found.items()
