"""phial's quantiser and llama.cpp's side by side: `python bench/quantize.py` (needs `make peers`).

By default tensor by tensor: the weighted root mean square error each leaves, and the processor time it takes, both on
one thread, in turns (A B A B ...), medians. With --file RECIPE ... whole files: a Phi-3-mini-shaped F16 file (7.6 GB in
the temporary folder, removed afterwards) is quantised by `phial quantize` and by llama.cpp's llama_model_quantize with
the same importance matrix. What the types do to a model's answers is quantize_perplexity.py's to say.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from peer_quantizer import PEERS, PeerQuantizer, quantize_file

from phial.gguf.blocks import dequantize
from phial.gguf.container import GGUFFile, read_gguf
from phial.gguf.formats import FORMATS, GGMLType
from phial.gguf.imatrix import ImportanceMatrix, save
from phial.gguf.mixes import RECIPES
from phial.gguf.scale_search import encode
from phial.hub import stored_path

Floats = NDArray[np.float32]
Quantizer = Callable[[Floats, GGMLType, Floats | None], NDArray[np.uint8]]
ORDER = "Q8_0 Q6_K Q5_K Q4_K Q3_K Q2_K Q5_1 Q5_0 Q4_1 Q4_0".split()


def made_up(rng: np.random.Generator, rows: int, columns: int) -> Iterator[tuple[str, Floats]]:
    """Tensors of standard deviation near 0.02 with tails of three kinds."""
    shape = (rows, columns)
    draws = {"normal": rng.standard_normal(shape), "laplace": rng.laplace(size=shape), "t(3)": rng.standard_t(3, shape)}
    yield from ((f"{name} × {columns}", (draw * 0.02).astype(np.float32)) for name, draw in draws.items())


def real(rng: np.random.Generator, rows: int) -> Iterator[tuple[str, Floats]]:
    """SmolLM2's ffn_down of three layers; noise of one step's width stands for what rounding to Q4_1 took from it."""
    path = stored_path("smollm2-135m")
    if path is None:
        return
    with read_gguf(path) as file:
        layers = [dithered(file, f"blk.{layer}.ffn_down.weight", rng) for layer in (2, 12, 25)]
    yield "SmolLM2 ffn_down", np.concatenate(layers)[:: max(1, 3 * 576 // rows)].copy()


def dithered(file: GGUFFile, name: str, rng: np.random.Generator) -> Floats:
    values = file.dequantized(name)
    steps = file.data(name).view(FORMATS[GGMLType.Q4_1].block)["d"].astype(np.float32).reshape(len(values), -1)
    noise = rng.uniform(-0.5, 0.5, values.shape).astype(np.float32)
    return values + noise * np.repeat(steps, 32, axis=1)


def importances(rng: np.random.Generator, columns: int) -> Floats:
    """Log-normal, one column in a hundred a hundred times larger: as uneven as measured ones."""
    weights = np.exp(1.5 * rng.standard_normal(columns))
    weights[rng.integers(0, columns, columns // 100)] *= 100
    return weights.astype(np.float32)


def rmse(x: Floats, data: NDArray[np.uint8], type: GGMLType, importance: Floats | None) -> float:
    squares = (dequantize(data, type, x.shape) - x).astype(np.float64) ** 2
    return float(np.sqrt(np.average(squares.mean(axis=0), weights=importance)))


def compare(quantizers: list[Quantizer], x: Floats, type: GGMLType, importance: Floats | None, turns: int) -> list[str]:
    """Cells: the ratio of the errors, nanoseconds of processor time per weight of each, their ratio."""
    errors = [rmse(x, quantizer(x, type, importance), type, importance) for quantizer in quantizers]
    seconds: list[list[float]] = [[], []]
    for _ in range(turns):
        for quantizer, seen in zip(quantizers, seconds, strict=True):
            start = time.process_time()
            quantizer(x, type, importance)
            seen.append(time.process_time() - start)
    ours, theirs = (median(seen) / x.size * 1e9 for seen in seconds)
    return [f"{errors[0] / errors[1]:.3f}", f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"]


def tensors(options: argparse.Namespace) -> Iterator[str]:
    """The table of all types and tensors, line by line."""
    rng, peer = np.random.default_rng(options.seed), PeerQuantizer(options.peers)
    cases = [case for columns in options.columns for case in made_up(rng, options.rows, columns)]
    cases += real(rng, options.rows)
    weights = {columns: importances(rng, columns) for columns in {x.shape[1] for _, x in cases}}
    yield f"llama-cpp-python {peer.version}; {options.rows} rows; error and time are phial's over llama.cpp's\n"
    yield "| type | tensor | error | ns | theirs | time | error, weighted | ns | theirs | time |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    both: list[Quantizer] = [lambda x, type, importance: encode(x, type, importance, n_threads=1), peer]
    for type in options.types:
        for name, x in cases:
            cells = [compare(both, x, GGMLType[type], w, options.turns) for w in (None, weights[x.shape[1]])]
            yield "| " + " | ".join([type, name, *cells[0], *cells[1]]) + " |"


def random_matrix(path: Path, source: Path, seed: int) -> Path:
    """An importance matrix of made-up weights for every matrix of a file."""
    rng = np.random.default_rng(seed)
    matrix = ImportanceMatrix(["made up"], chunk_size=1, chunk_count=1)
    with read_gguf(source) as file:
        for name, info in file.tensors.items():
            if len(info.shape) > 1:
                matrix.sums[name], matrix.counts[name] = importances(rng, info.shape[-1]), 1.0
    save(matrix, path)
    return path


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a run of child processes: by the clock, and of processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def files(options: argparse.Namespace) -> Iterator[str]:
    """The table of whole files, line by line."""
    yield f"F16 of Phi-3-mini's shape, {options.threads} threads; seconds by the clock (of processors)\n"
    yield "| recipe | matrix | phial | llama.cpp | ratio | processors | GB |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    maker = Path(__file__).with_name("make_random_gguf.py")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target = Path(name) / "f16.gguf", Path(name) / "out.gguf"
        subprocess.run([sys.executable, str(maker), "f16", str(source)], check=True, stdout=subprocess.DEVNULL)
        matrix = random_matrix(Path(name) / "matrix.gguf", source, options.seed)
        for recipe in options.file:
            for given in (None, matrix):
                cells = file_cells(options, recipe, source, target, given)
                yield "| " + " | ".join([recipe, "yes" if given else "no", *cells]) + " |"


def file_cells(options: argparse.Namespace, recipe: str, source: Path, target: Path, matrix: Path | None) -> list[str]:
    command = [sys.executable, "-m", "phial", "quantize", source, target, "--type", recipe]
    command += ["--threads", options.threads, *(["--imatrix", matrix] if matrix else [])]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runs: list[Callable[[], object]] = [
        lambda: subprocess.run(list(map(str, command)), **quiet),  # type: ignore[call-overload]
        lambda: quantize_file(options.peers, source, target, RECIPES[recipe].file_type, options.threads, matrix),
    ]
    seconds: list[list[tuple[float, float]]] = [[], []]
    for _ in range(options.turns):
        for run, seen in zip(runs, seconds, strict=True):
            target.unlink(missing_ok=True)
            seen.append(timed(run))
    (ours, ours_cpu), (theirs, theirs_cpu) = (map(median, zip(*seen, strict=True)) for seen in seconds)
    size = target.stat().st_size / 1e9
    return [
        f"{ours:.1f} ({ours_cpu:.1f})", f"{theirs:.1f} ({theirs_cpu:.1f})", f"{ours / theirs:.2f}",
        f"{ours_cpu / theirs_cpu:.2f}", f"{size:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="phial's quantiser and llama.cpp's side by side.")
    parser.add_argument("--types", nargs="+", default=ORDER, choices=ORDER)
    parser.add_argument("--columns", nargs="+", type=int, default=[3072, 8192])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--file", nargs="+", metavar="RECIPE", help="whole files instead, by these recipes")
    parser.add_argument("--threads", type=int, default=2, help="for whole files")
    parser.add_argument("--folder", type=Path, help="where the whole files go: 12 GB")
    options = parser.parse_args()
    for line in files(options) if options.file else tensors(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
