"""Phi-3-small's block-sparse attention: which blocks of keys each block of queries reads, per head, and reading them.

Queries see the nearest blocks and, further back, every stride-th block, whose phase turns from head to head so that
neighbouring heads together cover all. Work grows as T * (local + T / stride) instead of T^2.
Blocks are gathered and handed to PyTorch's attention, which suits CPUs; on a GPU, where so many small calls would cost
launches, FlexAttention reads them (masks.py).

Shapes: B rows, H query heads, K key heads, T tokens, C head width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from phial.errors import ArgumentError


@dataclass(frozen=True)
class BlockPattern:
    """The blocks of keys each head reads. The defaults are phi-3-small's.

    Attributes:
        block: tokens in a block.
        local_blocks: blocks read up to and with the query's own.
        stride: of the blocks before those, one in `stride` is read (`vert_stride`).
    """

    n_head: int = 32
    block: int = 64
    local_blocks: int = 16
    stride: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ArgumentError(f"{field.name} is {getattr(self, field.name)}", "it must be at least 1")

    def phase(self, head: int) -> int:
        """Far block j is read by a head where (j + phase) is a multiple of stride."""
        step = max(1, self.stride // self.n_head)
        return (head * step + 1) % self.stride

    def heads_by_phase(self) -> list[list[int]]:
        """The heads that read the same blocks, together."""
        groups: dict[int, list[int]] = {}
        for head in range(self.n_head):
            groups.setdefault(self.phase(head), []).append(head)
        return list(groups.values())

    def key_blocks(self, query_block: int, head: int) -> list[int]:
        """Indices of the blocks of keys that a block of queries reads, ascending; the last is its own."""
        first_local = max(0, query_block - self.local_blocks + 1)
        far = range((-self.phase(head)) % self.stride, first_local, self.stride)
        return [*far, *range(first_local, query_block + 1)]

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a head's query reads the block of a key before it, for positions of any shapes that broadcast."""
        step = max(1, self.stride // self.n_head)
        near = query // self.block - key // self.block < self.local_blocks
        return near | ((key // self.block + head * step + 1) % self.stride == 0)

    def blocks_read(self, n_tokens: int) -> tuple[int, int]:
        """Pairs of query and key blocks that all heads together compute: by this pattern, and by dense attention."""
        n_blocks = -(-n_tokens // self.block)
        pairs = (len(self.key_blocks(i, head)) for head in range(self.n_head) for i in range(n_blocks))
        return sum(pairs), self.n_head * n_blocks * (n_blocks + 1) // 2


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, pattern: BlockPattern, scale: float) -> Tensor:
    """Attention over the blocks of the pattern alone; equals dense attention under the pattern's mask.

    q: (B, H, T, C). k, v: (B, K, T, C). T need be no multiple of the block. Returns (B, H, T, C).
    """
    group = q.shape[1] // k.shape[1]
    by_phase = pattern.heads_by_phase()
    outputs = []
    for heads in by_phase:
        key_heads = [head // group for head in heads]
        outputs.append(_heads_alike(q[:, heads], k[:, key_heads], v[:, key_heads], pattern, heads[0], scale))
    order = torch.tensor([head for heads in by_phase for head in heads], device=q.device)
    return torch.cat(outputs, dim=1)[:, order.argsort()]


def _heads_alike(q: Tensor, k: Tensor, v: Tensor, pattern: BlockPattern, head: int, scale: float) -> Tensor:
    """Attention of heads that all read the blocks `head` reads; q, k, v: (B, heads, T, C)."""
    block, n_tokens = pattern.block, q.shape[2]
    within_block = torch.arange(block, device=q.device)
    outputs = []
    for i, start in enumerate(range(0, n_tokens, block)):
        rows = q[:, :, start : start + block]
        query = start + within_block[: rows.shape[2]]
        chosen = torch.tensor(pattern.key_blocks(i, head), device=q.device)
        keys = (chosen[:, None] * block + within_block).flatten()
        keys = keys[: len(keys) - block + len(query)]  # the last block is the queries' own and as short
        seen = keys <= query[:, None]
        outputs.append(functional.scaled_dot_product_attention(rows, k[:, :, keys], v[:, :, keys], seen, scale=scale))
    return torch.cat(outputs, dim=2)
