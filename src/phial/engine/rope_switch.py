"""What a sequence does when it passes LongRoPE's original context: compute its keys again, or turn them.

"reprefill" runs all tokens again with the other factor set: exact, and as slow as a prompt of that length. "rerotate"
turns each cached key by what the two sets' angles differ, position * (f_to - f_from), which is fast and not exact: the
turned keys are rounded once more, and keys and values above the first layer stay those of states that attended with
the old set. Such pages are marked (PageTable.exact) and never offered to another sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phial.config import ModelConfig
from phial.engine.cache import PageTable
from phial.errors import ArgumentError

ROPE_SWITCHES = ("reprefill", "rerotate")


def check_rope_switch(rope_switch: str) -> None:
    """Raise ArgumentError where the way to switch is not one of ROPE_SWITCHES."""
    if rope_switch not in ROPE_SWITCHES:
        raise ArgumentError(f"rope_switch is {rope_switch!r}", f"use one of: {', '.join(ROPE_SWITCHES)}")


def rerotate(table: PageTable, config: ModelConfig, tokens: list[int]) -> None:
    """Turn the table's keys from its factor set to the other, on pages of its own.

    tokens: the ids of (at least) its filled positions. Interrupted half way, the table is left empty.
    """
    pool, size = table.pool, table.pool.page_tokens
    pool.prefixes.keep(table, tokens)  # as they are, while they are exact
    table.exact = False
    try:
        for index in range(-(-table.n_tokens // size)):
            page = table.pages[index] = pool.writable(table.pages[index])
            pool.store.rotate_keys(page, *turns(config, not table.long, index * size, size))
    except BaseException:
        table.cut(0, ())
        raise
    table.long = not table.long


def turns(config: ModelConfig, long: bool, start: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of what leads to the factor set `long`, (n, rope_dim/2), at positions from start on.

    The angles are those the forward step rounds to float32; their difference is taken exactly.
    """
    positions = np.arange(start, start + n, dtype=np.float32)[:, None]
    to, back = ((positions * config.inv_freq(which)).astype(np.float64) for which in (long, not long))
    angles = to - back
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
