"""The data-optimal law against measurements: losses of filtered and unfiltered runs, the largest budget held out.

    python bench/data_optimal.py RESULTS MIX OUTPUT --kind textbook

RESULTS has the a-ARM-SEED-STEPS.json of bench/recipe.py, MIX its shards (plan.json says each arm's unique tokens). The
loss is the mean over the kinds of held-out text. Writes OUTPUT/optimal.{svg,png}, prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from phial.data.optimal import Result, analyse
from phial.data.optimal_config import OptimalConfig
from phial.data.optimal_picture import draw
from phial.data.optimal_plan import parameters
from phial.data.optimal_runs import Measured, Proxy

ARMS = {"keep-10": 0.1, "keep-40": 0.4, "all": 1.0}


def read_losses(results: Path, kinds: list[str]) -> list[tuple[str, int, int, float]]:
    """(arm, seed, tokens, loss) of every run."""
    rows = []
    for path in sorted(results.glob("a-*.json")):
        run = json.loads(path.read_text("utf-8"))
        if run["arm"] in ARMS:
            loss = float(np.mean([run["loss"][kind] for kind in kinds]))
            rows.append((run["arm"], run["seed"], run["tokens"], loss))
    return rows


def unique_tokens(mix: Path, arm: str) -> int:
    plan = json.loads((mix / f"{arm}-0" / "plan.json").read_text("utf-8"))
    return int(plan["phases"][0]["sources"][0]["unique_tokens"])


def fit_to(
    rows: list[tuple[str, int, int, float]], pools: list[int], draws: int, **changes: Any
) -> tuple[Result, OptimalConfig]:
    """The law of these losses; the largest budget held out beside it."""
    budgets = sorted({tokens for _, _, tokens, _ in rows})
    config = OptimalConfig(
        stage=Path(), tokenizer=Path(), validation=Path(), keep_rates=tuple(ARMS.values()), budgets=tuple(budgets),
        draws=draws, models=({"name": "830k", "training": {}},), plan_tokens=(*budgets, 2 * budgets[-1]), **changes,
    )  # fmt: skip
    keep = {arm: number for number, arm in enumerate(ARMS, 1)}
    measured = [
        Measured(Proxy(f"{arm}-{seed}", config.models[0], [], (tokens,), seed, keep[arm], 0.0), tokens, loss)
        for arm, seed, tokens, loss in rows
    ]
    unique = np.diff([0, *pools]).tolist()
    return analyse(config, unique, measured, "830k", "largest"), config


def print_tables(result: Result) -> None:
    rates = tuple(ARMS.values())
    fitted = result.fitted
    print(f"\n{len(fitted.points)} losses, separate: {'+'.join(fitted.separate)}, noise {fitted.sigma:.4f}")
    print("AICc: " + ", ".join(f"{name} {value:.1f}" for name, value in fitted.aicc.items()) + "\n")
    print("| bucket, % | unique tokens | b | tau, passes | d |\n|---|--:|---|---|---|")
    for row in parameters(fitted, rates):
        b, tau, d = row["b"], row["tau"], row["d"]
        told = (
            "never repeated" if tau is None else f"{tau['value']:.1f} ({tau['low']:.1f} to {tau['high'] or np.inf:.1f})"
        )
        print(
            f"| {100 * row['from']:g} to {100 * row['to']:g} | {row['unique_tokens']:,.0f} | {b['value']:.3f} "
            f"({b['low']:.3f} to {b['high']:.3f}) | {told} | {d['value']:.2f} ({d['low']:.2f} to {d['high']:.2f}) |"
        )
    test = result.test
    assert test is not None and result.small is not None
    print(f"\nHeld out: {test['tokens']:,} tokens, fitted up to {test['fitted_up_to']:,}, separate: ", end="")
    print("+".join(result.small.separate))
    print("\n| keep | predicted | 90 % of runs | measured | error | runs inside | error of a line |")
    print("|---|--:|---|--:|--:|---|--:|")
    for row in test["keep_rates"]:
        inside = f"{row['seeds_inside']} of {row['seeds']}"
        print(
            f"| {100 * row['keep_rate']:g} % | {row['predicted']:.3f} | {row['low']:.3f} to {row['high']:.3f} | "
            f"{row['measured']:.3f} | {row['error']:+.3f} | {inside} | {row['error_of_line']:+.3f} |"
        )
    errors = test["root_mean_square_error"], test["root_mean_square_error_of_line"]
    print("\nroot mean square {:.3f}, of the line {:.3f};".format(*errors), end=" ")
    print(f"best {test['best_predicted']:g}, measured {test['best_measured']:g}, before {test['best_before']:g}\n")
    print("| tokens | best keep-rate | epochs | best in draws |\n|--:|--:|--:|--:|")
    for choice in result.choices:
        best = next(row for row in choice.candidates if row.keep_rate == choice.keep_rate)
        print(f"| {choice.tokens:,} | {100 * choice.keep_rate:g} % | {choice.epochs:.2f} | {100 * best.best:.0f} % |")
    for cross in result.crossings:
        at, low, high = (f"{n:,.0f}" if n else "later" for n in (cross.tokens, cross.low, cross.high))
        print(f"\n{100 * cross.looser:g} % overtakes {100 * cross.tighter:g} % at {at} tokens ({low} to {high})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("mix", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kind", action="append", default=[], help="held-out kind; repeatable; textbook if left out")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--separate", help="parameters by bucket, such as b,tau; left out: chosen")
    told = parser.parse_args()
    kinds = told.kind or ["textbook"]
    changes = {"separate": tuple(told.separate.split(","))} if told.separate else {}
    rows = read_losses(told.results, kinds)
    result, config = fit_to(rows, [unique_tokens(told.mix, arm) for arm in ARMS], told.draws, **changes)
    print_tables(result)
    told.output.mkdir(parents=True, exist_ok=True)
    draw([result], config.keep_rates, f"loss on {', '.join(kinds)}, nats a token", told.output)


if __name__ == "__main__":
    main()
