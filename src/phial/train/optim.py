"""Optimisers and schedules."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import AdamW, Optimizer


class OptimizerConfig(BaseModel):
    """How weights follow gradients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="of matrices; norms, biases and embeddings have none")


class ScheduleConfig(BaseModel):
    """How the learning rate goes over the steps, as a factor on every peak rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(0.02, ge=0, description="steps, or, below 1, a share of all steps")
    decay: float = Field(0.2, ge=0, description="of wsd: steps, or, below 1, a share of all steps")
    floor: float = Field(0.0, ge=0, le=1, description="the factor it ends at")


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """The optimisers that together own every parameter; each group keeps its peak rate as "peak_lr"."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adam = AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    for group in adam.param_groups:
        group["peak_lr"] = group["lr"]
    return [adam]


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor at a step of 0..steps-1."""
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    decay = config.decay if config.decay >= 1 else config.decay * steps
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / decay if decay else 1.0
    return config.floor + (1 - config.floor) * min(1.0, left)
