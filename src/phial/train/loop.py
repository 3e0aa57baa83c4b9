"""The only training loop: step, log, evaluate, checkpoint, resume. What is trained, on what, towards what, is given.

    folder/manifest.json   the configuration, seed, versions and machine (record.py)
    folder/metrics.jsonl   a row a step (metrics.py); loss.png draws it (pictures.py)
    folder/checkpoints/    (checkpoints.py)

Whatever a step needs besides the state is a function of its number: data, learning rate, dropout. So a run that was
killed and goes on is, on one machine and as many processes, bit for bit the run that was not.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from phial.errors import PhialError
from phial.train.batches import Batches, read_ahead
from phial.train.checkpoints import Checkpoints
from phial.train.interrupt import Interrupt
from phial.train.layers import prepared_layers
from phial.train.log import Log
from phial.train.metrics import Row
from phial.train.objective import Batch, Objective, WholeStep
from phial.train.optim import OptimizerConfig, ScheduleConfig, lr_factor, make_optimizers
from phial.train.processes import OneProcess, Processes
from phial.train.record import frozen_digest, locked, open_record
from phial.train.state import Average, TrainState

Evaluate = Callable[[nn.Module], dict[str, float]]
Watch = Callable[[Row], None]


class LoopConfig(BaseModel):
    """How a run goes, whatever it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights: what is evaluated and kept")
    recompute: bool = Field(False, description="compute layers twice instead of keeping what is inside them")
    compile: bool = Field(False, description="compile each layer with torch.compile")
    log_every: int = Field(10, gt=0, description="steps")
    evaluate_every: int | None = Field(None, gt=0, description="steps; at the end in any case")
    checkpoint_every: int | None = Field(None, gt=0, description="steps; at the end in any case")
    keep: int = Field(2, gt=0, description="checkpoints that stay, the newest ones")
    shards: int | None = Field(None, gt=0, description="processes that hold one copy of the weights; all if left out")
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
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
    start: Path | None = None,
    watch: Watch | None = None,
) -> Row:
    """Train a model in place, from the newest checkpoint in the folder if there is one; the last row of the metrics.

    With config.ema the model has the averaged weights afterwards. A finished run is only loaded.

    Args:
        folder: of the run; removing it is how to start afresh.
        evaluate: what to measure now and then ("validation/..." by source), the model being in evaluation mode and
            without gradients.
        workers: processes that read ahead.
        processes: those that train this model together; None: this one alone.
        about: what else the run depends on, for the manifest: a run goes on only with the same.
        quiet: nothing on stderr, no picture.
        start: a checkpoint of another run, of which this one is to be a branch; taken where the folder has none.
        watch: is given the row of each step, the same in every process; a PhialError of its ends the run, saved.

    Raises PhialError where the loss or the gradient is no number, a step has no targets, the folder holds another run
    or no whole checkpoint; KeyboardInterrupt after Ctrl-C or SIGTERM, once the state is saved.
    """
    processes = processes or OneProcess()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(locked(folder))
            frozen = {"frozen": digest} if (digest := frozen_digest(model)) else {}
            described = {"loop": config.model_dump(mode="json"), "model": _described(model), **frozen}
            open_record(folder, {**described, **(about or {})})
        processes.shard(model, config.precision, config.shards)
        optimizers = make_optimizers(model, config.optimizer)
        state = TrainState(model, optimizers, Average(model, config.ema) if config.ema else None)
        interrupt = stack.enter_context(Interrupt())
        checkpoints = Checkpoints(folder / "checkpoints", config.keep, processes)
        stack.callback(checkpoints.close)
        checkpoints.restore(state, start)
        log = stack.enter_context(Log(folder, state, config, processes, quiet=quiet))
        stack.enter_context(prepared_layers(model, recompute=config.recompute, compile=config.compile))
        rank, world = processes.rank, processes.world
        if rank == 0 and state.step == config.steps and log.last.get("step") != state.step:
            raise PhialError(f"{folder} has no metrics of its last step", f"remove {folder} to start afresh")
        steps = read_ahead(data, range(state.step, config.steps), workers=workers, rank=rank, world=world)
        _go(state, stack.enter_context(closing(steps)), objective, config, evaluate, log, checkpoints, interrupt, watch)
    if any(processes.sums([bool(interrupt.asked)])):
        raise KeyboardInterrupt(f"stopped by {interrupt.asked or 'another process'}; the run is complete")
    if state.average:
        state.average.swap(model)
    return log.last


def _go(
    state: TrainState,
    steps: Iterable[Sequence[Batch]],
    objective: Objective,
    config: LoopConfig,
    evaluate: Evaluate | None,
    log: Log,
    checkpoints: Checkpoints,
    interrupt: Interrupt,
    watch: Watch | None,
) -> None:
    """Every step there is."""
    processes = log.processes
    started = time.perf_counter()
    for pieces in steps:
        if any(processes.sums([bool(interrupt.asked)])):
            _stop(state, checkpoints, interrupt, processes)
        row = run_step(state, pieces, objective, config, processes)
        row["seconds"] = time.perf_counter() - started
        row["tokens_per_second"] = row.pop("step_tokens") / row["seconds"]
        if evaluate is not None and _due(config.evaluate_every, state.step, config.steps):
            with state.evaluated(), autocast(state.model, config):
                row |= evaluate(state.model)
        log.add(row, pieces)
        if watch is not None:
            try:
                watch(row)
            except PhialError:
                _save(state, checkpoints, processes)
                raise
        if _due(config.checkpoint_every, state.step, config.steps):
            _save(state, checkpoints, processes)
        started = time.perf_counter()


def run_step(
    state: TrainState, pieces: Sequence[Batch], objective: Objective, config: LoopConfig, processes: Processes
) -> Row:
    """One update of the state; means of what the objective sums, with the gradient's norm, the rate and the counts."""
    step, model = state.step, state.model
    counts = [objective.count(piece) for piece in pieces], [_tokens(piece) for piece in pieces]
    count, tokens = (int(total) for total in processes.sums([sum(counts[0]), sum(counts[1])]))
    if not count:
        raise PhialError(f"step {step + 1} has no targets", "every token of its batch is ignored: look at the data")
    model.train()
    rounds = _rounds(model, pieces, objective, config, processes, _seed(config.seed, step, processes.rank))
    sums = _backward(model, rounds, objective, config, count, processes)
    norm = processes.clip(model, config.clip or math.inf)
    if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
        what = f"the loss of step {step + 1} is {sums['loss'] / count}, the norm of its gradient {norm}"
        raise _diverged(what)
    factor = lr_factor(config.schedule, step, config.steps)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step, state.tokens, state.targets = step + 1, state.tokens + tokens, state.targets + count
    if state.average:
        state.average.update(model, state.step)
    means = {name: total / count for name, total in sums.items()}
    lr = state.optimizers[0].param_groups[0]["lr"]
    counters = {"count": count, "tokens": state.tokens, "step_tokens": tokens}
    return {"step": state.step, **means, "grad_norm": norm, "lr": lr, **counters}


def _rounds(
    model: nn.Module,
    pieces: Sequence[Batch],
    objective: Objective,
    config: LoopConfig,
    processes: Processes,
    seed: int,
) -> Sequence[tuple[Batch, float]]:
    """The micro-batches of a step where the model is, with their weights; the step's dropout draws from the seed."""
    device = next(model.parameters()).device
    rounds: Sequence[tuple[Batch, float]] = [
        ({name: tensor.to(device, non_blocking=True) for name, tensor in piece.items()}, weight)
        for piece, weight in processes.rounds(pieces)
    ]
    if isinstance(objective, WholeStep):
        torch.manual_seed(seed)
        with torch.no_grad(), autocast(model, config):
            rounds = objective.look_ahead(model, rounds, processes)
    torch.manual_seed(seed)
    return rounds


def _backward(
    model: nn.Module,
    rounds: Sequence[tuple[Batch, float]],
    objective: Objective,
    config: LoopConfig,
    count: int,
    processes: Processes,
) -> dict[str, float]:
    """Gradients of the mean over the whole batch, added up over its pieces; the sums over all processes."""
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    for index, (piece, weight) in enumerate(rounds):
        processes.before_backward(model, last=index + 1 == len(rounds))
        with autocast(model, config):
            loss = objective(model, piece)
        (weight * loss.total / count).backward()  # type: ignore[no-untyped-call]
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + weight * value
    return dict(zip(sums, processes.sums([float(value) for value in sums.values()]), strict=True))


def autocast(model: nn.Module, config: LoopConfig) -> AbstractContextManager[Any]:
    """bf16 where the precision asks for it; the weights stay float32."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")


def _save(state: TrainState, checkpoints: Checkpoints, processes: Processes) -> None:
    """Begin a checkpoint, never of weights that are no numbers."""
    if any(processes.sums([not state.finite()])):
        raise _diverged(f"after step {state.step} some weights are no numbers")
    checkpoints.save(state)


def _diverged(what: str) -> PhialError:
    return PhialError(
        what, "lower optimizer.lr or raise schedule.warmup, in another folder; checkpoints stay as they are"
    )


def _stop(state: TrainState, checkpoints: Checkpoints, interrupt: Interrupt, processes: Processes) -> None:
    """Save what there is and end."""
    checkpoints.wait()  # so that every process knows the same newest one
    if state.step and state.step != checkpoints.newest:
        _save(state, checkpoints, processes)
    checkpoints.wait()
    if processes.rank == 0:
        print(f"saved after step {state.step}; the same command goes on from there", file=sys.stderr)
    raise KeyboardInterrupt(f"stopped by {interrupt.asked or 'another process'} after step {state.step}")


def _due(every: int | None, step: int, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


def _seed(*numbers: int) -> int:
    """What dropout of a step draws from: a function of the run's seed, the step and the process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _tokens(batch: Batch) -> int:
    return batch["tokens"].numel() if "tokens" in batch else 0


def _described(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
