"""One small model trained and measured, for bench/recipe.py.

An arm is a list of windows of token shards; step n takes the next ROWS of them, whatever the budget. So a short run is
the beginning of a long one and its own decay: the trunk is trained once at the constant rate, and each budget branches
off where its decay begins. The weights are those of a run of that budget alone, and three budgets cost a quarter more.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
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
from phial.data.tokens import open_tokenizer
from phial.model.transformer import Transformer
from phial.train.loop import LoopConfig, run_step
from phial.train.objective import IGNORED, Batch, NextToken
from phial.train.optim import OptimizerConfig, ScheduleConfig, make_optimizers

LENGTH, ROWS = 256, 8
STEP = LENGTH * ROWS  # tokens
WARMUP = 20
RATE = 4e-3
MODEL = ModelConfig(
    architecture="llama", n_vocab=2048, n_embd=128, n_layer=3, n_head=4, n_head_kv=4, head_dim=32, n_ff=320,
    n_ctx_train=LENGTH, rms_norm_eps=1e-5, rope_theta=1e4, rope_dim=32, rope_interleaved=False, tie_embeddings=True,
)  # fmt: skip
_HELD_WINDOWS, _TEST, _STORIES = 80, 40, 120

Place = tuple[ShardReader, int]


def places(folder: Path, tokens: int) -> list[Place]:
    """The windows of a phase's first `tokens` tokens."""
    reader = ShardReader(folder)
    return [(reader, LENGTH * n) for n in range(tokens // LENGTH)]


class Windows:
    """Batches: the windows in their order, each with its documents, so that none attends to another."""

    def __init__(self, order: Sequence[Place]) -> None:
        self.order = order

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        return [batch_of(self.order[step * ROWS + rank : (step + 1) * ROWS : world])]


def batch_of(chosen: Sequence[Place]) -> Batch:
    """No target lies in another document than its token."""
    found = [reader.window(position, LENGTH) for reader, position in chosen]
    tokens = torch.stack([torch.from_numpy(window.tokens) for window in found])
    documents = torch.stack([torch.from_numpy(window.documents) for window in found])
    targets = torch.where(documents[:, 1:] == documents[:, :-1], tokens[:, 1:], IGNORED)
    return {"tokens": tokens[:, :-1], "targets": targets, "documents": documents[:, :-1]}


def shuffled(order: Sequence[Place], seed: int) -> list[Place]:
    return random.Random(seed).sample(list(order), len(order))


class Judge:
    """What every run is measured on: held-out texts by kind, problems of the templates, problems people wrote."""

    def __init__(self, folder: Path, questions: Path) -> None:
        tokenizer = open_tokenizer(str(folder / "vocabulary")).tokenizer
        self.held: dict[str, list[Batch]] = {}
        for tier in HELD:
            reader = ShardReader(folder / "mix/held" / f"held-{tier}")
            count = min(_HELD_WINDOWS, reader.n_tokens // LENGTH - 1)
            order = [(reader, LENGTH * n) for n in range(count)]
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
        """Nats a token by kind; of the templates' problems also the share whose every answer token is the likeliest."""
        model.eval()
        found: dict[str, Any] = {"loss": {}, "problems": {}}
        with torch.autocast("cpu", torch.bfloat16):
            for kind, batches in self.held.items():
                found["loss"][kind] = _measure(model, batches)[0]
            for kind, batches in self.problems.items():
                found["problems"][kind] = _measure(model, batches)
        return found


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


def run(series: Series, judge: Judge, results: Path, rate: float = RATE) -> None:
    """Train what has no result file yet, and write it."""
    missing = [b for b in sorted(series.budgets) if not (results / f"{series.name}-{b}.json").exists()]
    if not missing:
        return
    torch.manual_seed(series.seed)
    model = Transformer(MODEL)
    optimizers = make_optimizers(model, OptimizerConfig(lr=rate))
    step = 0
    for budget in missing:
        started = time.process_time()
        config = _config(budget, series)
        fork = math.ceil(budget - series.decay * budget)
        _train(model, optimizers, series, config, step, fork)
        step, final = fork, copy.deepcopy(model)
        finals = make_optimizers(final, OptimizerConfig(lr=rate))
        for one, other in zip(finals, optimizers, strict=True):
            one.load_state_dict(copy.deepcopy(other.state_dict()))
        last = _train(final, finals, series, config, fork, budget)
        seconds = time.process_time() - started
        found = {"name": series.name, "seed": series.seed, "steps": budget, "tokens": budget * STEP, "rate": rate}
        found |= series.about | {"train_loss": last, "processor_seconds": seconds} | judge(final)
        partial = results / f"{series.name}-{budget}.partial"
        partial.write_text(json.dumps(found) + "\n", "utf-8")
        partial.rename(results / f"{series.name}-{budget}.json")
        losses = " ".join(f"{kind} {loss:.3f}" for kind, loss in found["loss"].items())
        print(f"{series.name} {budget * STEP:,} tokens, {seconds:.0f} s: {losses}", flush=True)


def _config(budget: int, series: Series) -> LoopConfig:
    schedule = ScheduleConfig(kind="wsd", warmup=WARMUP, decay=series.decay * budget)
    return LoopConfig(steps=budget, precision="bf16", seed=series.seed, schedule=schedule)


def _train(
    model: Transformer, optimizers: Any, series: Series, config: LoopConfig, start: int, stop: int
) -> float | None:
    """Steps start to stop - 1; the mean loss of the last twenty."""
    data, objective, losses = Windows(series.order), NextToken(), []
    for step in range(start, stop):
        row = run_step(model, optimizers, data.micro_batches(step), objective, config, step)
        losses.append(row["loss"])
    return sum(losses[-20:]) / len(losses[-20:]) if losses else None
