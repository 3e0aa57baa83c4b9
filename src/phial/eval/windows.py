"""Which tokens of a text are read together and which of them are scored: the rule of llama.cpp's perplexity tool.

A text is cut into windows of n_ctx tokens that do not overlap, the rest is left out; BOS takes the place of each
window's first token where the model begins with BOS; the second half of a window is scored, so that every scored token
has context. With a stride, windows overlap: n_ctx + stride/2 tokens, the last `stride` scored, no BOS put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phial.errors import ArgumentError, PhialError

SMALLEST = 4  # tokens in a window; fewer leave nothing to score


@dataclass(frozen=True)
class Windows:
    """The plan of one run.

    Attributes:
        size: tokens in a window.
        step: tokens from the start of one window to the next.
        first: tokens[first + 1:] of each window are scored.
        count: how many windows.
        bos: the id that takes the place of each first token, or None.
    """

    size: int
    step: int
    first: int
    count: int
    bos: int | None

    @property
    def scored(self) -> int:
        """How many tokens of each window are scored."""
        return self.size - self.first - 1

    def tokens(self, ids: Sequence[int], window: int) -> list[int]:
        """The ids of one window, as the model reads them."""
        start = window * self.step
        tokens = list(ids[start : start + self.size])
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens


def plan_windows(
    n_tokens: int, n_ctx: int, *, stride: int = 0, most: int | None = None, bos: int | None = None
) -> Windows:
    """The windows of a text of n_tokens.

    Args:
        stride: 0 for windows that do not overlap.
        most: stop after so many windows; None: read the whole text.
        bos: the model's BOS id where it begins texts with it.

    Raises:
        ArgumentError: a number out of range.
        PhialError: the text does not fill one window.
    """
    if n_ctx < SMALLEST:
        raise ArgumentError(f"a window of {n_ctx} tokens is too small", f"use {SMALLEST} or more; 512 is usual")
    if not 0 <= stride <= n_ctx:
        raise ArgumentError(f"a stride of {stride} is out of range", f"use 1 to {n_ctx}, or leave it out")
    if most is not None and most < 1:
        raise ArgumentError(f"{most} windows are nothing to read", "use 1 or more")
    if stride:
        size, step = n_ctx + stride // 2, stride
        first, count, bos = size - stride - 1, (n_tokens - size + stride - 1) // stride, None
        needed = size + 1
    else:
        size = step = needed = n_ctx
        first, count = n_ctx // 2, n_tokens // n_ctx
    if count < 1:
        raise PhialError(
            f"the text has {n_tokens} tokens, one window needs {needed}", "use a longer text or a smaller --ctx"
        )
    return Windows(size, step, first, count if most is None else min(count, most), bos)
