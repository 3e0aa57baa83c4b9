"""What the loop asks of the processes that train one model together; here one alone, parallel.py has many.

Each has its share of every batch. What is logged, divided by or decided is a sum over all, so every process goes the
same way. The loop calls each method in the same order everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from phial.errors import PhialError
from phial.train.objective import Batch

Trained = TypeVar("Trained", bound=nn.Module)


class Processes(Protocol):
    """Those that train together.

    Attributes:
        rank: which this one is, 0..world-1; 0 alone writes records, metrics and pictures and says something.
        world: how many there are.
        checkpoint_group: torch process group that checkpoints are written and read by, from a thread beside the
            training: one of its own, on the CPU. None: no group is needed.
    """

    rank: int
    world: int
    checkpoint_group: Any

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        ...

    def gathered(self, rows: Tensor) -> list[Tensor]:
        """The rows (n, ...) of every process in order of rank; n may differ. No gradient goes through."""
        ...

    def shard(self, model: nn.Module, precision: str, shards: int | None) -> None:
        """Make the model theirs together, in place: the weights of process 0, each process holding a part.

        Called before optimisers are made: the parameters are others afterwards.

        Args:
            shards: processes that hold one copy together; None: all. Raises PhialError where that cannot be.
        """
        ...

    def rounds(self, pieces: Sequence[Batch]) -> list[tuple[Batch, float]]:
        """This process's micro-batches with weight 1, filled up with weight 0 to as many as any process has.

        All run forward and backward together: who has less must go along.
        """
        ...

    def before_backward(self, model: nn.Module, last: bool) -> None:
        """Called before each micro-batch; the gradients of a step are summed over processes by the `last` one's end.

        They are sums, not means: the loop has divided each loss by the count of the whole batch.
        """
        ...

    def clip(self, model: nn.Module, largest: float) -> float:
        """Scale the gradient so that its norm, over all shards, is at most `largest`; the norm before."""
        ...

    def checkpoint_barrier(self) -> None:
        """Wait until all have come here, in the thread that writes checkpoints."""
        ...

    def whole(self, model: Trained) -> Trained | None:
        """The model with all its weights on rank 0, to be written; None elsewhere. Every process must call it."""
        ...


class OneProcess:
    """A process that trains alone, on the GPU where there is one."""

    rank = 0
    world = 1
    checkpoint_group: Any = None

    def sums(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def gathered(self, rows: Tensor) -> list[Tensor]:
        return [rows]

    def shard(self, model: nn.Module, precision: str, shards: int | None) -> None:
        if shards not in (None, 1):
            raise PhialError(f"shards is {shards}, but one process trains", "start as many with torchrun")
        if torch.cuda.is_available():
            model.to("cuda")

    def rounds(self, pieces: Sequence[Batch]) -> list[tuple[Batch, float]]:
        return [(piece, 1.0) for piece in pieces]

    def before_backward(self, model: nn.Module, last: bool) -> None:
        pass

    def clip(self, model: nn.Module, largest: float = math.inf) -> float:
        return float(nn.utils.clip_grad_norm_(model.parameters(), largest))

    def checkpoint_barrier(self) -> None:
        pass

    def whole(self, model: Trained) -> Trained | None:
        return model
