"""RoPE and LongRoPE tables against published values and the definition; the rotation against complex numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from phial.config import PRESETS, ModelConfig, longrope_attn_factor
from phial.errors import ArgumentError
from phial.model.places import token_places
from phial.model.rope import Tables, rotary_tables, rotate

PHI35 = PRESETS["phi-3.5-mini"]


def tables(config: ModelConfig, lengths: list[int], n: int) -> Tables:
    """Tables of rows of n tokens, of which as many as the lengths say are real."""
    return rotary_tables(config, token_places(torch.zeros(len(lengths), n), lengths))


# (index, short, long) of Phi-3.5-mini
GOLDEN = [
    (0, 1.0, 0.9259259),
    (1, 0.8092198, 0.7436074),
    (12, 0.08620690, 0.01298701),
    (24, 5.025126e-3, 1.986492e-4),
    (47, 4.265942e-5, 1.868488e-6),
]


@pytest.mark.parametrize(("index", "short", "long"), GOLDEN)
def test_angles_advance_by_the_published_frequencies(index: int, short: float, long: float) -> None:
    for length, expected in ((4096, short), (4097, long)):
        cos, sin = tables(PHI35, [length], 5000)
        assert cos.shape == sin.shape == (1, 1, 5000, 48)
        assert cos.dtype == sin.dtype == torch.float32
        angle = math.atan2(sin[0, 0, 1, index], cos[0, 0, 1, index])
        assert angle == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize(
    ("context", "original", "factor"),
    [(131072, 4096, 1.1902380714), (131072, 8192, 1.1435437498), (131072, 2048, 1.2431631210), (4096, 4096, 1.0)],
)
def test_attention_factors_are_the_published_ones(context: int, original: int, factor: float) -> None:
    assert longrope_attn_factor(context, original) == pytest.approx(factor, abs=1e-10)
    cos, sin = tables(replace(PHI35, rope_attn_factor=factor), [8], 8)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, factor**2))


def test_the_attention_factor_multiplies_at_every_length() -> None:
    for length in (1, 4096, 4097):
        cos, _ = tables(PHI35, [length], length)
        assert (cos[0, 0, 0] == torch.tensor(1.1902380714)).all()


def test_each_row_takes_the_set_of_its_own_length() -> None:
    cos, sin = tables(PHI35, [10, 4097, 4096], 4097)
    for row, length in enumerate((10, 4097, 4096)):
        alone = tables(PHI35, [length], 4097)
        assert torch.equal(cos[row], alone[0][0])
        assert torch.equal(sin[row], alone[1][0])
    assert not torch.equal(cos[0], cos[1])
    assert torch.equal(cos[0], cos[2])


def test_each_document_of_a_row_counts_from_zero_and_takes_its_own_set() -> None:
    ids = torch.tensor([5] * 10 + [6] * 4097 + [5] * 4096)[None].expand(2, -1)
    cos, sin = rotary_tables(PHI35, token_places(ids, documents=ids))
    assert cos.shape == (2, 1, 8203, 48)
    at = 0
    for length in (10, 4097, 4096):
        for packed, alone in zip((cos, sin), tables(PHI35, [length], length), strict=True):
            assert torch.equal(packed[1, :, at : at + length], alone[0])
        at += length


def test_without_factors_one_table_serves_all_rows_and_follows_the_formula() -> None:
    config = PRESETS["phi-3-mini-4k"]
    cos, sin = tables(config, [3, 200], 200)
    assert cos.shape == (1, 1, 200, 48)
    for position, i in ((1, 1), (7, 3), (199, 0), (199, 47)):
        angle = position * 10000 ** (-2 * i / 96)
        assert cos[0, 0, position, i].item() == pytest.approx(math.cos(angle), abs=2e-5)
        assert sin[0, 0, position, i].item() == pytest.approx(math.sin(angle), abs=2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_are_those_of_a_matrix_of_turns(interleaved: bool) -> None:
    config = replace(PHI35, rope_attn_factor=1.3)
    x, by_turned = (torch.randn(1, 1, 6, 100, requires_grad=True) for _ in range(2))  # 4 numbers pass through
    turns = tables(config, [6], 6)
    unit = torch.eye(100)[:, None, None].expand(-1, 1, 6, -1)
    matrix = rotate(unit, turns, interleaved)  # row i: what a one at place i becomes
    (gradient,) = torch.autograd.grad(rotate(x, turns, interleaved), x, by_turned)
    torch.testing.assert_close(gradient[0, 0], torch.einsum("itj,tj->ti", matrix[:, 0], by_turned[0, 0]))


def test_rotation_is_multiplication_of_complex_numbers() -> None:
    config = replace(PHI35, rope_attn_factor=1.3)
    turns = tables(config, [6], 6)
    x = torch.randn(2, 3, 6, 96, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, turns)
    angles = torch.arange(6.0)[:, None] * torch.from_numpy(config.inv_freq(long=False))
    expected = torch.complex(x[..., :48], x[..., 48:]) * 1.3 * torch.exp(1j * angles)
    torch.testing.assert_close(torch.complex(turned[..., :48], turned[..., 48:]), expected)


def test_neighbouring_pairs_are_the_same_rotation_of_permuted_dimensions() -> None:
    turns = tables(PHI35, [5], 5)
    x = torch.randn(1, 2, 5, 96, generator=torch.Generator().manual_seed(0))
    order = torch.arange(96).reshape(2, 48).T.flatten()  # i and i + 48 become neighbours
    assert torch.equal(rotate(x[..., order], turns, interleaved=True), rotate(x, turns)[..., order])


def test_scores_depend_on_the_distance_alone() -> None:
    turns = tables(PRESETS["phi-3-mini-4k"], [64], 64)
    q, k = torch.randn(2, 1, 1, 1, 96, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 64, 96)
    scores = rotate(q, turns)[0, 0] @ rotate(k, turns)[0, 0].T
    for distance in (0, 1, 13):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=2e-4, rtol=0)


def test_dimensions_beyond_the_rotated_ones_pass_through() -> None:
    config = PRESETS["phi-4-mini"]
    turns = tables(config, [5], 5)
    x = torch.randn(1, 2, 5, 128, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, turns)
    assert torch.equal(turned[..., 96:], x[..., 96:])
    assert (turned[:, :, 1:, :96] != x[:, :, 1:, :96]).float().mean() > 0.95


def test_bfloat16_is_rotated_in_float32() -> None:
    config = PRESETS["phi-3-mini-4k"]
    turns = tables(config, [4096], 4096)
    x = torch.randn(1, 1, 4096, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = rotate(x, turns)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), turns).bfloat16())


@pytest.mark.parametrize("length", [0, -1, 6])
def test_a_length_beyond_the_tokens_is_refused(length: int) -> None:
    with pytest.raises(ArgumentError, match=f"length {length} of row 1"):
        tables(PHI35, [5, length], 5)
