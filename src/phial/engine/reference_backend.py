"""The numpy forward as a backend: the same pages and cache types as the compiled core, at a fraction of the speed.

Keys and values are stored rounded to the cache type, so that a q8_0 cache means the same as in the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.config import ModelConfig
from phial.engine.backend import Step, Want
from phial.engine.reference import ReferenceModel, rotate_pairs
from phial.gguf.blocks import dequantize, quantize
from phial.gguf.container import read_gguf
from phial.gguf.formats import GGMLType, n_bytes
from phial.gguf.lora import Adapter

F32 = NDArray[np.float32]
PAGE_TOKENS = 64


class ReferencePages:
    """Pages as byte arrays (layer, key or value, token, bytes of all heads in blocks of the cache type)."""

    page_tokens = PAGE_TOKENS

    def __init__(self, config: ModelConfig, cache_type: str) -> None:
        self.type = GGMLType[cache_type.upper()]
        padded = -(-config.head_dim // 32) * 32 if self.type == GGMLType.Q8_0 else config.head_dim
        self._interleaved = config.rope_interleaved
        self.heads, self.head_dim, self._padded = config.n_head_kv, config.head_dim, padded
        self._shape = (config.n_layer, 2, PAGE_TOKENS, n_bytes(self.type, (config.n_head_kv, padded)))
        self.page_bytes = int(np.prod(self._shape))
        self._pages: dict[int, NDArray[np.uint8]] = {}
        self._next = 0

    def new_page(self) -> int:
        self._next += 1
        self._pages[self._next] = np.zeros(self._shape, np.uint8)
        return self._next

    def free_page(self, page: int, /) -> None:
        del self._pages[page]

    def copy_page(self, source: int, target: int, /) -> None:
        self._pages[target][:] = self._pages[source]

    def read_page(self, page: int, /) -> bytes:
        return self._pages[page].tobytes()

    def write_page(self, page: int, data: bytes, /) -> None:
        self._pages[page][:] = np.frombuffer(data, np.uint8).reshape(self._shape)

    def rotate_keys(self, page: int, cos: F32, sin: F32, /) -> None:
        """Turn every key of a page, slot by slot; cos, sin: (PAGE_TOKENS, rope_dim/2)."""
        for layer in range(self._shape[0]):
            keys, values = self.load([page], layer, PAGE_TOKENS)
            turned = rotate_pairs(keys, cos[:, None], sin[:, None], self._interleaved)
            self.store(page, layer, 0, np.stack([turned, values]))

    def store(self, page: int, layer: int, slot: int, rows: F32) -> None:
        """Write keys and values (2, T, heads, head_dim) of one layer at slots slot, slot + 1, … of a page."""
        padded = np.zeros((*rows.shape[:-1], self._padded), np.float32)
        padded[..., : self.head_dim] = rows
        blocks = quantize(padded.reshape(-1, self._padded), self.type)
        self._pages[page][layer, :, slot : slot + rows.shape[1]] = blocks.reshape(2, rows.shape[1], -1)

    def load(self, pages: Sequence[int], layer: int, n: int) -> F32:
        """Return the first n keys and values of these pages, (2, n, heads, head_dim)."""
        blocks = np.concatenate([self._pages[page][layer] for page in pages], axis=1)[:, :n]
        rows = (2 * n * self.heads, self._padded)
        values = dequantize(np.ascontiguousarray(blocks).reshape(-1), self.type, rows)
        return values.reshape(2, n, self.heads, self._padded)[..., : self.head_dim]


class _Sequence:
    """One sequence's pages in the form ReferenceModel.forward wants (KeyValues)."""

    def __init__(self, pages: ReferencePages, step: Step) -> None:
        self._store, self._ids, self.n_past = pages, step.pages, step.n_past

    def extend(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        new, end = np.stack([keys, values]), self.n_past + len(keys)
        for start in range(self.n_past, end):
            if start == self.n_past or start % PAGE_TOKENS == 0:
                stop = min(end, (start // PAGE_TOKENS + 1) * PAGE_TOKENS)
                rows = new[:, start - self.n_past : stop - self.n_past]
                self._store.store(self._ids[start // PAGE_TOKENS], layer, start % PAGE_TOKENS, rows)
        held = self._store.load(self._ids[: -(-end // PAGE_TOKENS)], layer, end)
        return held[0], held[1]


class ReferenceBackend:
    """A model run by numpy. Weights are dequantised from the mapped file, which stays open."""

    name = "reference"
    kernel_set = "numpy"
    batch_invariant = False  # numpy multiplies one row and several by different routines

    def __init__(self, path: Path, config: ModelConfig, cache_type: str) -> None:
        self._file = read_gguf(path)
        self._model = ReferenceModel.from_gguf(self._file)
        self.store = ReferencePages(config, cache_type)
        self._adapters: dict[int, Adapter] = {}

    def load_adapter(self, adapter: Adapter, number: int) -> None:
        """Hold an adapter under this number."""
        self._adapters[number] = adapter

    def forward(self, steps: Sequence[Step], want: Want) -> F32:
        """Run the sequences one after the other; see Want for what comes back."""
        results = []
        for step in steps:
            sequence = _Sequence(self.store, step)
            everything, hidden = want == Want.ALL, want == Want.HIDDEN
            adapters = [(self._adapters[adapter.number], scale) for adapter, scale in step.adapters]
            model = self._model.with_adapters(adapters) if adapters else self._model
            out = model.forward(step.tokens, sequence, step.long, all_logits=everything, hidden=hidden)
            results.append(np.atleast_2d(out)[: 0 if want == Want.NOTHING else None])
        return np.concatenate(results)

    def collect(self, on: bool) -> None:
        """Begin to sum the squares of every product's inputs, or stop; see Backend."""
        self._model.squares = {} if on else None

    def squares(self) -> dict[str, NDArray[np.float64]]:
        """The sums by the weight's name."""
        return dict(self._model.squares or {})

    def close(self) -> None:
        """Free weights and pages, and let go of the file."""
        self._file.close()
        del self._model, self.store
