"""`phial inspect`: what a model file holds and how much memory running it takes, without loading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options
from phial.errors import PhialError

if TYPE_CHECKING:
    from phial.gguf.container import GGUFFile

_LONGEST = 100  # characters of a metadata value on one line; --json has more


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name, hf:owner/repo/file.gguf, or a path.")],
    ctx: options.Context = None,
    cache_type: options.CacheType = "f16",
    as_json: options.Json = False,
) -> None:
    """Show a model's metadata, tensors and memory use."""
    from phial import hub
    from phial.gguf.container import read_gguf
    from phial.gguf.describe import describe

    path = hub.resolve(model)  # looking at a model does not fetch gigabytes
    with read_gguf(path) as file:
        facts = describe(file)
        facts["memory"] = _memory(file, ctx, cache_type)
    if as_json:
        console.write_json(facts)
    else:
        _print(facts)


def _memory(file: GGUFFile, ctx: int | None, cache_type: str) -> dict[str, Any]:
    """Bytes of running the model with a full context, or why it cannot be run."""
    from phial.engine.memory import memory_estimate
    from phial.engine.model_file import read_config

    try:
        n_ctx = loading.context_size(read_config(file), ctx)
    except PhialError as error:  # a file of another kind may still be looked at
        return {"error": error.message}
    estimate = memory_estimate(file.path, n_ctx, cache_type)
    return {"n_ctx": n_ctx, "cache_type": cache_type, **asdict(estimate), "total": estimate.total}


def _print(facts: dict[str, Any]) -> None:
    """Sections with a blank line between them."""
    console.write(f"{facts['path']}: GGUF version {facts['version']}, {facts['bytes']:,} bytes\n\n")
    rows = [[key, _value(value)] for key, value in facts["metadata"].items()]
    console.write_table(["METADATA", "VALUE"], rows)
    console.write("\n")
    rows = [[t["name"], " x ".join(map(str, t["shape"])), t["type"], f"{t['bytes']:,}"] for t in facts["tensors"]]
    console.write_table(["TENSOR", "SHAPE", "TYPE", "BYTES"], rows, right=["SHAPE", "BYTES"])
    console.write("\n")
    rows = [[k, str(v["tensors"]), f"{v['parameters']:,}", f"{v['bytes']:,}"] for k, v in facts["types"].items()]
    rows.append(["all", str(facts["n_tensors"]), f"{facts['n_parameters']:,}", f"{facts['tensor_bytes']:,}"])
    numbers = ["TENSORS", "PARAMETERS", "BYTES"]
    console.write_table(["TYPE", *numbers], rows, right=numbers)
    console.write(f"\n{_memory_line(facts['memory'])}\n")


def _memory_line(memory: dict[str, Any]) -> str:
    if "error" in memory:
        return console.one_line(f"this model cannot be run: {memory['error']}")
    parts = ", ".join(f"{name} {memory[name] / 1e6:,.0f} MB" for name in ("weights", "cache", "compute", "process"))
    what = f"{memory['n_ctx']} tokens, {memory['cache_type']} cache"
    return f"memory for {what}: {memory['total'] / 1e6:,.0f} MB ({parts})"


def _value(value: Any) -> str:
    """A metadata value on one line, arrays and long texts with their length and beginning."""
    if not isinstance(value, dict):
        text = f"{value:.8g}" if isinstance(value, float) else console.one_line(str(value))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(str(value))} characters)"
    first = value["first"]
    if isinstance(first, str):
        return f"{console.one_line(first)[:_LONGEST]}… ({value['length']} characters)"
    shown = ", ".join(str(item) for item in first)
    more = "…" if value["length"] > len(first) or len(shown) > _LONGEST else ""
    return f"{value['length']} x {value['type']}: {console.one_line(shown)[:_LONGEST]}{more}"
