"""A tiny model, rows that count upwards, and a run of them that a test can kill: counting.py FOLDER CONFIG."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from phial.config import ModelConfig
from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, train
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.packed import Packed, Phase

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


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that was made under it."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.largest = max(self.largest, out.numel() if isinstance(out, Tensor) else 0)
        return out


class Tokens:
    """A source of short documents that are easy to tell apart from noise, in memory."""

    def __init__(self, n_tokens: int, power: int) -> None:
        self.n_tokens = n_tokens
        self.tokens = np.arange(n_tokens) ** power % 64
        self.documents = np.arange(n_tokens) // 37

    def window(self, position: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.tokens[position : position + n + 1], self.documents[position : position + n + 1]


class Phases(Packed):
    """Two phases of seven steps each, more than an epoch of each one's data, in two micro-batches a step.

    Args:
        delay: seconds that a step's data take, so that a test can kill a run before its end.
    """

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__([Phase("one", Tokens(600, 2), 56), Phase("two", Tokens(700, 3), 56)], n=16, batch=8, micro=4)
        self.delay = delay

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        time.sleep(self.delay)
        return super().micro_batches(step, rank, world)


def tiny_model(dropout: float = 0.2) -> Transformer:
    """The same weights every time, with dropout."""
    torch.manual_seed(0)
    return Transformer(TINY, dropout=dropout)


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
    """A run of 14 steps in two phases, a checkpoint every three, with accumulation, dropout and averaged weights."""
    torch.set_num_threads(1)
    model = tiny_model()
    settings = LoopConfig.model_validate({"steps": 14, "checkpoint_every": 3, "ema": 0.9, **config})
    train(model, data or Phases(delay), NextToken(), settings, folder, evaluate=evaluate, workers=workers, quiet=quiet)
    return model


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
