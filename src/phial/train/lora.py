"""LoRA (Hu et al., arXiv 2106.09685): a frozen model learns through thin matrices beside its own.

An adapted matrix computes W x + s B (A x), s = alpha / rank; A is (rank, columns), drawn as PEFT draws it, B is
(rows, rank) and begins at zero, so that the model begins as it was. The loop, its optimisers, averages and checkpoints
know only what requires a gradient: a run's memory and disk are those of A and B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from phial.errors import ArgumentError
from phial.model.transformer import DecoderLayer
from phial.train.quantized import QuantizedLinear, dequantized

Matrix = nn.Linear | QuantizedLinear


class LoraConfig(BaseModel):
    """What is adapted, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0, description="what the adapter adds counts alpha / rank times")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the adapter")
    base: Literal["float", "file", "q8_0", "q4_0"] = Field(
        "float", description="how frozen weights are held: float32, in the GGUF file's own blocks, or quantised"
    )
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="matrices by name, such as q_proj; all inside layers if left out"
    )
    adapter: Path | None = Field(None, description="an adapter of the same rank, alpha and targets to go on from")
    merge: bool = Field(False, description="write the whole model as well, the adapter added to its matrices")


class LoraLinear(nn.Module):
    """A frozen linear layer and what is learnt beside it; the names are PEFT's.

    Args:
        base: what is adapted: x (..., columns) to (..., rows).
        generator: what A is drawn from, on the CPU.
    """

    def __init__(self, base: Matrix, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer, self.scale = base, config.alpha / config.rank
        place = {"device": (base.weight if isinstance(base, nn.Linear) else base.blocks).device}
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Linear(base.in_features, config.rank, bias=False, **place)
        self.lora_B = nn.Linear(config.rank, base.out_features, bias=False, **place)
        drawn = torch.empty(config.rank, base.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.lora_B(self.lora_A(self.dropout(x)))
        result: Tensor = self.base_layer(x) + self.scale * added
        return result

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The frozen layer, in floats, with the adapter added to its matrix, in place."""
        plain = dequantized(self.base_layer)
        plain.weight += (self.scale * (self.lora_B.weight @ self.lora_A.weight)).to(plain.weight.dtype)
        return plain


def add_lora(model: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Freeze a model and put adapters beside its matrices, in place.

    Raises ArgumentError for targets that no layer has, a rank above that of every target, or a model that has adapters
    already.
    """
    if adapted(model):
        raise ArgumentError("the model has adapters already", "merge() them first")
    found = dict(_matrices(model))
    known = {name.rpartition(".")[2] for name in found}
    targets = known if config.targets is None else set(config.targets)
    if unknown := sorted(targets - known):
        raise ArgumentError(f"no layer has a matrix {unknown[0]!r}", f"choose among {', '.join(sorted(known))}")
    chosen = [matrix for name, matrix in found.items() if name.rpartition(".")[2] in targets]
    if config.rank > (most := max(min(matrix.in_features, matrix.out_features) for matrix in chosen)):
        raise ArgumentError(f"rank is {config.rank}, and no adapted matrix has more than {most}", "lower it, to 16 say")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, matrix in found.items():
        if name.rpartition(".")[2] in targets:
            _replace(model, name, LoraLinear(matrix, config, generator))


def adapted(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted matrices by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merge(model: nn.Module) -> None:
    """Add every adapter to its matrix, in place: a plain model of floats again. Its weights stay frozen."""
    for name, module in adapted(model).items():
        _replace(model, name, module.merged())
    for name, matrix in list(_matrices(model)):
        _replace(model, name, dequantized(matrix))


def _matrices(model: nn.Module) -> Iterator[tuple[str, Matrix]]:
    for at, layer in model.named_modules():
        if isinstance(layer, DecoderLayer):
            for name, module in layer.named_modules(prefix=at):
                if isinstance(module, Matrix):
                    yield name, module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
