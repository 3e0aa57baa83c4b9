"""The proxies: small trainings, each with its result in a file, so that a run that was stopped goes on.

OUTPUT/proxies/NAME.json holds what a finished proxy measured; its name ends in a digest of all that decides the result,
so that another setting is another proxy. OUTPUT/proxies/NAME is the training under way, removed when it is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from phial.data.optimal_config import OptimalConfig, ProxyModel
from phial.data.optimal_fit import Point
from phial.data.optimal_pools import Pool, Pools
from phial.errors import PhialError
from phial.gguf.open_tokenizer import open_tokenizer
from phial.manifest import sha256_of, write_json

Show = Callable[[int, str], None]


class Proxy(NamedTuple):
    """A small training.

    Attributes:
        phases: pools and the tokens read of each, in order. at: tokens after which it is measured, the last: all.
        keep: how many buckets the pool has; 0 for a training of two phases. share: of phase 2.
    """

    name: str
    model: ProxyModel
    phases: list[tuple[Pool, int]]
    at: tuple[int, ...]
    seed: int
    keep: int
    share: float

    @property
    def tokens(self) -> int:
        return self.at[-1]


class TrainProxy(Protocol):
    """Who trains."""

    def __call__(self, proxy: Proxy, folder: Path) -> Sequence[Mapping[str, float]]:
        """Train in `folder`, going on where a killed one stopped; what was measured at each of `proxy.at`."""
        ...


class Measured(NamedTuple):
    """A loss, with what was trained."""

    proxy: Proxy
    tokens: int
    loss: float


def proxies(config: OptimalConfig, pools: Pools) -> list[Proxy]:
    """All trainings, the shortest first."""
    inputs = {
        "tokenizer": open_tokenizer(str(config.tokenizer)).fingerprint,
        "validation": sha256_of(config.validation / "index.json"),
    }
    found = []
    for model in config.models:
        for seed in range(config.seed, config.seed + config.seeds):
            for keep, pool in enumerate(pools.keep, 1):
                for at in [config.budgets] if config.one_run else [(budget,) for budget in config.budgets]:
                    label = f"keep-{config.keep_rates[keep - 1]:g}"
                    found.append(_proxy(label, model, [(pool, at[-1])], at, seed, keep, 0.0, inputs))
            two = config.phase_2
            for share in two.shares if two else ():
                assert two is not None
                second = round(share * two.tokens)
                phases = [(p, n) for p, n in zip(pools.phases, (two.tokens - second, second), strict=True) if n]
                found.append(_proxy(f"share-{share:g}", model, phases, (two.tokens,), seed, 0, share, inputs))
    return sorted(found, key=lambda proxy: (proxy.tokens, proxy.seed))


def _proxy(
    label: str,
    model: ProxyModel,
    phases: list[tuple[Pool, int]],
    at: tuple[int, ...],
    seed: int,
    keep: int,
    share: float,
    inputs: dict[str, str],
) -> Proxy:
    decides = [model.training, [(pool.digest, tokens) for pool, tokens in phases], at, seed, inputs]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Proxy(f"{model.name}-{label}-{at[-1]}-seed-{seed}-{digest}", model, phases, at, seed, keep, share)


def run_proxies(todo: Sequence[Proxy], measure: str, folder: Path, train: TrainProxy, show: Show) -> list[Measured]:
    """Train what is not trained yet; all losses.

    Args:
        measure: which of the measured numbers is the loss.
        show: told the tokens that are done, of all proxies, and what is trained next.

    Raises PhialError where a proxy has no such number, or one that is not finite.
    """
    found: list[Measured] = []
    done = 0
    for number, proxy in enumerate(todo):
        path = folder / f"{proxy.name}.json"
        rows = _read(path, len(proxy.at))
        if rows is None:
            show(done, f"{number + 1} of {len(todo)}: {proxy.name}")
            started = time.monotonic()
            rows = [dict(row) for row in train(proxy, folder / proxy.name)]
            _check(rows, proxy, measure)
            settings = {"training": proxy.model.training, "at": proxy.at, "seed": proxy.seed}
            write_json(path, {"rows": rows, "seconds": round(time.monotonic() - started, 2), **settings})
        shutil.rmtree(folder / proxy.name, ignore_errors=True)
        _check(rows, proxy, measure)
        found += [Measured(proxy, at, row[measure]) for at, row in zip(proxy.at, rows, strict=True)]
        done += proxy.tokens
        show(done, f"{number + 1} of {len(todo)} trained")
    return found


def _read(path: Path, count: int) -> list[dict[str, float]] | None:
    try:
        rows: list[dict[str, float]] = json.loads(path.read_text("utf-8"))["rows"]
        return rows if len(rows) == count else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check(rows: Sequence[Mapping[str, Any]], proxy: Proxy, measure: str) -> None:
    if len(rows) != len(proxy.at):
        raise PhialError(f"{proxy.name} was measured {len(rows)} times, not {len(proxy.at)}", "")
    for row in rows:
        if measure not in row:
            raise PhialError(f"the proxies have no measure {measure!r}", "there are: " + ", ".join(sorted(row)))
        if not math.isfinite(row[measure]):
            raise PhialError(f"{proxy.name}: {measure} is {row[measure]}", "a lower learning rate")


def points_of(measured: Sequence[Measured], model: str) -> list[Point]:
    """The losses of a model's trainings on one pool, for the fit."""
    own = [one for one in measured if one.proxy.model.name == model and one.proxy.keep]
    return [Point(one.proxy.keep, one.tokens, one.loss, one.proxy.name) for one in own]
