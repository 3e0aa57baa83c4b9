"""Attention by strips of queries, forwards and backwards, for training on a CPU.

A strip's scores are one matrix product that stays in the cache, over the keys from the first that any of its queries
sees: none after the strip, none of documents that ended before it. For the backward pass weights are kept of short
rows, where they are small beside what else is kept, and made anew of long ones, so that memory does not grow with T^2.
PyTorch's fused kernel on CPUs skips nothing under a mask and takes twice as long in bfloat16 (docs/LOG.md, 2026-11-25).

Shapes: B rows, H query heads, K key heads, G = H / K, T tokens, C head width; t queries and s keys of a strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT = 512  # tokens in a row of which weights are kept
STRIP = 64  # queries; longer strips compute more that is masked, shorter ones are too little work for a call


class Strip(NamedTuple):
    """Queries that are next to each other, the keys they need, and what is added to scores: 0 or -inf.

    bias: (B or 1, 1, t, s) float32.
    """

    queries: slice
    keys: slice
    bias: Tensor


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, strips: Sequence[Strip], scale: float) -> Tensor:
    """plain_attention, strip by strip. q: (B, H, T, C). k, v: (B, K, T, C). Scores are rounded to the type of q."""
    out: Tensor = _Blockwise.apply(q, k, v, strips, scale)  # type: ignore[no-untyped-call]
    return out


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, strips: Sequence[Strip], scale: float) -> Tensor:
        n_rows, n_head, n_tokens, width = q.shape
        q, k, v = _by_key_head(q, k), k.flatten(0, 1), v.flatten(0, 1)
        out = q.new_empty(n_rows, n_tokens, n_head, width).transpose(1, 2)  # the order in which heads are joined
        kept = []
        for strip in strips:
            weights = _weights(q, k, strip, scale)
            if n_tokens <= KEPT:
                kept.append(weights)
            out[:, :, strip.queries] = (weights @ v[:, strip.keys]).view(n_rows, n_head, -1, width)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.strips, ctx.scale = strips, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        n_rows, n_head, n_tokens, width = by_out.shape
        by_out = by_out.reshape(q.shape)
        by_q, by_k, by_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, strip in enumerate(ctx.strips):
            weights = kept[i] if kept else _weights(q, k, strip, ctx.scale)
            by_strip = by_out[:, :, strip.queries].flatten(1, 2)
            by_v[:, strip.keys] += weights.mT @ by_strip
            by_weights = by_strip @ v[:, strip.keys].mT
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            by_q[:, :, strip.queries] = (by_scores @ k[:, strip.keys]).unflatten(1, (q.shape[1], -1))
            by_k[:, strip.keys] += by_scores.mT @ q[:, :, strip.queries].flatten(1, 2)
        rows_of_keys = (n_rows, -1, n_tokens, width)
        return by_q.view(n_rows, n_head, n_tokens, width), by_k.view(rows_of_keys), by_v.view(rows_of_keys), None, None


def _by_key_head(q: Tensor, k: Tensor) -> Tensor:
    """Queries (B * K, G, T, C): those of one key head are one matrix, and no key is repeated."""
    return q.reshape(len(q) * k.shape[1], -1, *q.shape[2:])


def _weights(q: Tensor, k: Tensor, strip: Strip, scale: float) -> Tensor:
    """What each of a strip's queries takes of each key: (B * K, G * t, s); softmax in float32."""
    scores = (q[:, :, strip.queries].flatten(1, 2) @ k[:, strip.keys].mT).float().mul_(scale)
    scores.view(len(strip.bias), -1, *strip.bias.shape[2:]).add_(strip.bias)
    return scores.softmax(-1).to(q.dtype)
