"""The forward step in numpy: the readable truth the compiled core must match, and the fallback where there is none.

One pre-norm decoder describes Phi-3 (arXiv 2404.14219), Llama and Qwen2: RMSNorm, attention with rotary positions,
SwiGLU. All arithmetic is float32. Slow by design: no batching of sequences, no quantised arithmetic, all keys kept.

Shapes: T new tokens, S cached and new tokens, D model width, H query heads, K key heads, C head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_TENSORS, ModelConfig
from phial.errors import ArgumentError
from phial.gguf.blocks import dequantize
from phial.gguf.container import GGUFFile
from phial.gguf.lora import Adapter

F32 = NDArray[np.float32]
_PIECE = 1 << 24  # elements of a matrix multiplied at a time, so that a dequantised piece stays within 64 MiB


class KeyValues(Protocol):
    """The keys and values of one sequence. forward() reads n_past, extends every layer, then raises n_past."""

    n_past: int

    def extend(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        """Put new keys and values, (T, K, C), at positions n_past on; return all up to them, (S, K, C) each."""
        ...


class ReferenceCache:
    """Keys and values of one sequence as growing arrays. n_past: tokens held; lower it to forget the later ones."""

    def __init__(self, config: ModelConfig) -> None:
        self.n_past = 0
        self._arrays: list[F32] = [np.zeros((2, 0, config.n_head_kv, config.head_dim), np.float32)] * config.n_layer

    def extend(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        end = self.n_past + len(keys)
        held = self._arrays[layer]
        if held.shape[1] < end:
            grown = np.zeros((2, max(end, 2 * held.shape[1]), *held.shape[2:]), np.float32)
            grown[:, : self.n_past] = held[:, : self.n_past]
            self._arrays[layer] = held = grown
        held[0, self.n_past : end], held[1, self.n_past : end] = keys, values
        return held[0, :end], held[1, :end]


class GGUFWeights(Mapping[str, F32]):
    """The tensors of a file as float32, dequantised when asked for and kept while they fit into `keep_bytes`."""

    def __init__(self, file: GGUFFile, keep_bytes: int = 1 << 30) -> None:
        self._file, self._room = file, keep_bytes
        self._kept: dict[str, F32] = {}

    def __getitem__(self, name: str) -> F32:
        return self.rows(name, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.tensors)

    def __len__(self) -> int:
        return len(self._file.tensors)

    def rows(self, name: str, chosen: slice | NDArray[np.int64]) -> F32:
        """Some rows of a tensor, without dequantising the others where it is not kept."""
        info = self._file.tensors[name]
        size = 4 * math.prod(info.shape)
        if name not in self._kept and size <= self._room:
            self._room -= size
            self._kept[name] = self._file.dequantized(name)
        if name in self._kept:
            return self._kept[name][chosen]
        data = self._file.data(name).reshape(info.shape[0], -1)[chosen]
        return dequantize(data.reshape(-1), info.type, (len(data), *info.shape[1:]))


class ReferenceModel:
    """A model to run step by step.

    config: as read from the file. weights: float32 arrays by GGUF name, shapes as config.tensor_shapes().
    squares: where it is a dictionary, every product adds the sum of its inputs' squares over the tokens, (columns,).
    adapters: LoRA adapters with their scales, added to the weights; see with_adapters.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, F32]) -> None:
        self.config, self.weights = config, weights
        self.squares: dict[str, NDArray[np.float64]] | None = None
        self.adapters: Sequence[tuple[Adapter, float]] = ()
        self._shapes = config.tensor_shapes()

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> ReferenceModel:
        """The model in an open GGUF file, which must stay open. Raises FormatError as ModelConfig.from_gguf does."""
        rope_tensors = {name: file.dequantized(name) for name in ROPE_TENSORS if name in file.tensors}
        shapes = {name: info.shape for name, info in file.tensors.items()}
        return cls(ModelConfig.from_gguf(file.metadata, shapes, rope_tensors), GGUFWeights(file))

    def with_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> ReferenceModel:
        """The same weights with these LoRA adapters, each times its scale, added."""
        other = copy(self)
        other.adapters = adapters
        return other

    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer],
        cache: KeyValues,
        long: bool,
        all_logits: bool = False,
        hidden: bool = False,
    ) -> F32:
        """Run T tokens after those in the cache and add their keys and values to it.

        long: the LongRoPE factor set. It belongs to the whole sequence (ModelConfig.uses_long of its full length): a
            cache filled with one set must not be extended with the other; start over with an empty cache.
        Returns logits of the last token, (n_vocab,); with all_logits of each token, (T, n_vocab); with hidden the
        states after the final norm instead, (T, D). Raises ArgumentError for no tokens or an id outside the vocabulary.
        """
        ids = self._checked(tokens)
        x_TD = self._rows("token_embd.weight", ids).astype(np.float32)
        cos, sin = self._angles(cache.n_past, len(ids), long)
        for layer in range(self.config.n_layer):
            x_TD += self._attention(layer, self._norm(x_TD, f"blk.{layer}.attn_norm"), cache, cos, sin)
            x_TD += self._swiglu(layer, self._norm(x_TD, f"blk.{layer}.ffn_norm"))
        cache.n_past += len(ids)
        if hidden:
            return self._norm(x_TD, "output_norm")
        x_TD = self._norm(x_TD if all_logits else x_TD[-1:], "output_norm")
        logits = self._linear(x_TD, "output")
        return logits if all_logits else logits[0]

    def _checked(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if not ids.size:
            raise ArgumentError("there are no tokens to run", "pass at least one")
        if ids.min() < 0 or ids.max() >= self.config.n_vocab:
            wrong = ids[(ids < 0) | (ids >= self.config.n_vocab)][0]
            raise ArgumentError(f"token id {wrong} is outside the vocabulary of {self.config.n_vocab}")
        return ids

    def _rows(self, name: str, chosen: slice | NDArray[np.int64]) -> F32:
        weights = self.weights
        return weights.rows(name, chosen) if isinstance(weights, GGUFWeights) else weights[name][chosen]

    def _linear(self, x: F32, name: str) -> F32:
        """x W^T + b: (T, columns) to (T, rows), a piece of the rows at a time."""
        stored = "token_embd" if name == "output" and self.config.tie_embeddings else name
        if self.squares is not None:
            found = np.square(x, dtype=np.float64).sum(axis=0)
            self.squares[f"{stored}.weight"] = self.squares.get(f"{stored}.weight", 0.0) + found
        step = max(1, _PIECE // x.shape[1])
        starts = range(0, self._shapes[f"{stored}.weight"][0], step)
        pieces = [x @ self._rows(f"{stored}.weight", slice(i, i + step)).T for i in starts]
        y = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        for adapter, scale in self.adapters:
            if (delta := adapter.deltas.get(f"{name}.weight")) is not None:
                y = y + np.float32(scale) * (x @ delta.a.T @ delta.b.T)
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def _norm(self, x: F32, name: str) -> F32:
        scale: F32 = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config.rms_norm_eps))
        return x / scale * self.weights[f"{name}.weight"]

    def _angles(self, n_past: int, n: int, long: bool) -> tuple[F32, F32]:
        """cos and sin of n positions from n_past on, (T, 1, rope_dim/2), times the attention factor."""
        positions = np.arange(n_past, n_past + n, dtype=np.float32)
        angles = positions[:, None, None] * self.config.inv_freq(long)
        factor = np.float32(self.config.rope_attn_factor)
        return np.cos(angles) * factor, np.sin(angles) * factor

    def _attention(self, layer: int, x_TD: F32, cache: KeyValues, cos: F32, sin: F32) -> F32:
        q, k, v = self._queries_keys_values(layer, x_TD)
        keys, values = cache.extend(layer, rotate_pairs(k, cos, sin, self.config.rope_interleaved), v)
        q = rotate_pairs(q, cos, sin, self.config.rope_interleaved) / np.float32(math.sqrt(self.config.head_dim))
        hidden = self._hidden_keys(cache.n_past, len(x_TD))
        group = self.config.n_head // self.config.n_head_kv
        out = np.empty_like(q)
        for head in range(self.config.n_head):
            scores = q[:, head] @ keys[:, head // group].T  # (T, S)
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ values[:, head // group]
        return self._linear(out.reshape(len(x_TD), -1), f"blk.{layer}.attn_output")

    def _hidden_keys(self, n_past: int, n: int) -> NDArray[np.bool_]:
        """Which keys each new query must not see, (T, S): later ones, and those a window's width or more before it."""
        query, key = np.arange(n_past, n_past + n)[:, None], np.arange(n_past + n)[None, :]
        hidden = key > query
        if self.config.sliding_window is not None:  # Hugging Face's rule: `window` keys, the query's own among them
            hidden |= key <= query - self.config.sliding_window
        return hidden

    def _queries_keys_values(self, layer: int, x_TD: F32) -> tuple[F32, F32, F32]:
        """q (T, H, C), k and v (T, K, C), not yet rotated."""
        config = self.config
        n_q, n_kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        if config.architecture == "phi3":
            q, k, v = np.split(self._linear(x_TD, f"blk.{layer}.attn_qkv"), [n_q, n_q + n_kv], axis=1)
        else:
            q, k, v = (self._linear(x_TD, f"blk.{layer}.attn_{name}") for name in "qkv")
        q, k, v = (y.reshape(len(x_TD), -1, config.head_dim) for y in (q, k, v))
        return q, k, v

    def _swiglu(self, layer: int, x_TD: F32) -> F32:
        if self.config.architecture == "phi3":  # one matrix, the gate's rows first
            gate, up = np.split(self._linear(x_TD, f"blk.{layer}.ffn_up"), 2, axis=1)
        else:
            gate, up = self._linear(x_TD, f"blk.{layer}.ffn_gate"), self._linear(x_TD, f"blk.{layer}.ffn_up")
        half = np.float32(0.5)
        silu = gate * (half + half * np.tanh(half * gate))  # gate * sigmoid(gate) without overflow
        return self._linear(silu * up, f"blk.{layer}.ffn_down")


def rotate_pairs(x: F32, cos: F32, sin: F32, interleaved: bool) -> F32:
    """Rotate the pairs of the first dimensions of each head; x: (T, heads, C), cos and sin: (T, 1, pairs)."""
    dim = 2 * cos.shape[-1]
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(dim // 2), slice(dim // 2, dim))
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
    return y
