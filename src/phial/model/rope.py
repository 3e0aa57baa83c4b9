"""Rotary positions and LongRoPE (arXiv 2402.13753) in PyTorch: tables of cos and sin in float32, and the rotation.

A sequence owns one factor set, chosen from its own length: rows of a batch and documents packed into a row may differ,
and neither padding nor a longer neighbour changes one. The frequencies are ModelConfig.inv_freq's, the same the engine
uses. Left out: searching for factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    dim = 2 * cos.shape[-1]
    turning, rest = x[..., :dim].float(), x[..., dim:]
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat((joined.to(x.dtype), rest), dim=-1)
