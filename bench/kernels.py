"""How near the matrix products come to what this machine can do: `python bench/kernels.py [--kernels SET] [--json]`.

For every quantised type: decode (one token, a matrix far larger than the caches) as GB/s beside the memory bandwidth
read in the same minute, a draft of eight tokens as the price relative to one, and prefill (512 tokens) as 10^12
operations a second beside the rate of the same dot product in registers. Whole models: bench/engine.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

from phial import _native
from phial.gguf.formats import BLOCK_SIZES, GGMLType

ROWS, COLUMNS = 262144, 3072  # Phi-3-mini's width; 260 MB and more: the last-level cache keeps little of it
PREFILL_ROWS = 8192
PASS_SECONDS = 0.4
TYPES = [kind for kind, (elements, _) in BLOCK_SIZES.items() if elements > 1]


def measure(kind: GGMLType, threads: int) -> dict[str, object]:
    """One row of the table; limits are measured right before and after."""

    def seconds(rows: int, tokens: int) -> float:
        return float(_native.matmul_seconds(int(kind), rows, COLUMNS, tokens, threads, PASS_SECONDS))

    elements, size = BLOCK_SIZES[kind]
    read = [_native.read_bandwidth(threads, PASS_SECONDS)]
    one, eight = seconds(ROWS, 1), seconds(ROWS, 8)
    read.append(_native.read_bandwidth(threads, PASS_SECONDS))
    peak = _native.dot_rate(threads, PASS_SECONDS) / 1e3
    prefill = 2 * PREFILL_ROWS * COLUMNS * 512 / seconds(PREFILL_ROWS, 512) / 1e12
    bandwidth = ROWS * COLUMNS / elements * size / one / 1e9
    return {
        "type": kind.name,
        "decode_gb_s": bandwidth,
        "decode_of_limit": bandwidth / max(read),
        "eight_tokens": eight / one,
        "prefill_top_s": prefill,
        "prefill_of_limit": prefill / peak,
        "read_gb_s": max(read),
        "peak_top_s": peak,
    }


def processor() -> str:
    """The CPU's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown(rows: list[dict[str, object]], threads: int) -> str:
    lines = [
        f"# Kernels, {date.today().isoformat()}",
        "",
        f"{processor()}, {_native.current_kernels()}, {threads} of {os.cpu_count()} threads; {COLUMNS} columns.",
        f"Decode: one token against {ROWS} rows, GB/s of the file's bytes. Eight: the time of eight tokens over that",
        "of one. Prefill: 512 tokens. The machine is shared; each limit was read beside its row.",
        "",
        "| type | decode GB/s | of read bandwidth | eight tokens cost | prefill TOP/s | of the dot products' rate |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['type']} | {row['decode_gb_s']:.1f} | {row['decode_of_limit']:.2f} | {row['eight_tokens']:.2f} "
            f"| {row['prefill_top_s']:.2f} | {row['prefill_of_limit']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Matrix products beside the measured limits.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kernels", help="a kernel set of this machine (`phial info`); default: the fastest")
    parser.add_argument("--json", action="store_true", help="one row a line")
    parser.add_argument("--table", type=Path, help="write the dated markdown table here too (bench/results/...)")
    options = parser.parse_args()
    if options.kernels:
        _native.use_kernels(options.kernels)
    rows = []
    for kind in TYPES:
        rows.append(measure(kind, options.threads))
        if options.json:
            print(json.dumps(rows[-1]), flush=True)
        else:
            print(f"{kind.name} done", file=sys.stderr)
    if not options.json:
        print(markdown(rows, options.threads), end="")
    if options.table:
        options.table.write_text(markdown(rows, options.threads), "utf-8")


if __name__ == "__main__":
    main()
