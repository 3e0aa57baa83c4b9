"""Cross-entropy of the next token that never holds all logits, in the forward pass or in the backward one.

Rows of hidden states go through the output matrix in chunks, and a chunk's gradients are made while its logits are
there: memory is that of one chunk, nothing is computed twice, and nothing for a matrix that is frozen or for targets
that are ignored. The plain way keeps (tokens, vocabulary) floats three times over, 1.6 GB for 4,096 tokens of a
vocabulary of 32,064.

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

IGNORED = -100  # a target that carries no loss
_CHUNK = {"cpu": 1 << 20}  # logits of a chunk: what stays in a core's cache
_CHUNK_ELSEWHERE = 1 << 26  # enough to fill a GPU
_FEWEST = 256  # rows: a chunk reads the whole matrix, and adds to its whole gradient, which takes as long as 100 rows


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and squared log-partitions, both summed over the targets that are not IGNORED.

    Only the first has a gradient, and that is of cross-entropy + z_loss * squared log-partitions: it is the total.

    Args:
        hidden: (..., D). weight: (V, D). targets: (...), integers below V, or IGNORED.
        z_loss: weight of the squared log-partition.

    Returns (total, squares), float32 scalars; cross-entropy alone is total - z_loss * squares.
    """
    hidden, targets = counted_rows(hidden, targets)
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total, squares = _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, with_gradient)  # type: ignore[no-untyped-call]
    return total, squares


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        nll = torch.zeros((), device=hidden.device)
        squares = torch.zeros_like(nll)
        for_hidden, for_weight = (wanted and with_gradient for wanted in ctx.needs_input_grad[:2])
        to_hidden = torch.empty_like(hidden) if for_hidden else None
        to_weight = None
        matrix = weight.to(hidden.dtype)
        for rows in chunks(hidden, matrix):
            log_p, log_z = log_softmax(hidden[rows], matrix)
            place = targets[rows][:, None]
            nll -= log_p.gather(1, place).sum()
            squares += log_z.square().sum()
            if with_gradient:
                by_logit = log_p.exp_()
                if z_loss:
                    by_logit *= (1 + 2 * z_loss * log_z)[:, None]
                by_logit = by_logit.scatter_add_(1, place, -torch.ones_like(by_logit[:, :1])).to(matrix.dtype)
                if to_hidden is not None:
                    torch.mm(by_logit, matrix, out=to_hidden[rows])
                if for_weight:
                    to_weight = added(to_weight, by_logit.T @ hidden[rows])
        if for_weight and to_weight is None:  # nothing is counted
            to_weight = torch.zeros_like(weight)
        ctx.mark_non_differentiable(squares)
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtype = weight.dtype
        return nll + z_loss * squares, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        to_hidden, to_weight = ctx.saved_tensors  # None of what is frozen
        by_hidden = None if to_hidden is None else to_hidden * by_total
        by_weight = None if to_weight is None else (to_weight * by_total).to(ctx.dtype)  # that of the weight itself
        return by_hidden, by_weight, None, None, None


def counted_rows(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of hidden states, (N, D), in the type that autocast wants, and the targets, (N,), that are not IGNORED.

    Arguments as linear_cross_entropy's. What is ignored costs no logits.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    counted = targets != IGNORED
    hidden, targets = hidden[counted], targets[counted]
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return hidden, targets


def added(total: Tensor | None, product: Tensor) -> Tensor:
    """A gradient's sum over chunks, float32; None before the first. Each pass over so large a tensor counts."""
    return product.float() if total is None else total.add_(product)


def chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Rows that go through the output matrix together."""
    n = max(_FEWEST, _CHUNK.get(hidden.device.type, _CHUNK_ELSEWHERE) // len(weight))
    return (slice(first, first + n) for first in range(0, len(hidden), n))


def log_softmax(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a chunk: log-probabilities (n, V) and the log-partition (n), float32."""
    logits = functional.linear(hidden, weight).float()
    log_p = logits.log_softmax(-1)
    return log_p, logits[:, 0] - log_p[:, 0]
