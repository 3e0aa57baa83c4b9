"""The loop: accumulation by token count, what stops a run, and that a model learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.counting import TINY, Counting

from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, train
from phial.train.objective import NextToken
from phial.train.optim import OptimizerConfig


def _trained(pieces: int, folder: Path, steps: int = 5) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TINY)
    train(model, Counting(pieces), NextToken(), LoopConfig(steps=steps), folder)
    return model


@pytest.mark.parametrize("pieces", [2, 8])
def test_any_split_of_a_batch_gives_the_same_weights(pieces: int, tmp_path: Path) -> None:
    whole, split = _trained(1, tmp_path / "1"), _trained(pieces, tmp_path / "2")
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_learns_to_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoopConfig(steps=200, optimizer=OptimizerConfig(lr=5e-3))
    last = train(Transformer(TINY), Counting(1), NextToken(), config, tmp_path)
    assert last["loss"] < 0.5  # the uniform guess has 4.2
