"""What is done to the layers of a model while it is trained: recomputed instead of kept, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from phial.model.transformer import DecoderLayer


@contextmanager
def prepared_layers(model: nn.Module, *, recompute: bool, compile: bool) -> Iterator[None]:
    """Change the decoder layers of a model, and back again.

    Args:
        recompute: keep only each layer's input; the rest is computed once more on the way back (arXiv 1604.06174).
            Dropout draws the same numbers both times, so the loss is the same.
        compile: each layer by torch.compile; needs a C++ compiler on a CPU. Dropout draws other numbers than without.
    """
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
    for layer in layers:
        if compile:
            layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
        if recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
