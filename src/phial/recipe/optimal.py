"""Proxies of the data-optimal regime trained by phial's own pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.config_file import checked
from phial.data.optimal_config import OptimalConfig, ProxyModel
from phial.data.optimal_pools import Pool
from phial.data.optimal_runs import Proxy
from phial.errors import PhialError
from phial.recipe.pretraining import run_pretraining
from phial.train.metrics import METRICS, read_metrics
from phial.train.pretrain import PretrainConfig

_DECIDED = ("tokenizer", "phases", "validation", "max_epochs", "name")


class PretrainedProxies:
    """Trains a proxy with phial train pretrain's code; satisfies phial.data.optimal_runs.TrainProxy.

    Several budgets in one run: with a constant rate the run is measured at each. With warmup-stable-decay a budget
    begins as the one before it did, up to where that one's decay began, so it goes on from there: its weights
    are, bit for bit, those of a training of its own.

    Raises PhialError at once where a model's training is not right, or does not go with budgets measured in one run.
    """

    def __init__(self, config: OptimalConfig) -> None:
        self._config = config
        for model in config.models:
            settings = self._settings(model, [("all", Path(), config.budgets[-1])], 0)
            if config.one_run:
                _check_one_run(settings, model.name, config.budgets)

    def __call__(self, proxy: Proxy, folder: Path) -> Sequence[Mapping[str, float]]:
        """What was measured at each of `proxy.at`: the numbers of the metrics' rows."""
        if len(proxy.at) == 1:
            return [self._train(proxy, proxy.phases, folder)]
        pool, batch = proxy.phases[0][0], self._settings(proxy.model, [("all", Path(), 1)], 0).batch_tokens
        if self._settings(proxy.model, [("all", Path(), 1)], 0).loop.schedule.kind == "constant":
            self._train(proxy, proxy.phases, folder, evaluate_every=proxy.at[0] // batch)
            by_tokens = {row["tokens"]: _numbers(row) for row in read_metrics(folder / METRICS)}
            return [by_tokens[tokens] for tokens in proxy.at]
        rows, trunk = [], None
        for tokens in proxy.at:
            fork = _stable_steps(self._settings(proxy.model, [("all", Path(), tokens)], 0), tokens)
            rows.append(self._train(proxy, [(pool, tokens)], folder / str(tokens), trunk, checkpoint_every=fork))
            trunk = folder / str(tokens) / "checkpoints" / f"{fork:08d}"
        return rows

    def _train(
        self, proxy: Proxy, phases: list[tuple[Pool, int]], folder: Path, start: Path | None = None, **loop: Any
    ) -> dict[str, float]:
        named = [(f"phase-{number}", pool.folder, tokens) for number, (pool, tokens) in enumerate(phases, 1)]
        settings = self._settings(proxy.model, named, proxy.seed)
        settings = settings.model_copy(update={"loop": settings.loop.model_copy(update=loop)})
        return _numbers(run_pretraining(settings, folder, lambda text: None, quiet=True, start=start)["metrics"])

    def _settings(self, model: ProxyModel, phases: list[tuple[str, Path, int]], seed: int) -> PretrainConfig:
        where = f"optimal.models, {model.name}: training"
        table = dict(model.training)
        loop = table.get("loop", {})
        if decided := [name for name in _DECIDED if name in table]:
            raise PhialError(f"{where}.{decided[0]} is decided by [optimal]", "leave it out")
        if not isinstance(loop, dict) or "seed" in loop:
            raise PhialError(f"{where}.loop is no table without a seed", "the proxies' seeds are those of [optimal]")
        table |= {
            "name": model.name,
            "tokenizer": self._config.tokenizer,
            "validation": self._config.validation,
            "phases": [{"name": name, "data": folder, "tokens": tokens} for name, folder, tokens in phases],
            "max_epochs": 1e9,  # to repeat too often is what is tried
            "loop": {**loop, "seed": seed},
        }
        return checked(PretrainConfig, table, where)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def _check_one_run(settings: PretrainConfig, name: str, budgets: Sequence[int]) -> None:
    schedule = settings.loop.schedule
    if schedule.kind not in ("constant", "wsd"):
        raise PhialError(
            f"{name}: one_run with the schedule {schedule.kind!r}: its rate always depends on the last budget",
            'loop.schedule.kind = "wsd" or "constant", or one_run = false',
        )
    if 0 < schedule.warmup < 1:
        raise PhialError(f"{name}: one_run with a warmup of {schedule.warmup:g} of each budget", "give it in steps")
    if schedule.kind == "constant":
        odd = [n for n in budgets if n % budgets[0] or n % settings.batch_tokens]
        hint = f"make each a multiple of the first and of batch_tokens, {settings.batch_tokens}"
    else:
        odd = [n for n in budgets if n % settings.batch_tokens]
        hint = f"make each a multiple of batch_tokens, {settings.batch_tokens}"
        forks = [_stable_steps(settings, n) for n in budgets]
        if sorted(set(forks)) != forks or any(
            2 * fork <= n // settings.batch_tokens for fork, n in zip(forks, budgets, strict=True)
        ):
            raise PhialError(f"{name}: one_run with a decay of {schedule.decay:g}", "let it be less than half a budget")
    if odd:
        raise PhialError(f"{name}: one_run with a budget of {odd[0]} tokens", hint)


def _stable_steps(settings: PretrainConfig, tokens: int) -> int:
    """The steps of a budget before its rate falls."""
    steps, decay = tokens // settings.batch_tokens, settings.loop.schedule.decay
    return steps - math.ceil(decay if decay >= 1 else decay * steps)
