"""Rotary positions and LongRoPE (arXiv 2402.13753) in PyTorch: tables of cos and sin in float32, and the rotation.

A sequence owns one factor set, chosen from its own length: rows of a batch may differ, and neither padding nor a longer
neighbour changes a row. The frequencies are ModelConfig.inv_freq's, the same the engine uses.
Left out: searching for factors, and positions that do not count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phial.config import ModelConfig
from phial.errors import ArgumentError

Tables = tuple[Tensor, Tensor]


def rotary_tables(config: ModelConfig, lengths: Sequence[int], n_positions: int, device: torch.device) -> Tables:
    """cos and sin, each (B, 1, n_positions, rope_dim/2) float32, times the attention factor.

    lengths: tokens of each row, without padding; a row beyond rope_original_context takes the long factors. B is
    len(lengths), or 1 to broadcast where all rows use the same set. Raises ArgumentError for a length outside
    1..n_positions.
    """
    for row, length in enumerate(lengths):
        if not 1 <= length <= n_positions:
            raise ArgumentError(f"length {length} of row {row} lies outside 1 to {n_positions}, the tokens given")
    long = [config.uses_long(length) for length in lengths]
    if len(set(long)) == 1:
        long = long[:1]
    sets = {wanted: torch.from_numpy(config.inv_freq(wanted)).to(device) for wanted in set(long)}
    inv_freq = torch.stack([sets[wanted] for wanted in long])[:, None, None, :]
    angles = torch.arange(n_positions, dtype=torch.float32, device=device)[:, None] * inv_freq
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
