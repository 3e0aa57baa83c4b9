"""Log-probabilities of given tokens that never hold all logits, in the forward pass or in the backward one.

The gradient of each is only known once all of them are, so the backward pass makes a chunk's logits anew: a third more
work at the output matrix, where autograd would keep (tokens, vocabulary) floats. Where only hidden states are learnt
(a frozen output matrix), each row's gradient is made while its logits are there, up to the factor that comes later.

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phial.train.cross_entropy import IGNORED, added, chunks, counted_rows, log_softmax


def linear_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target in nats, float32, in the shape of the targets; 0 where they are IGNORED.

    Args:
        hidden: (..., D). weight: (V, D). targets: (...), integers below V, or IGNORED.
    """
    rows, counted = counted_rows(hidden, targets)
    found: Tensor = _LinearLogProbs.apply(rows, weight, counted)  # type: ignore[no-untyped-call]
    return torch.zeros(targets.shape, device=found.device).masked_scatter(targets != IGNORED, found)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        found = torch.empty(len(hidden), device=hidden.device)
        for_hidden, for_weight, _ = ctx.needs_input_grad
        by_hidden = torch.empty_like(hidden) if for_hidden and not for_weight else None
        matrix = weight.to(hidden.dtype)
        for rows in chunks(hidden, matrix):
            log_p, _ = log_softmax(hidden[rows], matrix)
            found[rows] = log_p.gather(1, targets[rows][:, None])[:, 0]
            if by_hidden is not None:
                torch.mm(_by_logits(log_p, targets[rows]).to(matrix.dtype), matrix, out=by_hidden[rows])
        ctx.save_for_backward(*((by_hidden,) if by_hidden is not None else (hidden, weight, targets)))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_found: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if len(ctx.saved_tensors) == 1:
            (by_hidden,) = ctx.saved_tensors
            return by_hidden * by_found[:, None].to(by_hidden.dtype), None, None
        hidden, weight, targets = ctx.saved_tensors
        to_hidden, to_weight, matrix = torch.empty_like(hidden), None, weight.to(hidden.dtype)
        for rows in chunks(hidden, matrix):
            log_p, _ = log_softmax(hidden[rows], matrix)
            by_logits = _by_logits(log_p, targets[rows]).mul_(by_found[rows, None]).to(matrix.dtype)
            torch.mm(by_logits, matrix, out=to_hidden[rows])
            to_weight = added(to_weight, by_logits.T @ hidden[rows])
        return to_hidden, torch.zeros_like(weight) if to_weight is None else to_weight.to(weight.dtype), None


def _by_logits(log_p: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each row's log-probability by its logits: 1 at the target less the probabilities; in place."""
    by_logits = log_p.exp_().neg_()
    return by_logits.scatter_add_(1, targets[:, None], torch.ones_like(by_logits[:, :1]))
