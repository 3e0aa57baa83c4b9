"""Block formats: bit for bit against the `gguf` package, and the encoders' error bounds."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from phial.errors import ArgumentError, FormatError
from phial.gguf.blocks import BLOCK_SIZES, GGMLType, dequantize, n_bytes, quantize, random_blocks
from phial.gguf.formats import FORMATS, PLAIN_BYTES, gather, spread

ALL = list(GGMLType)
BLOCKED = [kind for kind in ALL if kind in FORMATS]
SHAPE = (6, 768)


def peer(data: np.ndarray, kind: GGMLType, rows: int) -> np.ndarray:
    """The independent implementation's values."""
    dtype = {GGMLType.F32: np.float32, GGMLType.F16: np.float16}.get(kind, np.uint8)
    values = gguf.quants.dequantize(data.view(dtype).reshape(rows, -1), gguf.GGMLQuantizationType(int(kind)))
    return np.asarray(values, dtype=np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("kind", ALL)
def test_block_sizes_are_ggmls(kind: GGMLType) -> None:
    assert BLOCK_SIZES[kind] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind))]
    assert kind.name == gguf.GGMLQuantizationType(int(kind)).name


@pytest.mark.parametrize("kind", ALL)
def test_dequantize_agrees_bit_for_bit_on_encoded_values(kind: GGMLType) -> None:
    x = np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32)
    data = quantize(x, kind)
    assert same_bits(dequantize(data, kind, SHAPE), peer(data, kind, SHAPE[0]))


@pytest.mark.parametrize("kind", BLOCKED)
def test_dequantize_agrees_bit_for_bit_on_arbitrary_bytes_with_any_finite_scales(kind: GGMLType) -> None:
    """Raw random bytes: every code, every group scale, negative, subnormal and zero block scales."""
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, n_bytes(kind, (40, 512)), dtype=np.uint8)
    blocks = data.view(FORMATS[kind].block)
    for field in {"d", "m"} & set(blocks.dtype.names or ()):
        bits = rng.integers(0, 1 << 16, len(blocks), dtype=np.uint16)
        bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000  # infinities and NaN become finite
        blocks[field] = bits.view(np.float16)
    blocks["d"][:2] = [0.0, -0.0]
    assert same_bits(dequantize(data, kind, (40, 512)), peer(data, kind, 40))


@pytest.mark.parametrize("kind", BLOCKED)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x0F, 0xF0, 0x80, 0x7F])
def test_dequantize_agrees_at_the_extreme_codes(kind: GGMLType, fill: int) -> None:
    data = np.full(n_bytes(kind, (1, 256)), fill, dtype=np.uint8)
    blocks = data.view(FORMATS[kind].block)
    for field in {"d", "m"} & set(blocks.dtype.names or ()):
        blocks[field] = -0.75
    assert same_bits(dequantize(data, kind, (1, 256)), peer(data, kind, 1))


@pytest.mark.parametrize("kind", BLOCKED)
def test_infinite_and_nan_scales_give_values_not_warnings(kind: GGMLType) -> None:
    data = np.full(n_bytes(kind, (1, 256)), 0xFF, dtype=np.uint8)  # float16 0xFFFF is NaN
    with np.errstate(all="raise"):
        values = dequantize(data, kind, (1, 256))
    assert np.isnan(values).all()


@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.Q5_0, GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.Q4_1])
def test_simple_encoders_agree_with_the_peer_but_for_ties(kind: GGMLType) -> None:
    x = np.random.default_rng(3).standard_normal((64, 512), dtype=np.float32)
    ours = quantize(x, kind).reshape(64, -1)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(int(kind)))
    assert np.mean(ours == theirs) > 0.99
    error = [np.abs(dequantize(data, kind, x.shape) - x).mean() for data in (ours, theirs)]
    assert error[0] <= error[1] * 1.001


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])
def test_float_types_are_stored_exactly_as_the_peer_does(kind: GGMLType) -> None:
    x = np.random.default_rng(4).standard_normal((4, 64), dtype=np.float32)
    x[0, :4] = [0.0, -0.0, np.inf, -np.inf]
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(int(kind))).reshape(-1).view(np.uint8)
    assert np.array_equal(quantize(x, kind), theirs)
    assert np.isnan(dequantize(quantize(np.full((1, 1), np.nan, np.float32), kind), kind, (1, 1))).all()


def test_bfloat16_rounds_ties_to_even_and_keeps_every_nan() -> None:
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFFFFFFFF]
    stored = quantize(np.array(bits, np.uint32).view(np.float32), GGMLType.BF16).view(np.uint16)
    assert [hex(value) for value in stored] == ["0x3f80", "0x3f82", "0x3f81", "0x7fc0", "0xffff"]


# Half a step of the widest group, plus what rounding the group scales to 4 or 6 bits may shift (K types): the mean
# absolute error of standard normal values. Measured once and rounded up; a wrong bit plane is far outside.
MEAN_ERROR = {
    "F32": 0, "F16": 2e-4, "BF16": 2e-3, "Q8_0": 6e-3, "Q5_0": 0.04, "Q5_1": 0.04, "Q4_0": 0.08, "Q4_1": 0.08,
    "Q6_K": 0.02, "Q5_K": 0.04, "Q4_K": 0.08, "Q3_K": 0.15, "Q2_K": 0.31,
}  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_quantize_then_dequantize_stays_within_the_types_error(kind: GGMLType) -> None:
    x = np.random.default_rng(5).standard_normal((32, 1024), dtype=np.float32)
    error = np.abs(dequantize(quantize(x, kind), kind, x.shape) - x).mean()
    assert MEAN_ERROR[kind.name] / 3 <= error <= MEAN_ERROR[kind.name]


@pytest.mark.parametrize("kind", BLOCKED)
@pytest.mark.parametrize("level", [0.0, 1.0, -3.0, 1e-30, 1e3])
def test_constant_blocks_survive_every_encoder(kind: GGMLType, level: float) -> None:
    x = np.full((2, 256), level, dtype=np.float32)
    values = dequantize(quantize(x, kind), kind, x.shape)
    assert np.allclose(values, x, rtol=0.04, atol=1e-6)


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.Q4_K, GGMLType.Q4_1])
def test_tensors_larger_than_one_pass_equal_the_passes_apart(kind: GGMLType) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1100, 1024), dtype=np.float32)
    whole = quantize(x, kind)
    assert np.array_equal(whole, np.concatenate([quantize(x[:777], kind), quantize(x[777:], kind)]))
    rows = n_bytes(kind, (1, 1024))
    assert np.array_equal(dequantize(whole, kind, x.shape)[1099], dequantize(whole[-rows:], kind, (1024,)))


@pytest.mark.parametrize("kind", ALL)
def test_random_blocks_have_the_wanted_scale_and_only_finite_values(kind: GGMLType) -> None:
    data = random_blocks(kind, (64, 1024), np.random.default_rng(7), scale=0.5)
    assert data.dtype == np.uint8 and data.size == n_bytes(kind, (64, 1024))
    values = dequantize(data, kind, (64, 1024))
    assert np.isfinite(values).all()
    assert 0.4 < values.std() < 0.65 and abs(values.mean()) < 0.1
    again = random_blocks(kind, (64, 1024), np.random.default_rng(7), scale=0.5)
    assert np.array_equal(data, again)


def test_gather_inverts_spread_for_every_field_in_use() -> None:
    packed = np.random.default_rng(8).integers(0, 256, (5, 128), dtype=np.uint8)
    for form in FORMATS.values():
        for field in filter(None, (form.low, form.high)):
            assert np.array_equal(gather(spread(packed, *field), *field), packed)


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_K])
def test_rows_that_do_not_hold_whole_blocks_are_refused(kind: GGMLType) -> None:
    columns = BLOCK_SIZES[kind][0] + 4
    with pytest.raises(FormatError, match=str(columns)):
        n_bytes(kind, (32, columns))
    assert n_bytes(kind, (0, columns - 4)) == 0


def test_a_wrong_byte_count_is_refused_with_both_numbers() -> None:
    with pytest.raises(FormatError, match=r"needs 36 .* got 35"):
        dequantize(np.zeros(35, np.uint8), GGMLType.Q4_0, (2, 32))


@pytest.mark.parametrize("kind", BLOCKED)
@pytest.mark.parametrize(("bad", "says"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (3e38, "float16")])
def test_values_a_block_cannot_hold_are_refused(kind: GGMLType, bad: float, says: str) -> None:
    x = np.ones((1, 256), np.float32)
    x[0, 3] = bad
    with pytest.raises(ArgumentError, match=says):
        quantize(x, kind)


def test_values_beyond_float16_and_bfloat16_are_refused() -> None:
    assert set(PLAIN_BYTES) == {GGMLType.F32, GGMLType.F16, GGMLType.BF16}
    with pytest.raises(ArgumentError, match="F16"):
        quantize(np.full((1,), 70000, np.float32), GGMLType.F16)
    with pytest.raises(ArgumentError, match="BF16"):
        quantize(np.full((1,), 3.4028e38, np.float32), GGMLType.BF16)
