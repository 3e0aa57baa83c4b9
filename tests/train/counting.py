"""A tiny model, rows that count upwards, and a run of them that a test can kill: counting.py FOLDER CONFIG."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from phial.config import ModelConfig
from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, train
from phial.train.objective import IGNORED, Batch, NextToken

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


class Epochs:
    """Forty rows, shuffled anew in each epoch of five steps, in two micro-batches a step.

    Args:
        delay: seconds that a step's data take, so that a test can kill a run before its end.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        time.sleep(self.delay)
        rows = (torch.arange(40)[:, None] * 7 + torch.arange(17) ** 2) % 64
        epoch, place = divmod(step, 5)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))[8 * place : 8 * place + 8]
        return [{"tokens": piece[:, :-1], "targets": piece[:, 1:]} for piece in rows[order].chunk(2)]


def tiny_model() -> Transformer:
    """The same weights every time, with dropout."""
    torch.manual_seed(0)
    return Transformer(TINY, dropout=0.2)


def run(
    folder: Path,
    *,
    workers: int = 0,
    delay: float = 0.0,
    data: Any = None,
    evaluate: Any = None,
    quiet: bool = True,
    **config: Any,
) -> Transformer:
    """A run of 14 steps, a checkpoint every three, with accumulation, dropout and an average of the weights."""
    torch.set_num_threads(1)
    model = tiny_model()
    settings = LoopConfig.model_validate({"steps": 14, "checkpoint_every": 3, "ema": 0.9, **config})
    train(model, data or Epochs(delay), NextToken(), settings, folder, evaluate=evaluate, workers=workers, quiet=quiet)
    return model


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
