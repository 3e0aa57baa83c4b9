"""`phial make`: a recipe carried out, from text to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.extras import require

if TYPE_CHECKING:
    from phial.recipe.recipe import Resolved

File = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file; recipes/ has some.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Of all stages.", show_default="runs/NAME")
]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Processes of the data stages.")]
Check = Annotated[bool, typer.Option("--check", metavar="", help="Check the recipe, say what it makes, make nothing.")]


def make(
    recipe: File,
    output: Output = None,
    workers: Workers = 1,
    check: Check = False,
    as_json: options.Json = False,
) -> None:
    """Make a model as a recipe says. The same command goes on where it was stopped, and redoes what has changed."""
    require("data", "make a model")
    require("train", "make a model")
    from phial.recipe.recipe import resolve

    folder = output or Path("runs") / recipe.stem
    resolved = resolve(recipe, folder)
    if check:
        _say_what(resolved, as_json)
        return
    from phial.recipe.make import make as carry_out

    with console.resumable(folder):
        made = carry_out(resolved, console.note, workers=workers)
    if as_json:
        console.write_json({"model": str(folder / resolved.gguf.name), "stages": made})
    else:
        _show(made)
    console.note(f"made {folder / resolved.gguf.name}; phial run --raw -m {folder / resolved.gguf.name} 'Your text'")


def _say_what(resolved: Resolved, as_json: bool) -> None:
    phases = [phase.name for phase in resolved.mix.phases]
    told = {"name": resolved.recipe.name, "parameters": resolved.parameters, "phases": phases}
    if as_json:
        console.write_json(told)
    else:
        console.write(f"{told['name']}: {told['parameters']:,} parameters, phases {', '.join(phases)}\n")


def _show(made: dict[str, Any]) -> None:
    """A row a stage, then what the model said."""
    rows = [[name, f"{stage['seconds']:.0f}", _result(name, stage["metrics"])] for name, stage in made.items()]
    console.write_table(["stage", "seconds", "result"], rows, right=["seconds"])
    for sample in made["samples"]["metrics"]["samples"]:
        console.write(f"\n{sample['prompt']}▸{sample['text']}\n")


def _result(name: str, metrics: dict[str, Any]) -> str:
    if name == "texts":
        return ", ".join(f"{source} {n:,} documents" for source, n in metrics["documents"].items())
    if name == "data":
        return f"{metrics['stages'][-1]['kept']:,} documents of {metrics['stages'][0]['documents_in']:,}"
    if name == "vocabulary":
        return f"{metrics['tokens']:,} tokens"
    if name == "mix":
        return ", ".join(f"{phase['name']} {phase['tokens']:,} tokens" for phase in metrics["phases"])
    if name == "pretrain":
        last = metrics["metrics"]
        found = {k: v for k, v in last.items() if k.endswith("/perplexity")}
        parts = [f"perplexity {k.split('/')[1]} {v:.2f}" for k, v in found.items() if k.count("/") == 2]
        return ", ".join(parts) or f"loss {last['loss']:.3f}"
    if name == "gguf":
        return f"{metrics['file']}, {metrics['bytes'] / 1e6:.1f} MB"
    return f"{metrics['right']} of {metrics['problems']} held-out problems right" if "right" in metrics else ""
