"""One attention layer of phi-3-small on a CPU, dense and block-sparse in turn: seconds of processor time and ratios.

python bench/block_sparse.py [tokens ...]

The layer has the published size (4096 wide, 32 heads of 128, 8 key heads) and random float32 weights; one row of
tokens, forward alone. "attention" leaves the projections out, which both kinds share.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from phial.model.attention import attend
from phial.model.masks import KeyMask
from phial.model.phi3_small import PHI_3_SMALL_8K, SmallAttention
from phial.model.places import token_places
from phial.model.rope import rotary_tables

TURNS = 3
KINDS = {"dense": 1, "sparse": 0}  # the layer that is so


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def measure(n_tokens: int) -> None:
    shape, pattern = PHI_3_SMALL_8K.shape, PHI_3_SMALL_8K.pattern
    places = token_places(torch.zeros(1, n_tokens))
    tables, dense, sparse = rotary_tables(shape, places), KeyMask(places), KeyMask(places, pattern=pattern)
    x = torch.randn(1, n_tokens, shape.n_embd)
    q, k, v = (torch.randn(1, n, n_tokens, shape.head_dim) for n in (shape.n_head, shape.n_head_kv, shape.n_head_kv))
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for kind, layer in KINDS.items():
        module, mask = SmallAttention(PHI_3_SMALL_8K, layer, "sdpa"), dense if kind == "dense" else sparse
        runs["layer", kind] = lambda module=module: module(x, tables, dense, sparse)
        runs["attention", kind] = lambda mask=mask: attend("sdpa", q, k, v, mask, 1 / shape.head_dim)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(TURNS):
        for key, run in runs.items():
            seconds[key].append(cpu_seconds(run))
    read, all_blocks = pattern.blocks_read(n_tokens)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    columns = [f"{n_tokens:6}", f"{read / all_blocks:.2f}"]
    for what in ("attention", "layer"):
        a, b = medians[what, "dense"], medians[what, "sparse"]
        columns.append(f"{a:.2f} s · {b:.2f} s · {b / a:.2f}")
    print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, 1 thread; dense · sparse · ratio, medians of {TURNS} in turn")
    print("| tokens | blocks read | attention | layer |\n|--:|--:|--:|--:|")
    for count in map(int, sys.argv[1:] or ["2048", "4096", "8192"]):
        measure(count)
