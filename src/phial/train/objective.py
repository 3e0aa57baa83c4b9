"""What a step makes smaller: an objective turns a model and a micro-batch into sums that any split adds up to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Mapping[str, Tensor]
IGNORED = -100  # a target that carries no loss


class Loss(NamedTuple):
    """Sums over a micro-batch; the loop divides them by the whole step's count.

    Attributes:
        total: what is differentiated, a scalar.
        sums: scalars to log, detached; "loss" is one of them.
    """

    total: Tensor
    sums: dict[str, Tensor]


class Objective(Protocol):
    """One of next tokens, preference pairs, contrasts, ..."""

    def count(self, batch: Batch) -> int:
        """How much of a micro-batch is counted: target tokens, pairs. Known before the model has run."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The sums over a micro-batch."""
        ...


class NextToken:
    """Cross-entropy of the next token in nats, summed over targets.

    A batch holds "tokens" and "targets", (B, T), IGNORED where no loss is taken, and may hold "documents", (B, T).

    Args:
        z_loss: weight of the squared log-partition, which keeps logits from drifting (PaLM, arXiv 2204.02311, §5).
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def count(self, batch: Batch) -> int:
        return int((batch["targets"] != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        head = partial(_cross_entropy, targets=batch["targets"])
        nll, z = model(batch["tokens"], documents=batch.get("documents"), head=head)
        total = nll + self.z_loss * z if self.z_loss else nll
        return Loss(total, {"loss": nll.detach(), **({"z": z.detach()} if self.z_loss else {})})


def _cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = functional.linear(hidden, weight).float()
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    z = torch.where(targets != IGNORED, logits.logsumexp(-1).square(), 0.0).sum()
    return nll, z
