"""The loss of batches that are not learnt: every evaluation adds it up here."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from phial.train.objective import Batch, NextToken


@torch.no_grad()
def summed_loss(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """Nats summed over all targets, and their number; the model stays in the mode it is in."""
    objective, device = NextToken(), next(model.parameters()).device
    nll, targets = 0.0, 0
    for batch in batches:
        nll += float(objective(model, {name: values.to(device) for name, values in batch.items()}).total)
        targets += objective.count(batch)
    return nll, targets


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats, held to what a float can say."""
    return math.exp(min(loss, 700.0))
