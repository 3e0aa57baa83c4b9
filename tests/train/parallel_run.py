"""What torchrun starts in test_parallel.py: a tiny run, alone or together, told by JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from phial.config import ModelConfig
from phial.model.transformer import Transformer
from phial.train.contrastive import Contrast
from phial.train.loop import LoopConfig, train
from phial.train.lora import LoraConfig, add_lora
from phial.train.muon import Muon
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.parallel import torchrun_processes
from phial.train.processes import Processes
from phial.train.text_batches import Pair, Text, stacked_pairs

TINY = ModelConfig(
    architecture="llama", n_vocab=63, n_embd=24, n_layer=2, n_head=4, n_head_kv=2, head_dim=6, n_ff=50, n_ctx_train=32,
    rms_norm_eps=1e-5, rope_theta=1e4, rope_dim=6, rope_interleaved=False, tie_embeddings=True,
)  # fmt: skip


class Uneven:
    """Rows that count upwards, targets ignored at random, so that no two shares count the same.

    A step's data take `delay` seconds, so that a test can stop a run. Steps have 5, 4, 3, 2, 1, 5, ... micro-batches:
    shares are uneven, and in some steps a process has none.
    """

    def __init__(self, fails_on: int | None = None, delay: float = 0.0) -> None:
        self.fails_on, self.delay = fails_on, delay

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        if rank == self.fails_on and step == 2:
            raise OSError("the disk of this process is gone")
        time.sleep(self.delay)
        random = torch.Generator().manual_seed(step)
        pieces = []
        for _ in range(5 - step % 5):
            rows = (torch.randint(63, (2, 1), generator=random) + torch.arange(17)) % 63
            targets = rows[:, 1:].clone()
            targets[torch.rand(targets.shape, generator=random) < torch.rand((), generator=random)] = IGNORED
            pieces.append({"tokens": rows[:, :-1], "targets": targets})
        return pieces[rank::world]


class UnevenPairs:
    """Pairs of random texts, hard negatives here and there, shared as unevenly as the rows of Uneven."""

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        random = np.random.default_rng(step)
        keys = iter(range(1000))

        def text() -> Text:
            return Text(random.integers(63, size=random.integers(2, 9)), next(keys))

        def pair() -> Pair:
            return Pair(text(), text(), tuple(text() for _ in range(random.integers(3))))

        pieces = [stacked_pairs([pair() for _ in range(random.integers(1, 4))]) for _ in range(5 - step % 5)]
        return pieces[rank::world]


def measured(model: nn.Module) -> dict[str, float]:
    """The loss of a batch that is not trained on; more than one forward, as an evaluation has."""
    objective, pieces = NextToken(), Uneven().micro_batches(1000)
    total = sum(float(objective(model, piece).total) for piece in pieces)
    return {"validation/loss": total / sum(objective.count(piece) for piece in pieces)}


def run(
    processes: Processes,
    folder: str,
    fails_on: int | None = None,
    delay: float = 0.0,
    contrast: bool = False,
    lora: bool = False,
    **settings: Any,
) -> None:
    """Train in `folder` and write its model.pt; each process draws other weights, of which those of process 0 count.

    contrast: on pairs of texts instead of next tokens. lora: adapters alone.
    """
    torch.manual_seed(processes.rank)
    model, config = Transformer(TINY), LoopConfig(**settings)
    if lora:
        add_lora(model, LoraConfig(rank=2), seed=processes.rank)
    data = UnevenPairs() if contrast else Uneven(fails_on, delay)
    objective = Contrast("last", negative_weight=0.2) if contrast else NextToken()
    train(model, data, objective, config, Path(folder), evaluate=measured, processes=processes, quiet=True)
    whole = processes.whole(model)
    if whole is not None:
        torch.save(whole.state_dict(), Path(folder) / "model.pt")


def compare_muon(processes: Processes) -> None:
    """Three steps on slices against torch.optim.Muon on the whole matrices; raises where one bit differs."""
    mesh = init_device_mesh("cpu", (processes.world,))
    random = torch.Generator().manual_seed(0)
    wholes = [nn.Parameter(torch.randn(shape, generator=random)) for shape in [(7, 12), (12, 7), (1, 5)]]
    slices = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in wholes]
    optimizers = torch.optim.Muon(wholes, lr=0.1), Muon(slices, lr=0.1)
    for _ in range(3):
        for whole, piece in zip(wholes, slices, strict=True):
            whole.grad = torch.randn(whole.shape, generator=random)
            piece.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    for whole, piece in zip(wholes, slices, strict=True):
        assert isinstance(piece, DTensor)
        assert torch.equal(piece.full_tensor(), whole)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun_processes() as together:
        for spec in json.loads(sys.argv[1]):
            compare_muon(together) if spec == "muon" else run(together, **spec)
