"""How much memory a model will take, known from its file's header before anything is loaded.

Counted is the peak of the whole process: weights as the backend packs them, cache pages for a full context, buffers of
a step, and what Python, its libraries and the vocabulary need. Not counted: logits that a caller collects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phial.config import ROPE_TENSORS, ModelConfig
from phial.engine.cache import check_cache_type
from phial.engine.model_file import read_config
from phial.engine.session import BATCH_TOKENS
from phial.errors import ArgumentError
from phial.gguf.container import GGUFFile, TensorInfo, read_gguf
from phial.gguf.formats import BLOCK_SIZES, GGMLType

PAGE_TOKENS = 64
_TILE_ROWS = 16  # the core packs matrices in tiles of 16 rows
# Bytes of 16 rows' blocks in a tile, where packing changes the size: 6-bit scales become bytes.
_PACKED = {GGMLType.Q2_K: 1600, GGMLType.Q3_K: 1856, GGMLType.Q4_K: 2368, GGMLType.Q5_K: 2880, GGMLType.Q6_K: 3392}
_REFERENCE_WEIGHTS = 1 << 30  # what the reference keeps dequantised at most
_PROCESS = 42 << 20  # Python and numpy, measured
_VOCABULARY_ENTRY = {"llama": 550, "gpt2": 1000}  # bytes per token of the header's lists and the tokenizer, measured


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak.

    Attributes:
        weights: the model's tensors in memory.
        cache: keys and values of a full context.
        compute: buffers of a forward step.
        process: Python, libraries and the vocabulary.
        loading: what loading needs for a moment beyond weights and process, as the mapped tensor being packed.
    """

    weights: int
    cache: int
    compute: int
    process: int
    loading: int

    @property
    def total(self) -> int:
        """The peak: loading is over before cache and compute grow."""
        return self.weights + self.process + max(self.loading, self.cache + self.compute)


def memory_estimate(
    path: str | Path, n_ctx: int, cache_type: str = "f16", *, backend: str = "native", n_threads: int = 1
) -> MemoryEstimate:
    """Estimate the memory for a model file and a context of n_ctx tokens, reading the header only.

    Raises FormatError where the file is damaged or not supported, ArgumentError for a bad argument.
    """
    check_cache_type(cache_type)
    if n_ctx < 1:
        raise ArgumentError(f"n_ctx is {n_ctx}", "use at least 1")
    if backend not in ("native", "reference"):
        raise ArgumentError(f"backend is {backend!r}", "use native or reference")
    with read_gguf(path) as file:
        return estimate_for(file, read_config(file), n_ctx, cache_type, backend, n_threads)


def estimate_for(
    file: GGUFFile, config: ModelConfig, n_ctx: int, cache_type: str, backend: str, n_threads: int
) -> MemoryEstimate:
    """Return the estimate for an open file; see memory_estimate."""
    tensors = [info for name, info in file.tensors.items() if name not in ROPE_TENSORS]
    page = PAGE_TOKENS * config.kv_bytes_per_token(cache_type)
    cache = -(-n_ctx // PAGE_TOKENS) * page
    process = _PROCESS + _VOCABULARY_ENTRY.get(str(file.metadata.get("tokenizer.ggml.model")), 1000) * config.n_vocab
    compute = _step_bytes(config, min(n_ctx, BATCH_TOKENS), n_threads)
    if backend == "reference":
        mapped = sum(info.n_bytes for info in tensors)
        return MemoryEstimate(mapped + min(_REFERENCE_WEIGHTS, 4 * config.n_params()), cache, 2 * compute, process, 0)
    weights = peak = 0
    for info in tensors:
        weights += sum(_packed_bytes(info.type, rows, info.shape[-1]) for rows in _matrices(info, config))
        peak = max(peak, weights + info.n_bytes)
    return MemoryEstimate(weights, cache, compute, process, peak - weights)


def available_memory() -> int | None:
    """Return the bytes this process may still take, within its container's limit; None where nobody says."""
    free = []
    try:
        text = Path("/proc/meminfo").read_text()
        free.append(next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    return max(0, min(free)) if free else None


def _matrices(info: TensorInfo, config: ModelConfig) -> Iterator[int]:
    """Rows of the matrices a tensor is packed into: phi3's ffn_up holds two, vectors none."""
    if len(info.shape) == 2:
        halves = 2 if info.name.endswith("ffn_up.weight") and info.shape[0] == 2 * config.n_ff else 1
        yield from [info.shape[0] // halves] * halves


def _packed_bytes(kind: GGMLType, rows: int, columns: int) -> int:
    elements, size = BLOCK_SIZES[kind]
    tile = _PACKED.get(kind, _TILE_ROWS * size) * (columns // elements)
    return -(-tile // 64) * 64 * -(-rows // _TILE_ROWS)


def _step_bytes(config: ModelConfig, n: int, n_threads: int) -> int:
    """Buffers of the largest step, n tokens: float activations, their int8 form, and each thread's unpacked panels."""
    heads = config.n_head * config.head_dim
    widest = max(config.n_embd, heads, config.n_ff)
    qkv = heads + 2 * config.n_head_kv * config.head_dim
    floats = n * (config.n_embd + qkv + heads + config.n_ff + config.rope_dim + 2 * widest) + config.n_vocab
    return 4 * floats + n_threads * 2 * widest * _TILE_ROWS * 6
