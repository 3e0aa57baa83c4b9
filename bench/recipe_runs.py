"""One small model trained and measured, for bench/recipe.py.

An arm is a list of windows of token shards; step n takes the next ROWS of them, whatever the budget. So a short run is
the beginning of a long one and its own decay: the trunk is trained once at the constant rate, and each budget branches
off where its decay begins. The weights are those of a run of that budget alone, and three budgets cost a quarter more.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recipe_synthetic
import torch
from recipe_corpus import HELD

from phial.config import ModelConfig
from phial.data.shards import ShardReader
from phial.gguf.open_tokenizer import open_tokenizer
from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, run_step
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.optim import ScheduleConfig
from phial.train.packed import row_of, stacked
from phial.train.processes import OneProcess
from phial.train.state import TrainState

LENGTH, ROWS = 256, 4
STEP = LENGTH * ROWS  # tokens
WARMUP = 40  # steps
MUON, ADAM = 0.02, 4e-3  # peak rates of the layers' matrices, and of all else
MODEL = ModelConfig(
    architecture="llama", n_vocab=2048, n_embd=128, n_layer=3, n_head=4, n_head_kv=4, head_dim=32, n_ff=320,
    n_ctx_train=LENGTH, rms_norm_eps=1e-5, rope_theta=1e4, rope_dim=32, rope_interleaved=False, tie_embeddings=True,
)  # fmt: skip
_HELD_WINDOWS, _TEST, _STORIES = 80, 40, 120

Place = tuple[ShardReader, int]  # a window's number in a folder of shards


def epochs(folder: Path, steps: int, seed: int) -> list[Place]:
    """The windows of so many steps: all of a phase in another order each time."""
    reader, order = ShardReader(folder), random.Random(f"{folder.name} {seed}")
    windows, wanted = range(reader.n_tokens // LENGTH), steps * ROWS
    found: list[int] = []
    while len(found) < wanted:
        found += order.sample(windows, len(windows))
    return [(reader, window) for window in found[:wanted]]


def shuffled(order: Sequence[Place], seed: int) -> list[Place]:
    return random.Random(seed).sample(list(order), len(order))


class Windows:
    """Batches: windows in a given order, each with its documents, so that none attends to another."""

    def __init__(self, order: Sequence[Place]) -> None:
        self.order = order

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        return [batch_of(self.order[step * ROWS + rank : (step + 1) * ROWS : world])]


def batch_of(chosen: Sequence[Place]) -> Batch:
    return stacked([row_of(reader, window, LENGTH) for reader, window in chosen])


class Judge:
    """What every run is measured on: held-out texts by kind, problems of the templates, problems people wrote."""

    def __init__(self, folder: Path, questions: Path) -> None:
        tokenizer = open_tokenizer(str(folder / "vocabulary")).tokenizer
        self.digits = torch.tensor([tokenizer.encode(digit)[0] for digit in "0123456789"])
        self.held: dict[str, list[Batch]] = {}
        for tier in HELD:
            reader = ShardReader(folder / "mix/held" / f"held-{tier.replace(' ', '-')}")
            count = min(_HELD_WINDOWS, reader.n_tokens // LENGTH - 1)
            order = [(reader, n) for n in range(count)]
            self.held[tier] = [batch_of(order[at : at + 16]) for at in range(0, count, 16)]
        lines = gzip.decompress(questions.read_bytes()).decode().splitlines()[:_STORIES]
        stories = [(f"Question: {q['question']}\nAnswer:", " " + q["answer"]) for q in map(json.loads, lines)]
        self.held["word problems"] = list(_padded(tokenizer, stories))
        self.problems = {
            kind: list(_padded(tokenizer, [(f"Question: {p.question}\nAnswer:", " " + p.answer) for p in problems]))
            for kind, problems in recipe_synthetic.test(_TEST).items()
        }

    @torch.no_grad()
    def __call__(self, model: Transformer) -> dict[str, Any]:
        """Nats a token by kind; of the templates' problems also the share whose every answer token is likeliest, and
        the nats of the answers' digits, which the form of an answer does not give away."""
        model.eval()
        found: dict[str, Any] = {"loss": {}, "problems": {}}
        with torch.autocast("cpu", torch.bfloat16):
            for kind, batches in self.held.items():
                found["loss"][kind] = _measure(model, batches)[0]
            for kind, batches in self.problems.items():
                found["problems"][kind] = _measure(model, batches)
            digits = [
                self._digits(batch) for kind, batches in self.problems.items() if kind != "order" for batch in batches
            ]
            found["digits"] = _measure(model, digits)[0]
        return found

    def _digits(self, batch: Batch) -> Batch:
        targets = batch["targets"]
        return {**batch, "targets": targets.where(torch.isin(targets, self.digits), IGNORED)}


def _padded(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Iterator[Batch]:
    """Questions with their answers, which alone are counted; rows are cut at the length the model knows."""
    rows = [(tokenizer.encode(q), tokenizer.encode(a)) for q, a in pairs]
    rows = [(q, a) for q, a in rows if len(q) + len(a) <= LENGTH]
    for at in range(0, len(rows), 20):
        part = rows[at : at + 20]
        longest = max(len(q) + len(a) for q, a in part)
        tokens = torch.zeros(len(part), longest, dtype=torch.long)
        targets = torch.full((len(part), longest), IGNORED)
        for n, (q, a) in enumerate(part):
            tokens[n, : len(q) + len(a)] = torch.tensor(q + a)
            targets[n, len(q) - 1 : len(q) + len(a) - 1] = torch.tensor(a)
        yield {"tokens": tokens, "targets": targets}


def _measure(model: Transformer, batches: Sequence[Batch]) -> tuple[float, float]:
    nll = tokens = right = rows = 0.0
    for batch in batches:
        logits = model(batch["tokens"], documents=batch.get("documents")).float()
        targets, counted = batch["targets"], batch["targets"] != IGNORED
        nll += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        tokens += int(counted.sum())
        right += int(((logits.argmax(-1) == targets) | ~counted).all(-1).sum())
        rows += len(targets)
    return nll / tokens, right / rows


@dataclass(frozen=True)
class Series:
    """Runs of one arm with one seed.

    Attributes:
        order: windows, as many as the longest budget has.
        budgets: in steps.
        decay: the share of a budget in which the rate falls.
        about: goes into each result.
    """

    name: str
    order: Sequence[Place]
    budgets: Sequence[int]
    seed: int
    decay: float
    about: dict[str, Any]


def new_model(seed: int) -> Transformer:
    """Matrices of variance 1/inputs: at this width the usual 0.02 costs the first hundred steps."""
    torch.manual_seed(seed)
    model = Transformer(MODEL)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


def optimizers_of(model: Transformer) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    names = [(name, weight) for name, weight in model.named_parameters()]
    matrices = [weight for name, weight in names if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in names if weight.ndim < 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def run(series: Series, judge: Judge, results: Path) -> None:
    """Train what has no result file yet, and write it."""
    missing = [b for b in sorted(series.budgets) if not (results / f"{series.name}-{b}.json").exists()]
    model = new_model(series.seed)
    trunk = TrainState(model, optimizers_of(model))
    for budget in missing:
        started = time.process_time()
        schedule = ScheduleConfig(kind="wsd", warmup=WARMUP, decay=series.decay * budget)
        config = LoopConfig(steps=budget, precision="bf16", seed=series.seed, schedule=schedule)
        _train(trunk, series, config, round(budget - series.decay * budget))
        branch = copy.deepcopy(model)
        state = TrainState(branch, optimizers_of(branch), step=trunk.step)
        for mine, other in zip(state.optimizers, trunk.optimizers, strict=True):
            mine.load_state_dict(copy.deepcopy(other.state_dict()))
        last = _train(state, series, config, budget)
        seconds = time.process_time() - started
        found: dict[str, Any] = {"name": series.name, "seed": series.seed, "steps": budget, "tokens": budget * STEP}
        found |= series.about | {"train_loss": last, "processor_seconds": seconds} | judge(branch)
        partial = results / f"{series.name}-{budget}.partial"
        partial.write_text(json.dumps(found) + "\n", "utf-8")
        partial.rename(results / f"{series.name}-{budget}.json")
        losses = " ".join(f"{kind} {loss:.3f}" for kind, loss in found["loss"].items())
        right = " ".join(f"{kind} {share:.2f}" for kind, (_, share) in found["problems"].items())
        print(f"{series.name} {budget * STEP:,} tokens, {seconds:.0f} s: {losses} | {right}", flush=True)


def _train(state: TrainState, series: Series, config: LoopConfig, stop: int) -> float | None:
    """Up to a step; the mean loss of the last fifty."""
    data, objective, losses = Windows(series.order), NextToken(), []
    while state.step < stop:
        losses.append(run_step(state, data.micro_batches(state.step), objective, config, OneProcess())["loss"])
    return sum(losses[-50:]) / len(losses[-50:]) if losses else None
