"""What each recipe of `phial quantize` costs in perplexity, with an importance matrix and without.

    python bench/quantize_perplexity.py f32.gguf calibration.txt evaluation.txt --peers ~/.cache/phial-peers

The matrix is measured once on the calibration text. Each file is then compared with the source over the evaluation
text, token by token: perplexity, and KL divergence from the source. With --peers llama.cpp's own quantiser makes the
same files from the same source and matrix; all are measured by phial's engine, so only the quantising differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer_quantizer import quantize_file

from phial.gguf.imatrix import load
from phial.gguf.mixes import RECIPES


def phial(*arguments: object) -> Any:
    """Run a command; its JSON, if it prints any."""
    command = [sys.executable, "-m", "phial", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def measured(model: Path, text: Path, base: Path, options: list[object]) -> list[str]:
    """Table cells: perplexity and mean KL divergence with their errors, and the same top token."""
    found = phial("perplexity", text, "-m", model, "--kld", base, "--json", *options)
    ratio, kl, top = found["log_ratio"], found["kl"], found["same_top"]
    change = 100 * ratio["value"]
    return [
        f"{found['perplexity']['value']:.3f}",
        f"{change:+.2f} ± {100 * ratio['error']:.2f}",
        f"{kl['value']:.5f} ± {kl['error']:.5f}",
        f"{100 * top['value']:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of every recipe, with a matrix and without.")
    parser.add_argument("source", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--peers", type=Path, help="environment with llama-cpp-python")
    parser.add_argument("--windows", type=int, help="of 512 tokens; the whole text")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    options: list[object] = ["--threads", arguments.threads]
    options += ["--windows", arguments.windows] if arguments.windows else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, matrix, target = folder / "base", folder / "matrix.gguf", folder / "model.gguf"
        phial("perplexity", arguments.evaluation, "-m", arguments.source, "--save-base", base, "--json", *options)
        threads = ["--threads", arguments.threads]
        calibrate = ["--calibrate", arguments.calibration, "--save-imatrix", matrix]
        phial("quantize", arguments.source, target, "--type", "Q8_0", *calibrate, *threads)
        print(f"{arguments.source.name}: matrix of {load(matrix).chunk_count} chunks; quantised against the source\n")
        print("| type | MB | matrix | by | perplexity | change, % | KL mean | same top, % |", flush=True)
        print("|---|--:|---|---|--:|--:|--:|--:|", flush=True)
        for recipe in arguments.recipes.split(","):
            for with_matrix in (False, True):
                given = ["--imatrix", matrix] if with_matrix else []
                phial("quantize", arguments.source, target, "--type", recipe, *given, *threads)
                row(recipe, target, with_matrix, "phial", measured(target, arguments.evaluation, base, options))
                if arguments.peers:
                    quantize_file(
                        arguments.peers,
                        arguments.source,
                        target,
                        RECIPES[recipe].file_type,
                        arguments.threads,
                        matrix if with_matrix else None,
                    )
                    cells = measured(target, arguments.evaluation, base, options)
                    row(recipe, target, with_matrix, "llama.cpp", cells)


def row(recipe: str, path: Path, matrix: bool, by: str, cells: list[str]) -> None:
    """One line of the table."""
    size = f"{path.stat().st_size / 1e6:.1f}"
    print("| " + " | ".join([recipe, size, "yes" if matrix else "no", by, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
