"""PI, NTK and YaRN as factor lists: the ratios of plain frequencies to those transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from phial.config import ModelConfig
from phial.train.longrope.seeds import WAYS, Factors, seed_factors, yarn_attn_factor

SHAPES = [(10000.0, 96, 4096, 131072), (500000.0, 128, 8192, 32768), (100.0, 32, 128, 1024), (1e4, 8, 64, 65)]


def model(theta: float, rope_dim: int, original: int) -> ModelConfig:
    return ModelConfig(
        architecture="phi3", n_vocab=64, n_embd=rope_dim, n_layer=1, n_head=1, n_head_kv=1, head_dim=rope_dim, n_ff=8,
        n_ctx_train=original, rms_norm_eps=1e-5, rope_theta=theta, rope_dim=rope_dim, rope_interleaved=False,
    )  # fmt: skip


def theirs(kind: str, theta: float, dim: int, original: int, target: int) -> tuple[Factors, float]:
    """Factors and attention factor by transformers."""
    rope = {"rope_type": kind, "rope_theta": theta}
    context = original
    if kind == "dynamic":
        rope["factor"] = 1.0  # NTK-aware scaling by seq_len / context
    else:
        rope["factor"] = target / original
    if kind == "yarn":
        rope["original_max_position_embeddings"] = original
        context = target
    config = LlamaConfig(hidden_size=dim, num_attention_heads=1, max_position_embeddings=context, rope_parameters=rope)
    seq_len = target if kind == "dynamic" else None
    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=seq_len)
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    return tuple(plain / inv_freq.double().numpy()), factor


@pytest.mark.parametrize(("theta", "dim", "original", "target"), SHAPES)
@pytest.mark.parametrize(("way", "kind"), [("pi", "linear"), ("ntk", "dynamic"), ("yarn", "yarn")])
def test_seeds_are_the_ratios_of_transformers(
    way: str, kind: str, theta: float, dim: int, original: int, target: int
) -> None:
    seeds = seed_factors(model(theta, dim, original), target / original)
    factors, attn_factor = theirs(kind, theta, dim, original, target)
    np.testing.assert_allclose(seeds[way], factors, rtol=2e-6)
    assert attn_factor == pytest.approx(yarn_attn_factor(target / original) if way == "yarn" else 1.0)


@pytest.mark.parametrize(("theta", "dim", "original", "target"), SHAPES)
def test_seeds_are_monotone_within_one_and_the_stretch(theta: float, dim: int, original: int, target: int) -> None:
    seeds = seed_factors(model(theta, dim, original), target / original)
    assert tuple(seeds) == WAYS
    assert set(seeds["none"]) == {1.0}
    for factors in seeds.values():
        assert len(factors) == dim // 2
        assert all(a <= b for a, b in zip(factors, factors[1:], strict=False))
        assert 1 <= factors[0] and factors[-1] <= target / original * (1 + 1e-12)


def test_yarn_leaves_fast_pairs_and_interpolates_slow_ones() -> None:
    """Phi-3-mini's shape: a pair that turns over 32 times in 4096 tokens stays, one that turns below once is PI."""
    yarn = seed_factors(model(10000.0, 96, 4096), 32)["yarn"]
    turns = 4096 * 10000.0 ** (-np.arange(48) / 48) / (2 * np.pi)
    assert all(f == 1 for f, t in zip(yarn, turns, strict=True) if t > 40)
    assert all(f == 32 for f, t in zip(yarn, turns, strict=True) if t < 0.8)
    assert any(1 < f < 32 for f in yarn)
