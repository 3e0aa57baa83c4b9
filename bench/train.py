"""Training side by side: phial's loop, transformers' Trainer, and a plain PyTorch loop in nanochat's manner.

python bench/train.py [--shape tiny] [--precision bf16] [--steps 24] [--turns 5] [--peers trainer,plain]
python bench/train.py --device cuda --shape gpt124m --compile

The same initial weights, the same packed documents, none seeing another, the same AdamW (fused, no decay), batch and
precision. Each run is a process of its own; they take turns (A B A B ...) and a figure is the median over the turns.
Speed is tokens a second of processor time (by the clock with several threads, which wants a quiet machine), a step
being from one request for data to the next; memory is the largest resident set, with and without what was there before
the first step. All must end at the same loss. Trainer needs the packages accelerate and psutil, which phial does not.

With --device cuda phial runs alone, its documents by FlexAttention, and MFU is given (flops.py), by the clock. That
part has never been run. Data are a Markov chain of tokens: it can be learnt, and needs no file. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from phial.config import ModelConfig
from phial.model.checkpoint import load, save
from phial.model.transformer import Transformer
from phial.train.cross_entropy import IGNORED
from phial.train.flops import flops_per_token, peak_flops
from phial.train.loop import LoopConfig, train
from phial.train.objective import Batch, NextToken
from phial.train.optim import OptimizerConfig, ScheduleConfig

# n_vocab, n_embd, n_layer, n_head, n_ff, tokens a row, rows a step
SHAPES = {
    "tiny": (2048, 128, 4, 2, 320, 256, 8),
    "small": (4096, 256, 6, 4, 704, 512, 4),
    "gpt124m": (50304, 768, 12, 12, 2048, 1024, 32),
    "1b": (32064, 2048, 20, 16, 5632, 2048, 8),
}
LR = 3e-3
WARM_UP = 4  # steps that are not timed
DOCUMENT = 100  # tokens on average


def model_config(shape: str) -> ModelConfig:
    n_vocab, n_embd, n_layer, n_head, n_ff, length, _ = SHAPES[shape]
    head = n_embd // n_head
    return ModelConfig(
        architecture="llama", n_vocab=n_vocab, n_embd=n_embd, n_layer=n_layer, n_head=n_head, n_head_kv=n_head,
        head_dim=head, n_ff=n_ff, n_ctx_train=length, rms_norm_eps=1e-5, rope_theta=1e4, rope_dim=head,
        rope_interleaved=False, tie_embeddings=True,
    )  # fmt: skip


class Chain:
    """Batches of packed documents of a Markov chain; each token is followed by one of four."""

    def __init__(self, shape: str, device: str = "cpu") -> None:
        self.n_vocab, *_, self.length, self.rows = SHAPES[shape]
        self.device = device
        self.next = torch.randint(self.n_vocab, (self.n_vocab, 4), generator=torch.Generator().manual_seed(0))
        self.batches: list[dict[str, Tensor]] = []
        self.times: list[tuple[float, float]] = []  # of processors, by the clock
        self.before = 0.0

    def prepare(self, steps: int) -> None:
        """Make the batches of all steps: that is not what is timed."""
        self.batches = [self.batch(step) for step in range(steps)]

    def batch(self, step: int) -> dict[str, Tensor]:
        """tokens, documents, and the targets as phial wants them."""
        random = torch.Generator().manual_seed(step)
        shape = (self.rows, self.length)
        choice, fresh = (torch.randint(n, shape, generator=random) for n in (4, self.n_vocab))
        begins = torch.rand(shape, generator=random) < 1 / DOCUMENT
        tokens = fresh.clone()
        for i in range(1, self.length):
            tokens[:, i] = torch.where(begins[:, i], fresh[:, i], self.next[tokens[:, i - 1], choice[:, i]])
        begins[:, 0] = True
        targets = tokens.roll(-1, 1).masked_fill(begins.roll(-1, 1), IGNORED)  # the last one's would begin a row
        return {"tokens": tokens, "targets": targets, "documents": begins.long().cumsum(1)}

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        self.tick()
        return [{name: value.to(self.device) for name, value in self.batches[step].items()}]

    def tick(self) -> None:
        """A step begins, and the one before has ended."""
        if not self.times:
            self.before = resident_mb()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append((time.process_time(), time.perf_counter()))

    def tokens_per_second(self, clock: int) -> float:
        """By the first or the second of the clocks."""
        ends = [times[clock] for times in self.times[WARM_UP:]]
        return self.rows * self.length / median(b - a for a, b in pairwise(ends))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def train_phial(folder: Path, chain: Chain, options: argparse.Namespace) -> tuple[nn.Module, float]:
    model = load(folder, device=options.device)
    config = LoopConfig(
        steps=options.steps,
        precision=options.precision,
        compile=options.compile,
        optimizer=OptimizerConfig(lr=LR, weight_decay=0.0),
        schedule=ScheduleConfig(kind="constant", warmup=0),
    )
    with tempfile.TemporaryDirectory() as run:
        row = train(model, chain, NextToken(), config, Path(run), quiet=True)
    return model, float(row["loss"])


def child(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    import train_peers

    torch.set_num_threads(options.threads)
    chain = Chain(options.shape, options.device)
    chain.prepare(options.steps)
    runs: dict[str, Callable[..., tuple[nn.Module, float]]] = {
        "phial": train_phial, "plain": train_peers.train_plain, "trainer": train_peers.train_trainer,
    }  # fmt: skip
    model, loss = runs[kind](folder, chain, options)
    found = {"tokens_per_second": chain.tokens_per_second(0), "by_clock": chain.tokens_per_second(1), "loss": loss}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    found |= {"peak_mb": peak, "steps_mb": peak - chain.before}
    if options.device == "cuda":
        limit = peak_flops(torch.device("cuda"), options.precision)
        found["mfu"] = flops_per_token(model, chain.length) * found["by_clock"] / limit if limit else None
        found["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All kinds in turns; medians, and ratios in which more is better for phial."""
    kinds = ["phial", *(options.peers.split(",") if options.peers and options.device == "cpu" else [])]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.turns):
        for kind in kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", kind, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{kind} failed: {done.stderr[-2000:]}")
            found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, {k: round(v, 3) for k, v in found[kind][-1].items()}, file=sys.stderr, flush=True)
    result: dict[str, Any] = {k: {n: median(r[n] for r in rows) for n in rows[0]} for k, rows in found.items()}
    ours = result["phial"]
    for kind in kinds[1:]:
        pairs = zip(found["phial"], found[kind], strict=True)
        rate = "tokens_per_second" if options.threads == 1 else "by_clock"
        ratio = {"speed": median(a[rate] / b[rate] for a, b in pairs)}
        ratio |= {name: result[kind][name] / ours[name] for name in ("peak_mb", "steps_mb")}
        result[f"phial against {kind}"] = ratio | {"loss": ours["loss"] - result[kind]["loss"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peers", default="trainer,plain")
    parser.add_argument("--compile", action="store_true", help="phial's layers, with torch.compile")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], Path(options.child[1]), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save(Transformer(model_config(options.shape)), Path(folder) / "model")
        print(json.dumps(compare(Path(folder) / "model", options), indent=1))


if __name__ == "__main__":
    main()
