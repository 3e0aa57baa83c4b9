"""Fine-tuning and preference tuning side by side: phial's, and TRL's trainers.

python bench/align.py [--what sft,dpo] [--shape smol135m] [--precision bf16] [--steps 5] [--turns 2] [--batch 8]

The same random weights, the same examples in the same order, as many a step, the same AdamW (fused, no decay), clipping
and precision; loss on answers alone. TRL pads its examples to the longest of a step and, for DPO, runs the reference
beside the policy ("trl") or, told so, before ("trl-before", as phial does); its layers keep what is inside them, as
phial's do. Each run is a process of its own; they take turns (A B A B ...), figures are medians over turns.

Speed is tokens of examples, never of padding, a second of processor time (by the clock with several threads, which
wants a quiet machine), a step being from one request for data to the next; "whole" also counts what comes before the
first, such as the reference. Memory is the largest resident set. All must have the same losses. TRL needs the packages
trl, accelerate, datasets and psutil, which phial does not. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from phial.config import ModelConfig
from phial.model.checkpoint import load, save
from phial.model.transformer import Transformer
from phial.train.chat_packing import best_fit, example_of, stacked_chats
from phial.train.loop import LoopConfig, train
from phial.train.objective import Batch, NextToken
from phial.train.optim import OptimizerConfig, ScheduleConfig
from phial.train.pair_batches import PairBatches
from phial.train.pair_encoding import PairExample
from phial.train.preference import Preference
from phial.train.processes import OneProcess
from phial.train.reference import fill_reference

# n_vocab, n_embd, n_layer, n_head, n_head_kv, n_ff, examples a step
SHAPES = {"tiny": (2048, 128, 4, 2, 2, 320, 16), "smol135m": (49152, 576, 30, 9, 3, 1536, 8)}
LR, BETA = 1e-5, 0.1
ROW = 1024  # tokens that phial runs at once
WARM_UP = 1  # steps that are not timed
KINDS = {"sft": ["phial", "trl"], "dpo": ["phial", "trl", "trl-before"]}


class Talk(NamedTuple):
    """A prompt and two answers, token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Clock:
    """What a run takes: ticks at each step's beginning, processor time and wall clock."""

    def __init__(self) -> None:
        self.started = self.now()
        self.times: list[tuple[float, float]] = []

    def now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def tick(self) -> None:
        """A step begins, and the one before has ended."""
        self.times.append(self.now())

    def rates(self, tokens: Sequence[int], clock: int) -> tuple[float, float]:
        """Tokens a second of the steps that are timed, and of all from the beginning on; the last step has no end."""
        ends = [times[clock] for times in self.times]
        timed = list(zip(tokens, pairwise(ends), strict=False))[WARM_UP:]
        steps = sum(n for n, _ in timed) / sum(b - a for _, (a, b) in timed)
        return steps, sum(tokens[: len(ends) - 1]) / (ends[-1] - self.started[clock])


def talks(shape: str, examples: int) -> list[Talk]:
    """Examples: prompts of 8 to 64 tokens, answers of 60 on average, from 4 to 250."""
    random, n_vocab = np.random.default_rng(0), SHAPES[shape][0]

    def some(n: int) -> list[int]:
        ids: list[int] = random.integers(2, n_vocab, n).tolist()
        return ids

    def answer() -> list[int]:
        return some(int(np.clip(random.lognormal(3.8, 0.7), 4, 250)))

    return [Talk(some(int(random.integers(8, 65))), answer(), answer()) for _ in range(examples)]


def tokens_of_steps(examples: Sequence[Talk], what: str, batch: int) -> list[int]:
    """Tokens of each step, those of prompts once for every answer."""
    sizes = [len(t.prompt) + len(t.chosen) + (what == "dpo") * (len(t.prompt) + len(t.rejected)) for t in examples]
    return [sum(sizes[at : at + batch]) for at in range(0, len(sizes), batch)]


def marked(prompt: list[int], answer: list[int]) -> Any:
    return example_of(prompt + answer, [False] * len(prompt) + [True] * len(answer))


class Packed:
    """Steps of so many chats, in rows; ticks a clock."""

    def __init__(self, examples: Sequence[Talk], batch: int, clock: Clock) -> None:
        self.examples, self.batch, self.clock = [marked(t.prompt, t.chosen) for t in examples], batch, clock

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        self.clock.tick()
        own = self.examples[step * self.batch : (step + 1) * self.batch]
        rows = best_fit([len(example.tokens) for example in own], range(len(own)), ROW)
        return [stacked_chats([[own[i] for i in row]]) for row in rows]


class Ticking(PairBatches):
    """Pairs that tick a clock once they are trained on."""

    clock: Clock | None = None

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        if self.clock is not None:
            self.clock.tick()
        return super().micro_batches(step, rank, world)


def run_phial(what: str, folder: Path, examples: list[Talk], clock: Clock, options: argparse.Namespace) -> list[float]:
    """The losses of all steps."""
    model, batch = load(folder), options.batch
    clock.started = clock.now()
    config = LoopConfig(
        steps=options.steps,
        precision=options.precision,
        optimizer=OptimizerConfig(lr=LR, weight_decay=0.0),
        schedule=ScheduleConfig(kind="constant", warmup=0),
    )
    with tempfile.TemporaryDirectory() as run:
        if what == "sft":
            train(model, Packed(examples, batch, clock), NextToken(), config, Path(run), quiet=True)
        else:
            pairs = [
                PairExample(marked(t.prompt, t.chosen), marked(t.prompt, t.rejected), "", len(t.prompt) - 1)
                for t in examples
            ]
            data = Ticking(pairs, batch, ROW, shuffle=False)
            path = Path(run) / "reference.npy"
            fill_reference(model, data, path, {}, config, OneProcess(), print, learnt=True)
            data.clock = clock
            train(model, data, Preference(beta=BETA), config, Path(run), quiet=True)
        rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    clock.tick()
    return [row["loss"] for row in rows]


def child(what: str, kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    torch.set_num_threads(options.threads)
    examples = talks(options.shape, options.steps * options.batch)
    clock = Clock()
    if kind == "phial":
        losses = run_phial(what, folder, examples, clock, options)
    else:
        import align_peers

        losses = align_peers.run_trl(what, folder, examples, clock, options, before=kind == "trl-before")
    tokens = tokens_of_steps(examples, what, options.batch)
    steps, whole = clock.rates(tokens, 0 if options.threads == 1 else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"tokens_per_second": steps, "whole": whole, "peak_mb": peak, "losses": losses}


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All in turns; medians, and ratios in which more is better for phial."""
    result: dict[str, Any] = {}
    for what in options.what.split(","):
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS[what]}
        for _ in range(options.turns):
            for kind in found:
                command = [sys.executable, __file__, *sys.argv[1:], "--child", what, kind, str(folder)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{what} {kind} failed: {done.stderr[-3000:]}")
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
                print(what, kind, found[kind][-1], file=sys.stderr, flush=True)
        result[what] = {kind: summary(rows, found["phial"]) for kind, rows in found.items()}
    return result


def summary(rows: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a kind, phial's against it, and how far its losses are from phial's at most."""
    names = ("tokens_per_second", "whole", "peak_mb")
    pairs = list(zip(ours, rows, strict=True))
    ratios: dict[str, float] = {f"phial {n}": median(a[n] / b[n] for a, b in pairs) for n in names[:2]}
    ratios["phial memory"] = median(b["peak_mb"] / a["peak_mb"] for a, b in pairs)
    apart: NDArray[np.float64] = np.abs(np.array(ours[0]["losses"]) - np.array(rows[0]["losses"]))
    return {n: median(r[n] for r in rows) for n in names} | ratios | {"losses apart": float(apart.max())}


def model_config(shape: str) -> ModelConfig:
    n_vocab, n_embd, n_layer, n_head, n_head_kv, n_ff, _ = SHAPES[shape]
    head = n_embd // n_head
    return ModelConfig(
        architecture="llama", n_vocab=n_vocab, n_embd=n_embd, n_layer=n_layer, n_head=n_head, n_head_kv=n_head_kv,
        head_dim=head, n_ff=n_ff, n_ctx_train=2048, rms_norm_eps=1e-5, rope_theta=1e5, rope_dim=head,
        rope_interleaved=False, tie_embeddings=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="sft,dpo")
    parser.add_argument("--shape", choices=SHAPES, default="smol135m")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help="examples a step; the shape's own if left out")
    options = parser.parse_args()
    options.batch = options.batch or SHAPES[options.shape][-1]
    if options.child:
        what, kind, folder = options.child
        print(json.dumps(child(what, kind, Path(folder), options)))
        return
    with tempfile.TemporaryDirectory() as made:
        torch.manual_seed(0)
        model: nn.Module = Transformer(model_config(options.shape))
        save(model, Path(made) / "model")
        print(json.dumps(compare(Path(made) / "model", options), indent=1))


if __name__ == "__main__":
    main()
