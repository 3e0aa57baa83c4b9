"""What a run is at a step: the weights that it trains, optimisers, their average, and how far it is.

Data, dropout and the learning rate are functions of the step, so nothing of them is kept; nor are frozen weights,
which the record knows by their digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Average:
    """The exponential moving average of what a model trains, in its own type.

    After t updates the decay is min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move towards the model's weights after its `updates`-th update."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        parameters = [p.detach() for p in trained(model).values()]
        torch._foreach_lerp_(list(self.weights.values()), parameters, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the model's weights."""
        for mine, p in zip(self.weights.values(), trained(model).values(), strict=True):
            kept = p.detach().clone()
            p.copy_(mine)
            mine.copy_(kept)


@dataclass
class TrainState:
    """A run at a step.

    Attributes:
        step: updates done.
        tokens: tokens seen, padding included.
        targets: what the objective counted.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    average: Average | None = None
    step: int = 0
    tokens: int = 0
    targets: int = 0
    counters: tuple[str, ...] = field(default=("step", "tokens", "targets"), repr=False)

    def finite(self) -> bool:
        """Whether what this process trains are all numbers."""
        local = (getattr(p, "to_local", lambda p=p: p)() for p in trained(self.model).values())
        return all(bool(torch.isfinite(p.detach()).all()) for p in local)

    def tensors(self) -> dict[str, Any]:
        """What a checkpoint holds by name, shards as they are; the optimisers' moments exist afterwards.

        Names are those of parameters, so other processes, or another number of them, can read it.
        """
        state: dict[str, Any] = {"model": get_model_state_dict(self.model, options=_TRAINED)}
        state["optimizer"] = get_optimizer_state_dict(self.model, self.optimizers)
        if self.average:
            state["average"] = dict(self.average.weights)
        return state

    def load(self, tensors: dict[str, Any], counters: dict[str, int]) -> None:
        """Take over what tensors() gave and a checkpoint has filled in; the average was filled in place."""
        set_model_state_dict(self.model, tensors["model"], options=_TRAINED)
        set_optimizer_state_dict(self.model, self.optimizers, tensors["optimizer"])
        for name in self.counters:
            setattr(self, name, counters[name])

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The model as it is evaluated: the average's weights where there is one, no dropout, no gradients."""
        if self.average:
            self.average.swap(self.model)
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            if self.average:
                self.average.swap(self.model)


def snapshot(value: Any) -> Any:
    """A copy in this machine's memory of nested dictionaries, lists and tensors, shards staying shards."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(inner) for inner in value)
    return value
