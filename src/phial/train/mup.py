"""muP (arXiv 2203.03466): a learning rate tuned on a narrow model serves wide ones, because activations move alike.

At m times the base width, the standard deviation of new hidden matrices is 1/sqrt(m) of the base's, their learning rate
1/m (optim.py), and logits are 1/m of what the output matrix makes of the last norm. That last factor is put into the
weight of the norm, and its learning rate is divided by m as well: the same function and the same steps as with a
multiplier in the model, so that what is exported is a plain model, its embeddings tied or not. Scores are divided by
the square root of the head's width, as always: models that are compared have heads of one width and differ in number.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from phial.errors import ArgumentError


def width_factor(model: nn.Module, base_width: int | None) -> float:
    """How many times wider a model is than the base; 1 without a base.

    Raises ArgumentError for a model without embed_tokens and a last norm, such as phi-3-small with its own multipliers.
    """
    if base_width is None:
        return 1.0
    embeddings, _ = _ends(model)
    return embeddings.shape[1] / base_width


@torch.no_grad()
def scale_initial(model: nn.Module, base_width: int) -> None:
    """Turn new weights, drawn as for the base's width, into those of muP, in place. Once, before any training.

    Raises ArgumentError as width_factor().
    """
    m = width_factor(model, base_width)
    embeddings, norm = _ends(model)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and weight is not embeddings and not name.endswith("lm_head.weight"):
            weight.div_(m**0.5)
    norm.div_(m)


def _ends(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The embeddings, and the weight of the norm before the output matrix."""
    ends = [
        p
        for end in ("embed_tokens", "norm")
        for n, p in model.named_parameters()
        if re.search(rf"(^|\.){end}\.weight$", n)
    ]
    if len(ends) != 2:
        raise ArgumentError(f"muP does not know the parts of a {type(model).__name__}", "leave base_width out")
    return ends[0], ends[1]
