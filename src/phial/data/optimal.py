"""The data-optimal regime, measured: proxies over keep-rates and budgets, the law fitted, what it says for a budget.

OUTPUT/optimal.json    pools, parameters with intervals, choices, crossovers, the held-out prediction, shares of phase 2
OUTPUT/points.csv      a row a loss
OUTPUT/optimal.svg     the picture, and optimal.png
OUTPUT/proxies/        (optimal_runs.py); OUTPUT/pools/, work/ (optimal_pools.py)

Who trains is an argument: this package knows data only.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from phial.data.optimal_config import OptimalConfig
from phial.data.optimal_fit import Fit, Point, fit
from phial.data.optimal_picture import draw
from phial.data.optimal_plan import Choice, Crossover, Shares, best_share, choose, crossovers, held_out, parameters
from phial.data.optimal_pools import Pools
from phial.data.optimal_runs import Measured, Show, TrainProxy, points_of, proxies, run_proxies
from phial.manifest import write_json

HoldOut = Literal["largest", "none"]
_BEYOND = 16  # crossovers are looked for up to so many times the greatest budget


class Result(NamedTuple):
    """What is known about a size of model.

    Attributes:
        small: the fit without the greatest budget, and `test` how it predicted that; None where nothing was held out.
        shares: of phase 2; None where none were tried.
    """

    model: str
    fitted: Fit
    choices: list[Choice]
    crossings: list[Crossover]
    small: Fit | None
    test: dict[str, Any] | None
    shares: Shares | None
    tried: list[tuple[float, float]]


def run_optimal(
    config: OptimalConfig,
    pools: Pools,
    output: Path,
    train: TrainProxy,
    *,
    show: Show = lambda done, text: None,
    hold_out: HoldOut = "largest",
) -> dict[str, Any]:
    """Run what is not run yet, fit, and write everything to `output`; the contents of optimal.json.

    Args:
        pools: of this configuration, as make_pools gives them.

    Raises PhialError as run_proxies and fit.
    """
    measured = run_proxies(proxies(config, pools), config.measure, output / "proxies", train, show)
    results = [analyse(config, pools.buckets, measured, model.name, hold_out) for model in config.models]
    _write_points(measured, config, pools, output / "points.csv")
    report = {
        "measure": config.measure,
        "one_run": config.one_run,
        "seeds": config.seeds,
        "pools": _described(config, pools),
        "models": {result.model: _json(result, config) for result in results},
    }
    write_json(output / "optimal.json", report)
    draw(results, config.keep_rates, config.measure, output)
    return report


def analyse(
    config: OptimalConfig, unique: Sequence[int], measured: Sequence[Measured], model: str, hold_out: HoldOut
) -> Result:
    """Fit the law to a model's losses and ask it everything."""
    points, rates = points_of(measured, model), config.keep_rates

    def fitted_to(chosen: list[Point]) -> Fit:
        return fit(chosen, unique, separate=config.separate, draws=config.draws, seed=config.seed)  # type: ignore[arg-type]

    whole, least, most = fitted_to(points), config.budgets[0], config.budgets[-1]
    asked = config.plan_tokens or (most,)
    small = test = None
    if hold_out == "largest":
        small = fitted_to([point for point in points if point.tokens < most])
        test = held_out(small, [point for point in points if point.tokens == most], rates)
    tried = [(one.proxy.share, one.loss) for one in measured if one.proxy.model.name == model and not one.proxy.keep]
    shares = best_share(*zip(*tried, strict=True)) if tried else None
    crossings = crossovers(whole, rates, least, _BEYOND * most)
    return Result(
        model, whole, [choose(whole, rates, n) for n in asked], crossings, small, test, shares, tried
    )  # fmt: skip


def _described(config: OptimalConfig, pools: Pools) -> list[dict[str, Any]]:
    """The pools, by keep-rate; `min_quality` is what a mixture's range would say."""
    return [
        {"keep_rate": rate, "unique_tokens": pool.tokens, "documents": pool.documents, "min_quality": pool.least}
        for rate, pool in zip(config.keep_rates, pools.keep, strict=True)
    ]


def _json(result: Result, config: OptimalConfig) -> dict[str, Any]:
    fitted, tried = result.fitted, result.tried
    return {
        "buckets": parameters(fitted, config.keep_rates),
        "separate": list(fitted.separate),
        "aicc": {name: value for name, value in fitted.aicc.items() if abs(value) != float("inf")},
        "noise": fitted.sigma,
        "losses": len(fitted.points),
        "choices": [
            {**one._asdict(), "candidates": [row._asdict() for row in one.candidates]} for one in result.choices
        ],
        "crossovers": [one._asdict() for one in result.crossings],
        "held_out": result.test,
        "phase_2": None
        if result.shares is None
        else {**result.shares._asdict(), "law": None, "losses": [list(one) for one in tried]},
    }


def _write_points(measured: Sequence[Measured], config: OptimalConfig, pools: Pools, path: Path) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["model", "keep_rate", "phase_2_share", "tokens", "epochs", "seed", "loss"])
    for one in measured:
        keep = one.proxy.keep
        rate, unique = (config.keep_rates[keep - 1], pools.keep[keep - 1].tokens) if keep else ("", 0)
        epochs = f"{one.tokens / unique:.4f}" if unique else ""
        share = "" if keep else one.proxy.share
        rows.writerow([one.proxy.model.name, rate, share, one.tokens, epochs, one.proxy.seed, repr(one.loss)])
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text.getvalue(), "utf-8")
    os.replace(partial, path)
