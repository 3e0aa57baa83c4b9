"""phial and llama.cpp side by side: `python bench/engine.py [--json] model.gguf ...` (see `make bench`).

Same file, same threads, same token ids; the two take turns (A B A B ...), each in a process of its own that is stopped
while the other one works. A figure is the median over the turns. Decoding is also given as the fraction of its limit:
memory bandwidth, measured around every decode, over the bytes a token needs (weights and cached keys and values).
Not covered: sampling, GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from phial.errors import PhialError
from phial.gguf.container import read_gguf
from phial.hub import resolve

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A process that holds one engine and runs only while a command is under way."""

    def __init__(self, python: str, kind: str, processes: ExitStack) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([python, str(WORKER), kind], stdin=pipe, stdout=pipe, text=True)
        processes.callback(self.close)
        self.kind = kind

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Carry out one command and return its value; raises RuntimeError with the worker's own words."""
        assert self.process.stdin and self.process.stdout
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self.process.send_signal(signal.SIGSTOP)
        reply = json.loads(line) if line else {"error": f"the worker ended with status {self.process.wait()}"}
        if "error" in reply:
            raise RuntimeError(f"{self.kind}: {do}: {reply['error']}")
        return reply["value"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Row:
    """One comparison. ratio > 1 means phial is better; limit_fraction is phial's, None where no limit is known."""

    name: str
    ours: float
    peer: float
    ratio: float
    limit_fraction: float | None


@dataclass(frozen=True)
class Case:
    """What is timed: a prompt of n tokens in an empty cache, n single tokens behind `depth` cached ones, or
    n tokens of each of several sequences that grow side by side."""

    kind: str
    n: int
    depth: int = 0
    sequences: int = 0

    @property
    def label(self) -> str:
        if self.kind == "batch":
            return f"decode of {self.sequences} sequences"
        return f"prefill {self.n}" if self.kind == "prefill" else f"decode at {self.depth}"

    def run(self, worker: Worker) -> float:
        """Tokens per second of one turn."""
        if self.kind == "batch":
            return self.n * self.sequences / float(worker("batch", n=self.n, sequences=self.sequences))
        arguments = {"n": self.n} if self.kind == "prefill" else {"n": self.n, "depth": self.depth}
        return self.n / float(worker(self.kind, **arguments))

    def warm_up(self, worker: Worker) -> None:
        """Bring weights, threads and the cached depth in; not timed."""
        replace(self, n=self.n if self.kind == "prefill" else 2).run(worker)


def weight_bytes(path: Path) -> int:
    """Bytes of weights one token reads: all but the embedding (one row of it), unless that is the output too."""
    with read_gguf(path) as file:
        tied = "output.weight" not in file.tensors
        return sum(t.n_bytes for t in file.tensors.values() if tied or t.name != "token_embd.weight")


class Comparison:
    """All cases of one model file. With several peer settings, each case is held against the fastest of them."""

    def __init__(self, path: Path, options: argparse.Namespace, processes: ExitStack) -> None:
        self.path, self.options = path, options
        self.cases = [Case("prefill", n) for n in options.prefill]
        self.cases += [Case("decode", options.tokens, depth) for depth in options.depth]
        if options.sequences:
            self.cases.append(Case("batch", options.tokens, sequences=options.sequences))
        settings = ["on", "off"] if options.peer_flash_attn == "best" else [options.peer_flash_attn]
        self.meter = Worker(sys.executable, "meter", processes)
        self.ours = Worker(sys.executable, "phial", processes)
        self.peers = [Worker(str(options.peers / "bin" / "python"), "llama_cpp", processes) for _ in settings]
        context = max([*options.prefill, *(depth + options.tokens for depth in options.depth)]) + 64
        grown = (options.repeat + 1) * options.tokens if options.sequences else 0
        load = {"path": str(path), "threads": options.threads, "context": max(context, grown)}
        load["sequences"] = options.sequences
        self.facts = self.ours("load", **load, cache_type=options.cache_type, kernels=options.kernels)
        peer_facts = [p("load", **load, flash_attention=s) for p, s in zip(self.peers, settings, strict=True)]
        self.engines = [self.facts["engine"], *(facts["engine"] for facts in peer_facts)]

    def rows(self) -> Iterator[Row]:
        """Run everything, row by row."""
        seen: dict[str, Row] = {}
        for case in self.cases:
            row = self.compare(case)
            seen[row.name] = row
            yield row
        if self.options.shared_core:
            yield from self.shared_core(seen)
        ours, peer = self.ours("peak") / 1e6, min(p("peak") for p in self.peers) / 1e6
        yield Row(f"{self.path.stem} peak resident MB", ours, peer, peer / ours, None)

    def shared_core(self, undisturbed: dict[str, Row]) -> Iterator[Row]:
        """Prefill and decode again beside a busy loop on one core; the fraction is of phial's undisturbed speed."""
        for case in [Case("prefill", 64), Case("decode", self.options.tokens)]:
            with busy_core():
                row = self.compare(case)
            alone = undisturbed.get(f"{self.path.stem} {case.label} tok/s")
            kept = row.ours / alone.ours if alone else None
            yield replace(row, name=f"{row.name}, a core shared", limit_fraction=kept)

    def compare(self, case: Case) -> Row:
        workers = [self.ours, *self.peers]
        for worker in workers:
            case.warm_up(worker)
        rates: list[list[float]] = [[] for _ in workers]
        bandwidths: list[float] = []
        for _ in range(self.options.repeat):
            for worker, seen in zip(workers, rates, strict=True):
                if worker is self.ours and case.kind == "decode":
                    bandwidths.append(self.bandwidth())
                seen.append(case.run(worker))
                if worker is self.ours and case.kind == "decode":
                    bandwidths.append(self.bandwidth())
        ours, peer = median(rates[0]), max(median(seen) for seen in rates[1:])
        fraction = ours * self.bytes_per_token(case) / median(bandwidths) if bandwidths else None
        return Row(f"{self.path.stem} {case.label} tok/s", ours, peer, ours / peer, fraction)

    def bandwidth(self) -> float:
        return float(self.meter("bandwidth", threads=self.options.threads, seconds=0.2))

    def bytes_per_token(self, case: Case) -> float:
        """Weights and cache read for a token, on average over the case's steps."""
        window = self.facts["window"] or sys.maxsize
        cached = sum(min(case.depth + i + 1, window) for i in range(case.n)) / case.n
        return weight_bytes(self.path) + cached * float(self.facts["cache_bytes_per_token"])


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that does nothing but keep the last core busy, at this process's own priority."""
    core = max(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def processor() -> str:
    """The CPU's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown(rows: list[Row], engines: list[str], options: argparse.Namespace) -> str:
    """The dated table for bench/results/."""
    lines = [
        f"# phial and llama.cpp, {date.today().isoformat()}",
        "",
        f"{processor()}, {options.threads} of {os.cpu_count()} threads; median of {options.repeat} turns. Command:",
        f"`python bench/engine.py {shlex.join(Path(argument).name for argument in sys.argv[1:])}`",
        "",
        *(f"* {engine}" for engine in engines),
        "",
        "| | phial | llama.cpp | ratio | fraction of the limit |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        limit = "" if row.limit_fraction is None else f"{row.limit_fraction:.2f}"
        lines.append(f"| {row.name} | {row.ours:.1f} | {row.peer:.1f} | {row.ratio:.2f} | {limit} |")
    return "\n".join(lines) + "\n"


def show(rows: list[Row], engines: list[str]) -> None:
    """A table for people, on stdout; the engines' particulars on stderr."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("", "phial", "llama.cpp", "ratio", "of limit", box=box.SIMPLE)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column.header == "" else "right", column.header != ""
    for row in rows:
        limit = "" if row.limit_fraction is None else f"{row.limit_fraction:.0%}"
        table.add_row(row.name, f"{row.ours:.1f}", f"{row.peer:.1f}", f"{row.ratio:.2f}", limit)
    Console().print(table)
    for engine in engines:
        print(engine, file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="phial and llama.cpp side by side, as ratios.")
    default_peers = os.environ.get("PHIAL_PEERS") or Path.home() / ".cache" / "phial-peers"
    parser.add_argument("models", nargs="+", help="GGUF files, or names of models in the store")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for both")
    parser.add_argument("--repeat", type=int, default=5, help="turns each")
    parser.add_argument("--prefill", type=int, nargs="*", default=[64, 512], metavar="N", help="prompt lengths")
    parser.add_argument("--depth", type=int, nargs="*", default=[0, 2048], metavar="N", help="decode behind N tokens")
    parser.add_argument("--sequences", type=int, default=0, metavar="N", help="decode N sequences side by side, too")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--peer-flash-attn", choices=["auto", "on", "off", "best"], default="auto")
    parser.add_argument("--shared-core", action="store_true", help="measure beside a busy loop on one core too (Linux)")
    parser.add_argument(
        "--cache-type", default="f16", choices=["f16", "bf16", "q8_0"], help="phial's; the peer keeps f16"
    )
    parser.add_argument("--kernels", help="kernel set of phial; default: the fastest")
    parser.add_argument("--peers", type=Path, default=default_peers, help="environment made by `make peers`")
    parser.add_argument("--json", action="store_true", help="one row a line: name, ours, peer, ratio, limit_fraction")
    parser.add_argument("--table", type=Path, help="write the dated markdown table here too (bench/results/...)")
    return parser.parse_args()


def warn_if_busy() -> None:
    """Say so when something else is running: the figures are then worth little, the peer's above all."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: other work is running here (load {load:.1f}); the figures will not hold", file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    """Compare on every model and print; raises PhialError for a model that is not there."""
    rows: list[Row] = []
    engines: list[str] = []
    for path in [resolve(name) for name in options.models]:
        with ExitStack() as processes:
            comparison = Comparison(path, options, processes)
            engines = comparison.engines
            for row in comparison.rows():
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True, file=sys.stdout if options.json else sys.stderr)
    if not options.json:
        show(rows, engines)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(markdown(rows, engines, options), "utf-8")


def main() -> None:
    options = parse_arguments()
    warn_if_busy()
    try:
        if not (options.peers / "bin" / "python").exists():
            raise PhialError(f"no llama.cpp environment at {options.peers}", "make peers, or --peers DIRECTORY")
        run(options)
    except PhialError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
