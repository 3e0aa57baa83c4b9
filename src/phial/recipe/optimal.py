"""Proxies of the data-optimal regime trained by phial's own pretraining."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.config_file import checked
from phial.data.optimal_config import OptimalConfig, ProxyModel
from phial.data.optimal_runs import Proxy
from phial.errors import PhialError
from phial.recipe.pretraining import run_pretraining
from phial.train.metrics import METRICS
from phial.train.pretrain import PretrainConfig

_DECIDED = ("tokenizer", "phases", "validation", "max_epochs", "name")


class PretrainedProxies:
    """Trains a proxy with phial train pretrain's code; satisfies phial.data.optimal_runs.TrainProxy.

    Raises PhialError at once where a model's training is not right, or does not go with budgets measured in one run.
    """

    def __init__(self, config: OptimalConfig) -> None:
        self._config = config
        for model in config.models:
            settings = self._settings(model, [("all", Path(), config.budgets[-1])], 0)
            if not config.one_run:
                continue
            kind = settings.loop.schedule.kind
            if kind != "constant":
                raise PhialError(
                    f"{model.name}: one_run with the schedule {kind!r}: its rate would depend on the last budget",
                    'loop.schedule.kind = "constant", or one_run = false',
                )
            if odd := [n for n in config.budgets if n % config.budgets[0] or n % settings.batch_tokens]:
                raise PhialError(
                    f"{model.name}: one_run with a budget of {odd[0]} tokens",
                    f"make each a multiple of the first and of batch_tokens, {settings.batch_tokens}",
                )

    def __call__(self, proxy: Proxy, folder: Path) -> Sequence[Mapping[str, float]]:
        """What was measured at each of `proxy.at`: the numbers of the metrics' rows."""
        names = [f"phase-{number}" for number in range(1, len(proxy.phases) + 1)]
        phases = [(name, pool.folder, n) for name, (pool, n) in zip(names, proxy.phases, strict=True)]
        settings = self._settings(proxy.model, phases, proxy.seed)
        if len(proxy.at) > 1:
            every = proxy.at[0] // settings.batch_tokens
            settings = settings.model_copy(
                update={"loop": settings.loop.model_copy(update={"evaluate_every": every})}
            )  # fmt: skip
        last = run_pretraining(settings, folder, lambda text: None)["metrics"]
        if len(proxy.at) == 1:
            return [_numbers(last)]
        rows = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
        by_tokens = {row["tokens"]: _numbers(row) for row in rows}
        return [by_tokens[tokens] for tokens in proxy.at]

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
