"""Which keys each query may see: causality or both ways, a sliding window, packed documents, phi-3-small's blocks.

One definition, KeyMask.sees, over indices; written out as a tensor for the plain and the fused path, by strips of
queries for training on a CPU, or summed up by blocks for FlexAttention, which skips those of which nothing is seen.

Shapes: B rows, H query heads, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from phial.model.blockwise import STRIP, Strip
from phial.model.places import Places
from phial.model.sparse import BlockPattern


@dataclass(eq=False)
class KeyMask:
    """The mask of a batch, made once and shared by its layers.

    Attributes:
        window: keys a query sees at most, its own included; None: all.
        pattern: the blocks that are seen, counted within each document; None: all.
        causal: whether later keys are hidden.
    """

    places: Places
    window: int | None = None
    pattern: BlockPattern | None = None
    causal: bool = True

    @property
    def is_causal(self) -> bool:
        """Whether every key up to the query's own is seen, and none after it."""
        n_tokens = self.places.n_tokens
        narrow = self.window is not None and n_tokens > self.window
        sparse = self.pattern is not None and n_tokens > self.pattern.local_blocks * self.pattern.block
        return self.causal and not narrow and not sparse and self.places.documents is None

    def sees(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query sees a key, for indices of any shapes that broadcast together."""
        seen = key <= query if self.causal else torch.ones_like(key + query, dtype=torch.bool)
        if self.places.documents is not None:
            number, position, branch = self.places.documents, self.places.positions, self.places.branches
            seen = seen & (number[row, query] == number[row, key])
            if branch is not None:
                seen = seen & ((branch[row, key] == 0) | (branch[row, key] == branch[row, query]))
            query, key = position[row, query], position[row, key]
        if self.window is not None:
            seen = seen & (key > query - self.window)
        if self.pattern is not None:
            seen = seen & self.pattern.sees(head, query, key)
        return seen

    @cached_property
    def dense(self) -> Tensor:
        """(B or 1, H or 1, T, T) bool."""
        extents = (*self._extents, self.places.n_tokens, self.places.n_tokens)
        indices = (torch.arange(n or 1, device=self.places.positions.device) for n in extents)
        return self.sees(*(index.view([-1 if i == d else 1 for i in range(4)]) for d, index in enumerate(indices)))

    @cached_property
    def strips(self) -> list[Strip]:
        """The same for blockwise attention, of a mask that all heads share."""
        place = torch.arange(self.places.n_tokens, device=self.places.positions.device)
        row = torch.arange(self._extents[0] or 1, device=place.device).view(-1, 1, 1, 1)
        head = torch.zeros_like(row[:1])
        strips = []
        for first in range(0, len(place), STRIP):
            queries = slice(first, min(first + STRIP, len(place)))
            since = 0 if self.places.starts is None else int(self.places.starts[:, first].min())
            if self.window is not None and self.places.branches is None:  # else the window is behind other branches
                since = max(since, first - self.window + 1)
            keys = slice(since, queries.stop if self.causal else self._end(queries.stop - 1))
            seen = self.sees(row, head, place[queries].view(1, 1, -1, 1), place[keys])
            strips.append(Strip(queries, keys, torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)))
        return strips

    @cached_property
    def blocks(self) -> BlockMask:
        """The same for FlexAttention, in blocks of 128, whatever the pattern's are: its kernels are tuned for those."""

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self.sees(row, head, query, key)

        device, n = self.places.positions.device, self.places.n_tokens
        # Compiled on a GPU, lest (B, H, T, T) be written out on the way.
        create = _compiled_create() if device.type == "cuda" else create_block_mask
        blocks: BlockMask = create(sees, *self._extents, n, n, device=device)
        return blocks

    def _end(self, query: int) -> int:
        """Where the last of the documents ends in which a query of any row stands."""
        if self.places.documents is None:
            return self.places.n_tokens
        left = self.places.lengths[:, query] - self.places.positions[:, query]
        return query + int(left.max())

    @property
    def _extents(self) -> tuple[int | None, int | None]:
        """Rows and heads that the mask tells apart, None for one that serves all."""
        n_rows = None if self.places.documents is None else len(self.places.documents)
        return n_rows, None if self.pattern is None else self.pattern.n_head


@cache
def _compiled_create() -> Any:
    return torch.compile(create_block_mask)
