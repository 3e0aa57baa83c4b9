"""`phial bench`: how fast one model runs here, and how near decoding comes to the memory's speed.

Prefill is limited by arithmetic, decoding by memory: each new token reads every weight once and every cached key and
value. So decoding is also given as the fraction of the bandwidth measured on this machine just before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, loading, options
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.engine.engine import Engine, Session


def bench(
    model: options.Model = options.DEFAULT_MODEL,
    prefill: Annotated[str, typer.Option(metavar="N,N", help="Prompt lengths to read.")] = "64,512",
    depth: Annotated[str, typer.Option(metavar="N,N", help="Tokens already cached when decoding starts.")] = "0,2048",
    decode: Annotated[int, typer.Option(metavar="N", help="Tokens to decode at each depth.")] = 32,
    repeat: Annotated[int, typer.Option(metavar="N", help="Take the median of N runs.")] = 3,
    threads: options.Threads = None,
    cache_type: options.CacheType = "f16",
    kernels: Annotated[str | None, typer.Option(metavar="NAME", help="Kernel set; `phial info` lists them.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure prefill and decode speed, in tokens per second."""
    from phial.engine import hardware

    lengths, depths = _numbers("--prefill", prefill, 1), _numbers("--depth", depth, 0)
    if decode < 1 or repeat < 1:
        raise ArgumentError(f"--decode {decode} and --repeat {repeat} must be at least 1", "for instance --repeat 3")
    with loading.engine(model, threads, cache_type, kernels) as engine:
        bandwidth = hardware.read_bandwidth(threads)
        longest = max([*lengths, *(d + decode for d in depths)])
        session, tokens = engine.session(longest), _tokens(engine.config.n_vocab, longest)
        _read(session, tokens[:1])  # the first step touches memory for the first time
        rows = [_prefill_row(session, tokens[:n], repeat) for n in lengths]
        for d in depths:
            bytes_read = _bytes_per_token(engine, d + decode / 2, cache_type)
            rows.append(_decode_row(session, tokens[: d + decode], d, repeat, bytes_read, bandwidth))
        setting = {"unit": "tokens/s", "model": model, "kernels": engine.kernel_set, "bytes_per_second": bandwidth}
    if as_json:
        console.write_json([{**row, **setting} for row in rows])
    else:
        _print(rows, setting)


def _numbers(flag: str, text: str, least: int) -> list[int]:
    """The list [64, 512] of "64,512"; ArgumentError for anything that is no number or below `least`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise ArgumentError(f"{flag} {text!r} is no list of numbers from {least} up", f"for instance {flag} 64,512")
    return numbers


def _seconds(repeat: int, prepare: Callable[[], None], action: Callable[[], None]) -> float:
    """The median time of `action`, each run after its own `prepare`, which is not timed."""
    times = []
    for _ in range(repeat):
        prepare()
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _prefill_row(session: Session, tokens: list[int], repeat: int) -> dict[str, Any]:
    seconds = _seconds(repeat, lambda: session.truncate(0), lambda: _read(session, tokens))
    return _row(f"prefill {len(tokens)}", len(tokens) / seconds, None)


def _decode_row(
    session: Session, tokens: list[int], depth: int, repeat: int, bytes_read: float, bandwidth: float | None
) -> dict[str, Any]:
    """Decoding after `depth` tokens; bytes_read is what one token in the middle of the run has to read."""
    before, after = tokens[:depth], tokens[depth:]

    def prepare() -> None:
        if session.n_past < depth:
            _read(session, before[session.n_past :])
        session.truncate(depth)

    def decode() -> None:
        for token in after:
            session.eval([token])

    speed = len(after) / _seconds(repeat, prepare, decode)
    fraction = None if bandwidth is None else speed * bytes_read / bandwidth
    return _row(f"decode {len(after)} at {depth}", speed, fraction)


def _row(name: str, speed: float, limit_fraction: float | None) -> dict[str, Any]:
    """The row that every benchmark of phial prints; without a peer to compare with, those columns are empty."""
    fraction = None if limit_fraction is None else round(limit_fraction, 4)
    return {"name": name, "ours": round(speed, 2), "peer": None, "ratio": None, "limit_fraction": fraction}


def _read(session: Session, tokens: list[int]) -> None:
    session.eval(tokens)


def _tokens(n_vocab: int, count: int) -> list[int]:
    """Some token ids, the same every time: speed does not depend on which."""
    return [(7919 * i + 13) % n_vocab for i in range(count)]


def _bytes_per_token(engine: Engine, depth: float, cache_type: str) -> float:
    """What decoding one token after `depth` others must read: every weight once, and the cached keys and values.

    Of an embedding table that is not the output matrix too, one row is read, which is nothing.
    """
    from phial.gguf.container import read_gguf

    with read_gguf(engine.path) as file:
        weights = sum(info.n_bytes for info in file.tensors.values())
        if "output.weight" in file.tensors:
            weights -= file.tensors["token_embd.weight"].n_bytes
    seen = min(depth, engine.config.sliding_window or depth)
    return weights + seen * engine.config.kv_bytes_per_token(cache_type)


def _print(rows: list[dict[str, Any]], setting: dict[str, Any]) -> None:
    columns = ["TEST", "TOKENS/S", "OF MEMORY SPEED"]
    cells = [[row["name"], f"{row['ours']:.1f}", _percent(row["limit_fraction"])] for row in rows]
    console.write_table(columns, cells, right=columns[1:])
    speed = setting["bytes_per_second"]
    measured = "not measured" if speed is None else f"{speed / 1e9:.1f} GB/s"
    console.note(f"{setting['model']}, {setting['kernels']} kernels, memory {measured}")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f} %"
