"""Rotary positions and LongRoPE (arXiv 2402.13753) in PyTorch: tables of cos and sin in float32, and the rotation.

A sequence owns one factor set, chosen from its own length: rows of a batch and documents packed into a row may differ,
and neither padding nor a longer neighbour changes one. The frequencies are ModelConfig.inv_freq's, the same the engine
uses. Left out: searching for factors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phial.config import ModelConfig
from phial.model.places import Places

Tables = tuple[Tensor, Tensor]


def rotary_tables(config: ModelConfig, places: Places) -> Tables:
    """cos and sin, each (B, 1, T, rope_dim/2) float32, times the attention factor; B is 1 where all rows are alike.

    A sequence longer than rope_original_context takes the long factors.
    """
    device = places.positions.device
    inv_freq = torch.from_numpy(config.inv_freq(long=False)).to(device)
    if config.rope_long_factors is not None:
        long = places.lengths[..., None] > config.rope_original_context
        inv_freq = torch.where(long, torch.from_numpy(config.inv_freq(long=True)).to(device), inv_freq)
    angles = (places.positions[..., None].float() * inv_freq)[:, None]
    return angles.cos() * config.rope_attn_factor, angles.sin() * config.rope_attn_factor


def rotate(x: Tensor, tables: Tables, interleaved: bool = False) -> Tensor:
    """Rotate the pairs of the first rope_dim dimensions of each head; the others pass through.

    x: (B, heads, T, head_dim). Pairs are (i, i + rope_dim/2), or neighbours where interleaved. Computed in float32,
    because bfloat16 tables blur positions beyond a few hundred; returned in the type of x.
    """
    cos, sin = tables
    if torch.compiler.is_compiling():
        return _turn(x, cos, sin, interleaved)
    turned: Tensor = _Turn.apply(x, cos, sin, interleaved)  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """The way back of a rotation is the rotation the other way, so nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_turned: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(by_turned, cos, -sin, ctx.interleaved), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    dim = 2 * cos.shape[-1]
    given = x.float()
    turned = torch.empty_like(given)
    turned[..., dim:] = given[..., dim:]
    (a, b), (to_a, to_b) = (_pairs(y[..., :dim], interleaved) for y in (given, turned))
    to_a.copy_(a * cos).addcmul_(b, sin, value=-1)
    to_b.copy_(b * cos).addcmul_(a, sin)
    return turned.to(x.dtype)


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2  # slices, because compilers do not let parts of a chunk() be written
    return x[..., :half], x[..., half:]
