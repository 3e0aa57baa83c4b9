"""Ways to compute attention: written out, by PyTorch's fused kernels, by FlexAttention, by strips of queries, over
phi-3-small's blocks.

Shapes: B rows, T tokens, H query heads, K key heads, C head width. Key head j serves query heads j*H/K and on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from phial.errors import ArgumentError
from phial.model.blockwise import blockwise_attention
from phial.model.masks import KeyMask
from phial.model.sparse import block_sparse_attention

ATTENTION_PATHS = ("auto", "sdpa", "flex", "blockwise", "plain")
_FLEX_BLOCK = 128  # shorter rows have no block to skip
_FLEX_NARROWEST = 16


def attend(path: str, q: Tensor, k: Tensor, v: Tensor, mask: KeyMask, scale: float) -> Tensor:
    """Attention by one of ATTENTION_PATHS.

    q: (B, H, T, C). k, v: (B, K, T, C). Returns (B, H, T, C). "auto" is FlexAttention for masks on a GPU, strips in
    training on a CPU, else "sdpa": the fused kernels, or the pattern's blocks where there is one. Raises ArgumentError
    where FlexAttention would have to give gradients on a CPU.
    """
    learning = torch.is_grad_enabled() and q.requires_grad
    if path == "auto":
        if q.is_cuda:
            path = "flex" if q.shape[2] >= _FLEX_BLOCK and not mask.is_causal else "sdpa"
        else:
            # Where strips begin depends on the data, which would break a compiled graph.
            path = "blockwise" if q.device.type == "cpu" and learning and not torch.compiler.is_compiling() else "sdpa"
    if path == "plain":
        return plain_attention(q, k, v, mask.dense, scale)
    if path == "flex":
        if q.device.type == "cpu" and learning:
            raise ArgumentError("FlexAttention gives no gradients on a CPU", "use attention='auto'")
        return flexible_attention(q, k, v, mask.blocks, scale)
    if path == "blockwise" and mask.pattern is None:
        return blockwise_attention(q, k, v, mask.strips, scale)
    if mask.is_causal:
        return fused_attention(q, k, v, None, scale)
    if mask.pattern is not None and mask.places.documents is None:
        return block_sparse_attention(q, k, v, mask.pattern, scale)
    return fused_attention(q, k, v, mask.dense, scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention written out: the truth the fast paths are tested against.

    mask: bool, broadcast to (B, H, T, T), True where a key is seen. Softmax in float32.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """plain_attention by PyTorch's fused kernels, which skip the upper half where mask is None."""
    return functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def flexible_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, scale: float) -> Tensor:
    """plain_attention by FlexAttention: compiled on a GPU; on a CPU written out, for tests.

    Heads are padded with zeros to a power of two, the only widths its kernels know in PyTorch 2.6 (Phi-3-mini has 96).
    """
    width = q.shape[-1]
    padding = max(_FLEX_NARROWEST, 1 << (width - 1).bit_length()) - width
    q, k, v = (functional.pad(x, (0, padding)) for x in (q, k, v))
    compile_here = q.is_cuda and not torch.compiler.is_compiling()
    kernel = _compiled_flex() if compile_here else flex_attention
    out: Tensor = kernel(q, k, v, block_mask=blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[..., :width]


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)
