"""The only training loop: step, log, evaluate. What is trained on what, towards what, are arguments."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from phial.errors import PhialError
from phial.train.batches import Batches, read_ahead
from phial.train.objective import Batch, Objective
from phial.train.optim import OptimizerConfig, ScheduleConfig, lr_factor, make_optimizers
from phial.train.processes import OneProcess, Processes

METRICS = "metrics.jsonl"
Evaluate = Callable[[nn.Module], dict[str, float]]


class LoopConfig(BaseModel):
    """How a run goes, whatever it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient")
    log_every: int = Field(10, gt=0, description="steps")
    evaluate_every: int | None = Field(None, gt=0, description="steps; at the end in any case")
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()


def train(
    model: nn.Module,
    data: Batches,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    workers: int = 0,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Train a model in place; the last evaluation, or the last losses where there is none.

    Args:
        folder: of the run: metrics.jsonl is written there.
        evaluate: what to measure now and then, the model being in evaluation mode and without gradients.
        workers: processes that read ahead.
        processes: those that train this model together; None: this one alone.

    Raises PhialError where the loss is no number.
    """
    processes = processes or OneProcess()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    optimizers = make_optimizers(model, config.optimizer)
    last: dict[str, float] = {}
    steps, rank, world = range(config.steps), processes.rank, processes.world
    ahead = read_ahead(data, steps, workers=workers, rank=rank, world=world)
    with open(folder / METRICS, "w", encoding="utf-8") as metrics:
        for step, pieces in enumerate(ahead):
            started = time.perf_counter()
            row = run_step(model, optimizers, pieces, objective, config, step, processes)
            row |= {"step": step + 1, "seconds": time.perf_counter() - started}
            if not math.isfinite(row["loss"]):
                raise PhialError(f"the loss of step {step + 1} is {row['loss']}", "lower the learning rate")
            due = config.evaluate_every and (step + 1) % config.evaluate_every == 0
            if evaluate is not None and (due or step + 1 == config.steps):
                model.eval()
                with torch.no_grad(), autocast(model, config):
                    last = evaluate(model)
                row |= last
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
    return last or row


def run_step(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    pieces: Sequence[Batch],
    objective: Objective,
    config: LoopConfig,
    step: int,
    processes: Processes,
) -> dict[str, float]:
    """One update of the weights; means of what the objective sums, with the gradient's norm and the rate."""
    model.train()
    (count,) = processes.sums([sum(objective.count(piece) for piece in pieces)])
    sums: dict[str, Tensor] = {}
    for index, piece in enumerate(pieces):
        processes.before_backward(model, last=index + 1 == len(pieces))
        with autocast(model, config):
            loss = objective(model, piece)
        (loss.total / count).backward()  # type: ignore[no-untyped-call]
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, torch.zeros(())) + value
    norm = processes.clip(model, config.clip or math.inf)
    factor = lr_factor(config.schedule, step, config.steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    totals = processes.sums([float(value) for value in sums.values()])
    means = {name: total / max(count, 1) for name, total in zip(sums, totals, strict=True)}
    return {**means, "count": count, "grad_norm": norm, "lr_factor": factor}


def autocast(model: nn.Module, config: LoopConfig) -> AbstractContextManager[Any]:
    """bf16 where the precision asks for it; the weights stay float32."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")
