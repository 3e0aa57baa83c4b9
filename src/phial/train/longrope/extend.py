"""LongRoPE, all of it (arXiv 2402.13753; phi3-spec §4): a model of a short context becomes one of a long context.

For each length of the extension factors are searched, and, where tuning is asked for, the weights follow them; at the
end a second search at the original length gives the short factors. What comes out is a Phi-3 model with both lists.
Each stage leaves a file or a folder and is skipped where that exists; one that was killed goes on where it was:

plan.json                  what the run is made from; another plan in the same folder is an error
before.json                the usual ways with the untouched weights, by length
1-search-512/              scores.jsonl, found.json; so for each length
1-tune-512/                the loop's folder, and model/ when it is done
short-search/              likewise at the original length
model/, after.json         the result as a Hugging Face folder, and its figures by length
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from phial.config import ModelConfig
from phial.errors import ArgumentError, PhialError
from phial.hf.folder import CONFIG
from phial.manifest import sha256_of, write_json
from phial.model.checkpoint import load, save
from phial.model.transformer import Transformer
from phial.train.longrope.measure import (
    FactorLoss,
    measure,
    needle_batches,
    report_lengths,
    text_batches,
)
from phial.train.longrope.model import as_phi3, longrope_config, set_config
from phial.train.longrope.needles import Encode
from phial.train.longrope.search import SearchConfig, search
from phial.train.longrope.seeds import Factors, seed_factors, yarn_attn_factor
from phial.train.longrope.texts import Texts, pieces, split_windows
from phial.train.longrope.tuning import MixedWindows, TuneConfig
from phial.train.loop import train
from phial.train.objective import NextToken

Show = Callable[[str, int, int, str], None]  # stage, done, in all, what to say of it
Rows = list[dict[str, Any]]


class LongropeConfig(BaseModel):
    """How a context is extended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitness: Literal["perplexity", "needle"] = Field("perplexity", description="needle: loss on the passkey's answer")
    lengths: tuple[int, ...] | None = Field(
        None, description="contexts of the extension, the last the target; none: with tuning half of it first"
    )
    attn_factor: float | None = Field(None, gt=0, description="on cos and sin; none: LongRoPE's formula")
    short_ceiling: float | None = Field(3.0, ge=1, description="largest short factor; none: ones, no second search")
    search: SearchConfig = SearchConfig()
    search_windows: int = Field(5, gt=0, description="texts of the target's length that a search reads")
    search_needles: int = Field(10, gt=0)
    report_windows: int = Field(8, gt=0, description="texts for the report")
    report_needles: int = Field(20, ge=0)
    tune: TuneConfig | None = None
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Result:
    """What an extension made.

    Attributes:
        config: of the model in `folder`.
        seeds: factor lists of the usual ways at the target.
        curve: the best score of the last search after each iteration.
        rows: {"way", "length", "loss", "perplexity", "found"} for each way and length.
    """

    config: ModelConfig
    folder: Path
    seeds: dict[str, Factors]
    curve: tuple[float, ...]
    rows: Rows


def extend(
    source: Path,
    documents: Sequence[Sequence[int]],
    encode: Encode,
    target: int,
    config: LongropeConfig,
    folder: Path,
    *,
    show: Show = lambda stage, done, total, text: None,
    workers: int = 0,
) -> Result:
    """Extend the model of a Hugging Face folder to `target` tokens, on a GPU where there is one.

    Args:
        documents: token ids of long texts, as the model's tokenizer gives them.
        encode: the tokenizer, for passkeys.
        folder: of the run; the model goes to its model/.
        workers: processes that prepare batches for tuning.

    Raises:
        PhialError: a model that cannot be extended, too few long texts, a folder of another run.
        ArgumentError: a target or lengths that do not lie beyond the model's context in rising order.
    """
    model = as_phi3(load(source, dtype=torch.float32, device=_device()))
    run = _Run(source, model, model.config, target, config, folder, encode, show)
    run.check(documents)
    least = 1 if config.tune else 0
    texts = split_windows(
        documents, target, search=config.search_windows, report=config.report_windows, tune=least, seed=config.seed
    )
    before = run.stage("before.json", lambda: run.usual_ways(texts))
    for number, length in enumerate(run.lengths(), 1):
        found = run.search_long(f"{number}-search-{length}", texts, length)
        if config.tune:
            run.tune(f"{number}-tune-{length}", texts, length, found["factors"], config.tune, workers)
    short = run.search_short(texts)
    final = run.config(short, tuple(found["factors"]))
    after = run.stage("after.json", lambda: run.finish(texts, final))
    seeds = seed_factors(run.base, target / run.original)
    return Result(final, folder / "model", seeds, tuple(found["curve"]), [*before, *after])


@dataclass
class _Run:
    """An extension under way; the model's weights are those of the last stage done."""

    source: Path
    model: Transformer
    base: ModelConfig
    target: int
    settings: LongropeConfig
    folder: Path
    encode: Encode
    show: Show

    @property
    def original(self) -> int:
        return self.base.rope_original_context

    def lengths(self) -> tuple[int, ...]:
        """Contexts of the extension. ArgumentError where they do not rise from the original one to the target."""
        half = self.target // 2
        usual = (half, self.target) if self.settings.tune and half > self.original else (self.target,)
        chosen = self.settings.lengths or usual
        if any(b <= a for a, b in zip((self.original, *chosen), chosen, strict=False)) or chosen[-1] != self.target:
            raise ArgumentError(
                f"the model's context is {self.original}, the lengths {chosen}, the target {self.target}",
                "each must be greater than the one before, and the last is the target",
            )
        return chosen

    def check(self, documents: Sequence[Sequence[int]]) -> None:
        """Write what the run is made from, or compare it with what stands there."""
        self.lengths()
        digest = hashlib.sha256()
        for document in documents:
            digest.update(np.asarray(document, "<i8").tobytes() + b"\0")
        files = [self.source / CONFIG, *sorted(self.source.glob("*.safetensors"))]
        plan = {
            "target": self.target,
            "config": self.settings.model_dump(mode="json"),
            "texts": digest.hexdigest(),
            "model": {file.name: sha256_of(file) for file in files},
        }
        path = self.folder / "plan.json"
        if not path.exists():
            write_json(path, plan)
        elif (there := _read(path)) != plan:
            different = ", ".join(key for key in plan if there.get(key) != plan[key])
            raise PhialError(f"{self.folder} is of another run: {different}", "name another folder")

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What a stage made, from its file where it was done before."""
        path = self.folder / name
        if not path.exists():
            write_json(path, make())
        return _read(path)

    def config(self, short: Factors, long: Factors, attn_factor: float | None = None) -> ModelConfig:
        return longrope_config(self.base, self.target, short, long, attn_factor or self.settings.attn_factor)

    def usual_ways(self, texts: Texts) -> Rows:
        """The usual ways at every length; their factors and their own attention factors hold at all lengths."""
        stretch = self.target / self.original
        made: Rows = []
        for number, (way, factors) in enumerate(seed_factors(self.base, stretch).items()):
            self.show("the usual ways", number, 4, way)
            own = yarn_attn_factor(stretch) if way == "yarn" else 1.0
            made += self.measured(way, texts, self.config(factors, factors, own))
        return made

    def measured(self, way: str, texts: Texts, config: ModelConfig) -> Rows:
        lengths = report_lengths(self.original, self.target)
        rows = measure(self.model, config, texts.report, lengths, self.settings.report_needles, self.encode)
        return [{"way": way, **row} for row in rows]

    def search_long(self, name: str, texts: Texts, length: int) -> dict[str, Any]:
        """The long factors for a length, searched with the weights as they are."""
        settings = self.settings
        windows = pieces(texts.search, length)[: settings.search_windows]
        if settings.fitness == "needle":
            batches = needle_batches(windows, length, settings.search_needles, self.encode, settings.seed)
        else:
            batches = text_batches(windows)
        seeds = {way: f for way, f in seed_factors(self.base, length / self.original).items() if way != "none"}
        return self.searched(name, batches, seeds, length / self.original)

    def search_short(self, texts: Texts) -> Factors:
        """The short factors: a second search, at the original length; ones where none is asked for."""
        ceiling = self.settings.short_ceiling
        if ceiling is None:
            return (1.0,) * (self.base.rope_dim // 2)
        stretch = max(1.0, ceiling / self.settings.search.ceiling)
        batches = text_batches(pieces(texts.search, self.original))
        return tuple(self.searched("short-search", batches, seed_factors(self.base, stretch), stretch)["factors"])

    def searched(self, name: str, batches: Any, seeds: dict[str, Factors], stretch: float) -> dict[str, Any]:
        iterations = self.settings.search.iterations
        fitness = FactorLoss(self.model, self.base, self.target, batches, self.settings.attn_factor)

        def show(iteration: int, best: float) -> None:
            self.show(name, iteration, iterations, f"loss {best:.4f}")

        def run() -> dict[str, Any]:
            journal = self.folder / name / "scores.jsonl"
            return asdict(search(fitness, seeds, stretch, self.settings.search, journal, show=show))

        result: dict[str, Any] = self.stage(f"{name}/found.json", run)
        return result

    def tune(
        self, name: str, texts: Texts, length: int, long: Sequence[float], config: TuneConfig, workers: int
    ) -> None:
        """Let the weights follow the factors, or take the weights of when they did."""
        done = self.folder / name / "model"
        if not done.exists():
            set_config(self.model, self.config((1.0,) * len(long), tuple(long)))
            data = MixedWindows(texts.tune, length, self.original, config, self.encode, config.loop.seed)
            self.show(name, 0, config.loop.steps, "tuning")
            train(self.model, data, NextToken(), config.loop, self.folder / name, workers=workers)
            save(self.model, done)
        self.model = _transformer(done)

    def finish(self, texts: Texts, config: ModelConfig) -> Rows:
        """Write the model; its figures."""
        rows = self.measured("found", texts, config)
        folder = self.folder / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of a run killed between the two
        save(self.model, folder, tokenizer_from=self.source)
        return rows


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise PhialError(f"{path} is damaged: {error}", "remove it; it is made again") from error


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _transformer(folder: Path) -> Transformer:
    model = load(folder, dtype=torch.float32, device=_device())
    assert isinstance(model, Transformer)
    return model
