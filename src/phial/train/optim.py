"""Optimisers and schedules: which rule follows which weights, how fast, and when.

Matrices inside layers are decayed, and may follow Muon (github.com/KellerJordan/Muon), its step scaled to the size of
AdamW's as in arXiv 2502.16982, so that one learning rate drives both. Embeddings, norms and biases follow AdamW without
decay, an output matrix of its own AdamW with decay. Fused matrices (phi3's qkv_proj and gate_up_proj) go through Muon
whole: torch.optim.Muon keeps one momentum a parameter, which checkpoints and slices over processes rely on, and the
parts share their input. What that costs is one scale for all parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.optim import AdamW, Optimizer

from phial.errors import ArgumentError, PhialError
from phial.train.mup import width_factor

Role = Literal["hidden", "output", "embedding", "vector", "last norm"]
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"(^|\.)embed_tokens\.weight$", "embedding"),
    (r"(^|\.)lm_head\.weight$", "output"),
    (r"(^|\.)norm\.weight$", "last norm"),
)


class OptimizerConfig(BaseModel):
    """How weights follow gradients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "muon"] = Field("adamw", description="muon: for matrices inside layers, AdamW for the rest")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1, description="of muon")
    weight_decay: float = Field(0.1, ge=0, description="of matrices; norms, biases and embeddings have none")
    base_width: int | None = Field(None, gt=0, description="muP: the n_embd that lr was tuned at")

    @model_validator(mode="after")
    def _all_used(self) -> OptimizerConfig:
        if self.kind == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError("momentum is muon's; adamw has beta1")
        return self


class ScheduleConfig(BaseModel):
    """How the learning rate goes over the steps, as a factor on every peak rate.

    All begin with a linear warmup. wsd: then 1, and at the end a linear decay. cosine, linear: a decay over all the
    rest. constant: 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(0.02, ge=0, description="steps, or, below 1, a share of all steps")
    decay: float = Field(0.2, ge=0, description="of wsd: steps, or, below 1, a share of all steps")
    floor: float = Field(0.0, ge=0, le=1, description="the factor it ends at")

    @model_validator(mode="after")
    def _all_used(self) -> ScheduleConfig:
        if self.kind != "wsd" and "decay" in self.model_fields_set:
            raise ValueError(f"decay is wsd's, the schedule is {self.kind}")
        if self.kind == "constant" and self.floor:
            raise ValueError("a constant schedule has no floor")
        return self


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """The optimisers that together own every parameter that is not frozen; each group keeps its peak rate as "peak_lr".

    Raises PhialError for Muon without a PyTorch that has it, for muP where weights are frozen, and as width_factor().
    """
    groups = parameter_groups(model, config)
    muons = [group for group in groups if config.kind == "muon" and group["role"] == "hidden"]
    adams = [group for group in groups if group not in muons]
    optimizers: list[Optimizer] = []
    if adams:
        optimizers.append(AdamW(adams, betas=(config.beta1, config.beta2), eps=config.eps, fused=True))
    if muons:
        optimizers.append(_muon(muons, config.momentum))
    return optimizers


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameters by role, each group with its rate and decay.

    muP (arXiv 2203.03466, table 8): at m times the base width the rate of hidden matrices is 1/m of AdamW's, and
    1/sqrt(m) of Muon's, whose steps already have a norm that grows with sqrt(m) only. Rate times decay stays.
    """
    if config.base_width is not None and any(not p.requires_grad for p in model.parameters()):
        raise ArgumentError("base_width is given and weights are frozen", "muP is for whole models: leave it out")
    m = width_factor(model, config.base_width)
    slower = {"hidden": math.sqrt(m) if config.kind == "muon" else m, "last norm": m}
    members: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        members.setdefault(_role(name, parameter), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for role, parameters in members.items():
        factor = slower.get(role, 1.0)
        decay = config.weight_decay * factor if role in ("hidden", "output") else 0.0
        rate = {"lr": config.lr / factor, "peak_lr": config.lr / factor}
        groups.append({"params": parameters, "role": role, "weight_decay": decay, **rate})
    return groups


def _role(name: str, parameter: nn.Parameter) -> Role:
    named = next((role for pattern, role in _ROLES if re.search(pattern, name)), None)
    return named or ("hidden" if parameter.ndim >= 2 else "vector")


def _muon(groups: Sequence[dict[str, Any]], momentum: float) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise PhialError(f"torch {torch.__version__} has no Muon", 'pip install "torch>=2.9", or use kind = "adamw"')
    from phial.train.muon import Muon

    return Muon(list(groups), momentum=momentum, adjust_lr_fn="match_rms_adamw")


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor at a step of 0..steps-1; `floor` would be reached at `steps`.

    Raises PhialError where warmup and decay are longer than all steps.
    """
    warmup = _in_steps(config.warmup, steps)
    decay = _in_steps(config.decay, steps) if config.kind == "wsd" else steps - warmup
    if warmup + decay > steps or warmup > steps:
        what = f"{warmup:g} steps of warmup and {max(decay, 0):g} of decay"
        raise PhialError(f"{what} are more than all {steps}", "shorten them, or give shares: numbers below 1")
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.kind == "constant":
        return 1.0
    left = min(1.0, (steps - step) / decay) if decay else 1.0
    if config.kind == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return config.floor + (1 - config.floor) * left


def _in_steps(value: float, steps: int) -> float:
    return value if value >= 1 else float(round(value * steps))
