"""`phial data optimal`: which keep-rate, how many epochs and how much of phase 2, from small trainings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from phial.cli import console, options
from phial.cli.extras import require
from phial.cli.progress import progress
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.data.optimal_runs import Proxy

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; see docs/concepts/data-optimal.md.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Proxies, optimal.json and picture.")]
Tokens = Annotated[list[int] | None, typer.Option("--tokens", metavar="N", help="A budget to choose for; repeatable.")]
HoldOut = Annotated[str, typer.Option(metavar="WHICH", help="Budget that the law is tried on: largest or none.")]
List = Annotated[bool, typer.Option("--list", metavar="", help="Make the pools and list the proxies; train nothing.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Processes that tokenise.")]


def optimal(
    config: Config,
    output: Output,
    tokens: Tokens = None,
    hold_out: HoldOut = "largest",
    list_only: List = False,
    workers: Workers = 1,
    as_json: options.Json = False,
) -> None:
    """Train small models on several keep-rates and budgets, fit the law, choose for a budget; goes on if stopped."""
    require("data", "prepare data")
    require("train", "train proxies")
    which = _hold_out(hold_out)
    from phial.data.optimal import run_optimal
    from phial.data.optimal_config import read_optimal
    from phial.data.optimal_pools import make_pools
    from phial.data.optimal_runs import proxies
    from phial.recipe.optimal import PretrainedProxies

    settings = read_optimal(config)
    if tokens:
        if min(tokens) < 1:
            raise ArgumentError(f"--tokens {min(tokens)}", "1 or more")
        settings = settings.model_copy(update={"plan_tokens": tuple(tokens)})
    train = PretrainedProxies(settings)
    pools = make_pools(settings, output, workers=workers)
    todo = proxies(settings, pools)
    if list_only:
        _list(todo, as_json)
        return
    with console.resumable(output):
        with progress("proxies", sum(proxy.tokens for proxy in todo), counted=False, each=True) as show:
            report = run_optimal(settings, pools, output, train, show=show, hold_out=which)
    if as_json:
        console.write_json(report)
    else:
        _show(report)
        console.note(f"the curves: {output / 'optimal.svg'}; the numbers: {output / 'optimal.json'}")


def _hold_out(told: str) -> Literal["largest", "none"]:
    if told == "largest":
        return "largest"
    if told == "none":
        return "none"
    raise ArgumentError(f"--hold-out {told}", "largest or none")


def _list(todo: list[Proxy], as_json: bool) -> None:
    epochs = [[round(tokens / pool.tokens, 3) for pool, tokens in proxy.phases] for proxy in todo]
    if as_json:
        console.write_json([
            {"name": proxy.name, "tokens": proxy.tokens, "measured_at": list(proxy.at), "epochs": passes}
            for proxy, passes in zip(todo, epochs, strict=True)
        ])  # fmt: skip
        return
    cells = [
        [proxy.name, f"{proxy.tokens:,}", ", ".join(f"{n:g}" for n in passes)]
        for proxy, passes in zip(todo, epochs, strict=True)
    ]
    console.write_table(["proxy", "tokens", "epochs"], cells, right=["tokens", "epochs"])
    console.note(f"{len(todo)} proxies, {sum(proxy.tokens for proxy in todo):,} tokens in all")


def _show(report: dict[str, Any]) -> None:
    """A table a model and budget, then what is to be known about it."""
    for name, model in report["models"].items():
        for choice in model["choices"]:
            rows = [
                [
                    f"{row['keep_rate']:g}" + (" *" if row["keep_rate"] == choice["keep_rate"] else ""),
                    f"{row['epochs']:.2f}",
                    f"{row['loss']:.4f}",
                    f"{row['low']:.4f} to {row['high']:.4f}",
                    f"{100 * row['best']:.0f}",
                ]
                for row in choice["candidates"]
            ]
            console.write(f"{name}, {choice['tokens']:,} tokens\n")
            titles = ["keep-rate", "epochs", report["measure"], "90 % of trainings", "best, % of draws"]
            console.write_table(titles, rows, right=titles[1:])
            for warning in choice["warnings"]:
                console.note(f"{name}: {warning}")
        if model["held_out"]:
            console.write(_told(name, model["held_out"]))
        if model["phase_2"]:
            two = model["phase_2"]
            console.write(
                f"{name}: phase 2 best at {100 * two['share']:.0f} % of the tokens "
                f"({100 * two['low']:.0f} to {100 * two['high']:.0f}); a parabola through measurements, no law\n"
            )


def _told(name: str, test: dict[str, Any]) -> str:
    hit = "as" if test["best_predicted"] == test["best_measured"] else "not"
    return (
        f"{name}: held out {test['tokens']:,} tokens, predicted from {test['fitted_up_to']:,} and fewer: error "
        f"{test['root_mean_square_error']:.4f} (root mean square), "
        f"best keep-rate {test['best_predicted']:g}, {hit} measured ({test['best_measured']:g})\n"
    )
