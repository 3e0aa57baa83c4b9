"""Known ways to stretch RoPE as factor lists: what LongRoPE's search starts from, and what it is compared with.

A factor divides the frequency of one rotated pair, so each list is the ratio of the plain frequencies to the method's.
With stretch s = context / original: PI (arXiv 2306.15595) divides all by s; NTK-aware scaling raises theta so that the
slowest pair is divided by s and the fastest by 1; YaRN (arXiv 2309.00071) decides by how often a pair turns within the
original context. All are non-decreasing and lie in [1, s].
"""

from __future__ import annotations

import math

import numpy as np

from phial.config import ModelConfig

Factors = tuple[float, ...]
BETA_FAST, BETA_SLOW = (
    32.0,
    1.0,
)  # YaRN: turns within the original context above which a pair stays, below which it is PI
WAYS = ("none", "pi", "ntk", "yarn")


def pi_factors(config: ModelConfig, stretch: float) -> Factors:
    """Position interpolation: every pair by the stretch."""
    return (float(stretch),) * (config.rope_dim // 2)


def ntk_factors(config: ModelConfig, stretch: float) -> Factors:
    """NTK-aware: theta times stretch^(d / (d - 2)), which is stretch^(2i / (d - 2)) for pair i."""
    d = config.rope_dim
    return tuple(float(stretch ** (2 * i / (d - 2))) for i in range(d // 2)) if d > 2 else (float(stretch),)


def yarn_factors(config: ModelConfig, stretch: float) -> Factors:
    """YaRN's interpolation by parts, between the pairs that turn BETA_FAST and BETA_SLOW times in the original context.

    The borders are whole pairs, as in transformers.
    """
    pairs = config.rope_dim // 2
    low, high = (_pair_that_turns(config, turns) for turns in (BETA_FAST, BETA_SLOW))
    low, high = max(math.floor(low), 0), min(math.ceil(high), config.rope_dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low if high != low else 0.001), 0, 1)
    return tuple(float(x) for x in 1 / (ramp / stretch + 1 - ramp))


def seed_factors(config: ModelConfig, stretch: float) -> dict[str, Factors]:
    """The list of each of WAYS for a model stretched by a factor above 1; "none" is all ones."""
    lists = (pi_factors(config, 1.0), pi_factors(config, stretch), ntk_factors(config, stretch))
    return dict(zip(WAYS, (*lists, yarn_factors(config, stretch)), strict=True))


def yarn_attn_factor(stretch: float) -> float:
    """YaRN's factor on cos and sin."""
    return 0.1 * math.log(stretch) + 1 if stretch > 1 else 1.0


def _pair_that_turns(config: ModelConfig, turns: float) -> float:
    """Which pair, in fractions, turns so often within the original context; negative where none does."""
    length = config.rope_original_context / (2 * math.pi * turns)
    return config.rope_dim * math.log(length) / (2 * math.log(config.rope_theta))
