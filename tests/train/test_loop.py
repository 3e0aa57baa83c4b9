"""The loop: accumulation by token count, and that a model learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from phial.config import ModelConfig
from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, train
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.optim import OptimizerConfig

TINY = ModelConfig(
    architecture="llama", n_vocab=64, n_embd=32, n_layer=2, n_head=4, n_head_kv=2, head_dim=8, n_ff=64, n_ctx_train=32,
    rms_norm_eps=1e-5, rope_theta=1e4, rope_dim=8, rope_interleaved=False, tie_embeddings=True,
)  # fmt: skip


class Counting:
    """Rows that count upwards from a random start, some targets ignored; split into `pieces` micro-batches."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        random = torch.Generator().manual_seed(step)
        rows = (torch.randint(64, (8, 1), generator=random) + torch.arange(17)) % 64
        targets = rows[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=random) < 0.4] = IGNORED
        return [
            {"tokens": t, "targets": y}
            for t, y in zip(rows[:, :-1].chunk(self.pieces), targets.chunk(self.pieces), strict=True)
        ]


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
