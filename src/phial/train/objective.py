"""What a step makes smaller: an objective turns a model and a micro-batch into sums that any split adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from phial.train.cross_entropy import IGNORED as IGNORED
from phial.train.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from phial.train.processes import Processes

Batch = Mapping[str, Tensor]


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


@runtime_checkable
class WholeStep(Protocol):
    """An objective whose loss of a micro-batch depends on all of the step's, as contrasts do."""

    def look_ahead(
        self, model: nn.Module, rounds: Sequence[tuple[Batch, float]], processes: Processes
    ) -> Sequence[tuple[Batch, float]]:
        """The micro-batches of a step with what each must know of the others, before any goes backward.

        Called without gradients. Dropout draws the same numbers afterwards, if the model is run on each micro-batch
        once and in order. Every process calls it: its collective operations are as many everywhere.

        Args:
            rounds: Processes.rounds(), on the model's device.
        """
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
        head = partial(linear_cross_entropy, targets=batch["targets"], z_loss=self.z_loss)
        total, squares = model(batch["tokens"], documents=batch.get("documents"), head=head)
        nll = total.detach() - self.z_loss * squares
        return Loss(total, {"loss": nll, **({"z": squares} if self.z_loss else {})})
