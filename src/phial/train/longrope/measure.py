"""What factors are judged by: a model's loss on windows or on a needle's answer, and how often it finds the needle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from phial.config import ModelConfig
from phial.model.transformer import Transformer
from phial.train.held_out import perplexity, summed_loss
from phial.train.longrope.model import longrope_config, set_config
from phial.train.longrope.needles import Encode, least_length, needle_rows
from phial.train.longrope.seeds import Factors
from phial.train.longrope.texts import Windows, pieces
from phial.train.objective import IGNORED, Batch

TOKENS_AT_ONCE = 4096


def text_batches(windows: Windows) -> list[Batch]:
    """Windows of length + 1 tokens, every token but the first a target, in micro-batches."""
    return _batches(windows[:, :-1], windows[:, 1:])


def needle_batches(windows: Windows, length: int, count: int, encode: Encode, seed: int) -> list[Batch]:
    """`count` passkey texts of `length` tokens hidden in windows, the answer's tokens the only targets."""
    return _batches(*needle_rows(list(windows), length, count, encode, seed))


def _batches(tokens: Windows, targets: Windows) -> list[Batch]:
    rows = max(1, TOKENS_AT_ONCE // tokens.shape[1])
    parts = [slice(at, at + rows) for at in range(0, len(tokens), rows)]
    return [{"tokens": torch.from_numpy(tokens[p]), "targets": torch.from_numpy(targets[p])} for p in parts]


def mean_loss(model: Transformer, batches: Sequence[Batch]) -> float:
    """Mean nats a target."""
    model.eval()
    total, count = summed_loss(model, batches)
    return total / count


@torch.no_grad()
def found_share(model: Transformer, batches: Sequence[Batch]) -> float:
    """Share of rows whose every target is the model's first choice: what greedy decoding would say."""
    model.eval()
    device, right = next(model.parameters()).device, []
    for batch in batches:
        targets = batch["targets"].to(device)
        asked = targets != IGNORED

        def first(hidden: Tensor, weight: Tensor, asked: Tensor = asked) -> Tensor:
            return functional.linear(hidden[asked], weight).argmax(-1)

        chosen = torch.full_like(targets, IGNORED)
        chosen[asked] = model(batch["tokens"].to(device), head=first)
        right.append((chosen == targets).all(1).float())
    return float(torch.cat(right).mean())


class FactorLoss:
    """The loss of a model with factors to be judged, as the search's fitness.

    Args:
        base: the model's configuration before it was stretched; target: to how many tokens it is.
        batches: all longer than the original context, or none; so one list is judged, and may stand for both.
    """

    def __init__(
        self, model: Transformer, base: ModelConfig, target: int, batches: Sequence[Batch], attn_factor: float | None
    ) -> None:
        self.model, self.base, self.target, self.batches = model, base, target, batches
        self.attn_factor = attn_factor

    def __call__(self, factors: Factors) -> float:
        config = longrope_config(self.base, self.target, factors, factors, self.attn_factor)
        set_config(self.model, config)
        return mean_loss(self.model, self.batches)


def report_lengths(original: int, target: int) -> list[int]:
    """The original context doubled until the target, and the target."""
    doubled = [original << i for i in range(64) if original << i < target]
    return [*doubled, target]


def measure(
    model: Transformer, config: ModelConfig, windows: Windows, lengths: Sequence[int], needles: int, encode: Encode
) -> list[dict[str, Any]]:
    """A row a length: perplexity, of the same tokens at every length, and how many of `needles` keys are found.

    windows: of the longest length + 1 tokens. A length that no needle fits has None for the share found.
    """
    set_config(model, config)
    rows = []
    for length in lengths:
        loss = mean_loss(model, text_batches(pieces(windows, length)))
        found = None
        if needles and length >= least_length(encode):
            found = found_share(model, needle_batches(windows, length, needles, encode, seed=1))
        rows.append({"length": length, "loss": loss, "perplexity": perplexity(loss), "found": found})
    return rows
