"""Every kernel set against numpy: the products of quantised weights and activations, by gemv and by panels.

The truth is gguf/blocks.py's dequantised weights times numpy's own int8 activations, summed in float64. The bound is
that of native/kernels.h, computed from the operands: 4 * n_blocks * eps * sum |scale * integer|, to which the truth's
own rounding (dequantize works in float32: two roundings per weight) is added.
Leaves out the NEON sets (test_neon.py) and whole models (tests/engine/test_native.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from phial.gguf.blocks import BLOCK_SIZES, GGMLType, dequantize, random_blocks

native = pytest.importorskip("phial._native", reason="the compiled core is not built: NO kernel was tested")

Floats = NDArray[np.float32]
EPS = float(np.finfo(np.float32).eps)
FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
QUANTISED = [t for t in GGMLType if t not in FLOAT_TYPES]
SUB16 = (GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q6_K)  # one scale per 16 inputs; the others per 32

# Where a block keeps its codes: zeroed, what is left of a value is its minimum (types with one).
CODE_BYTES = {
    GGMLType.Q4_0: slice(2, 18), GGMLType.Q4_1: slice(4, 20), GGMLType.Q5_0: slice(2, 22), GGMLType.Q5_1: slice(4, 24),
    GGMLType.Q8_0: slice(2, 34), GGMLType.Q2_K: slice(16, 80), GGMLType.Q3_K: slice(0, 96),
    GGMLType.Q4_K: slice(16, 144), GGMLType.Q5_K: slice(16, 176), GGMLType.Q6_K: slice(0, 192),
}  # fmt: skip
WITH_MIN = (GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.Q5_K)
SCALE_BYTES = {
    GGMLType.Q4_0: (0,), GGMLType.Q4_1: (0, 2), GGMLType.Q5_0: (0,), GGMLType.Q5_1: (0, 2), GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82), GGMLType.Q3_K: (108,), GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2), GGMLType.Q6_K: (208,),
}  # fmt: skip


class Truth(NamedTuple):
    """What a product must be, both (tokens, rows): the value, and the sum of |scale * integer| over the blocks."""

    value: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    rounding: NDArray[np.float64]


@pytest.fixture(params=native.kernel_sets())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.current_kernels()
    native.use_kernels(request.param)
    yield request.param
    native.use_kernels(before)


def quantised_activations(x: Floats) -> NDArray[np.float64]:
    """x (tokens, columns) as the kernels see it: d * q, in blocks of 32 scaled by amax / 127, rounded to nearest."""
    blocks = x.reshape(-1, 32)
    amax = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    values = (amax / np.float32(127)).astype(np.float64) * np.rint(blocks * inverse)
    return values.reshape(x.shape)


def truth(type: GGMLType, data: NDArray[np.uint8], shape: tuple[int, int], x: Floats) -> Truth:
    w = dequantize(data, type, shape).astype(np.float64)
    if type in FLOAT_TYPES:
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(w).T
        return Truth(x.astype(np.float64) @ w.T, magnitude, np.zeros_like(magnitude))
    low = np.zeros_like(w)
    if type in WITH_MIN:
        bare = data.reshape(-1, BLOCK_SIZES[type][1]).copy()
        bare[:, CODE_BYTES[type]] = 0
        low = dequantize(bare.reshape(-1), type, shape).astype(np.float64)
    a = quantised_activations(x)
    sub = 16 if type in SUB16 else 32
    parts = lambda m: m.reshape(len(m), -1, sub).transpose(1, 0, 2)  # noqa: E731  (blocks, rows, sub)
    a_parts = parts(a).transpose(0, 2, 1)
    blocks = [np.abs(parts(m) @ a_parts).sum(axis=0).T for m in (w - low, low)]
    return Truth(a @ w.T, blocks[0] + blocks[1], 2 * EPS * np.abs(a) @ (np.abs(w) + 2 * np.abs(low)).T)


def check(type: GGMLType, data: NDArray[np.uint8], shape: tuple[int, int], x: Floats) -> None:
    """gemv within the bound of the truth; panels equal to gemv, bit for bit."""
    gemv = native.matmul(int(type), *shape, data, x, False)
    panels = native.matmul(int(type), *shape, data, x, True)
    expected = truth(type, data, shape, x)
    n_blocks = shape[1] if type in FLOAT_TYPES else shape[1] // (16 if type in SUB16 else 32)
    bound = 4 * n_blocks * EPS * expected.magnitude + expected.rounding
    worst = np.abs(gemv - expected.value) - bound
    assert gemv.shape == (len(x), shape[0])
    assert np.all(worst <= 0), f"{type.name}: {worst.max():.3g} beyond the bound"
    assert np.array_equal(gemv.view(np.uint32), panels.view(np.uint32)), f"{type.name}: panels differ from gemv"


def with_codes(type: GGMLType, data: NDArray[np.uint8], byte: int) -> NDArray[np.uint8]:
    blocks = data.reshape(-1, BLOCK_SIZES[type][1]).copy()
    blocks[:, CODE_BYTES[type]] = byte
    return blocks.reshape(-1)


def with_scales(type: GGMLType, data: NDArray[np.uint8], half: int) -> NDArray[np.uint8]:
    blocks = data.reshape(-1, BLOCK_SIZES[type][1]).copy()
    for at in SCALE_BYTES[type]:
        blocks[:, at : at + 2] = (half & 255, half >> 8)
    return blocks.reshape(-1)


def activations(rng: np.random.Generator, tokens: int, columns: int) -> Floats:
    return rng.standard_normal((tokens, columns)).astype(np.float32)


@pytest.mark.parametrize("type", list(GGMLType), ids=lambda t: t.name)
def test_products_match_numpy_for_every_shape(kernels: str, type: GGMLType) -> None:
    rng = np.random.default_rng(int(type))
    block = max(BLOCK_SIZES[type][0], 32)
    for rows, columns in ((1, block), (16, 3 * block), (37, 5 * block), (17, 3072)):
        data = random_blocks(type, (rows, columns), rng)
        for tokens in range(1, 8):
            check(type, data, (rows, columns), activations(rng, tokens, columns))


@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F])
def test_extreme_codes_and_activations_do_not_overflow(kernels: str, type: GGMLType, byte: int) -> None:
    rng = np.random.default_rng(byte)
    shape = (16, 768)
    data = with_codes(type, random_blocks(type, shape, rng), byte)
    signs = rng.choice(np.float32([-127, 127]), size=shape[1])
    check(type, data, shape, np.stack([np.full(768, 127, np.float32), np.full(768, -127, np.float32), signs]))


@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
@pytest.mark.parametrize("half", [0x0000, 0x0001, 0x03FF, 0x8001], ids=["zero", "smallest", "subnormal", "negative"])
def test_zero_and_subnormal_scales(kernels: str, type: GGMLType, half: int) -> None:
    rng = np.random.default_rng(half)
    shape = (16, 512)
    data = with_scales(type, random_blocks(type, shape, rng), half)
    x = activations(rng, 5, 512)
    x[1, :32] = 0  # a block of activations without a scale
    check(type, data, shape, x)
    if half == 0:
        assert not native.matmul(int(type), *shape, data, x, False).any()


@pytest.mark.parametrize("panels", [False, True], ids=["gemv", "panels"])
@pytest.mark.parametrize("type", list(GGMLType), ids=lambda t: t.name)
def test_unit_vectors_read_back_the_dequantised_weights(kernels: str, type: GGMLType, panels: bool) -> None:
    """Every weight at its row and column: exactly for float types, to the rounding of scale * 127 for the others."""
    shape = (19, 256)
    data = random_blocks(type, shape, np.random.default_rng(1))
    weights = dequantize(data, type, shape).T
    one = 1 if type in FLOAT_TYPES else 127
    got = native.matmul(int(type), *shape, data, np.float32(one) * np.eye(256, dtype=np.float32), panels)
    if type in FLOAT_TYPES:
        assert np.array_equal(got, weights)
        return
    low = dequantize(with_codes(type, data, 0), type, shape).T if type in WITH_MIN else np.zeros_like(weights)
    assert np.all(np.abs(got / np.float32(127) - weights) <= 2 * EPS * (np.abs(weights) + 2 * np.abs(low)))


@pytest.mark.parametrize("type", FLOAT_TYPES, ids=lambda t: t.name)
def test_one_product_of_float_types_is_rounded_once(kernels: str, type: GGMLType) -> None:
    shape, rng = (16, 32), np.random.default_rng(3)
    data = random_blocks(type, shape, rng)
    factors = rng.standard_normal(32).astype(np.float32)
    once = (dequantize(data, type, shape).T.astype(np.float64) * factors[:, None]).astype(np.float32)
    assert np.array_equal(native.matmul(int(type), *shape, data, np.diag(factors), False), once)


@pytest.mark.parametrize("type", list(GGMLType), ids=lambda t: t.name)
def test_a_token_gives_the_same_bits_whatever_comes_with_it(kernels: str, type: GGMLType) -> None:
    rng = np.random.default_rng(5)
    shape = (16, 768)
    data, x = random_blocks(type, shape, rng), activations(rng, 19, 768)
    alone = np.concatenate([native.matmul(int(type), *shape, data, row[None].copy(), False) for row in x])
    for tokens in (2, 3, 4, 8, 13, 19):
        for panels in (False, True):
            together = native.matmul(int(type), *shape, data, x[:tokens].copy(), panels)
            assert np.array_equal(together.view(np.uint32), alone[:tokens].view(np.uint32)), (tokens, panels)


@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
@pytest.mark.parametrize("amax", [1e-37, 1e-39, 1e-45])
def test_activations_too_small_to_be_scaled_give_next_to_nothing(kernels: str, type: GGMLType, amax: float) -> None:
    """127 / amax is infinite there: whatever the codes become, their scale keeps the product negligible."""
    shape = (16, 256)
    data = random_blocks(type, shape, np.random.default_rng(4))
    x = np.full((2, 256), amax, np.float32)
    x[0, ::2] = 0
    for panels in (False, True):
        assert np.all(np.abs(native.matmul(int(type), *shape, data, x, panels)) < 1e-25)


@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
def test_sets_agree_with_scalar_within_the_stated_bound(kernels: str, type: GGMLType) -> None:
    rng = np.random.default_rng(7)
    shape = (33, 1280)
    data, x = random_blocks(type, shape, rng), activations(rng, 6, 1280)
    here = native.matmul(int(type), *shape, data, x, True)
    native.use_kernels("scalar")
    there = native.matmul(int(type), *shape, data, x, True)
    n_blocks = 1280 // (16 if type in SUB16 else 32)
    assert np.all(np.abs(here - there) <= 4 * n_blocks * EPS * truth(type, data, shape, x).magnitude)


@pytest.mark.parametrize(
    ("type", "columns", "missing", "message"),
    [
        (2, 64, 1, "wrong data size"),
        (2, 48, 0, "16 x 48 matrix does not fit blocks of 32"),
        (12, 128, 0, "16 x 128 matrix does not fit blocks of 256"),
        (99, 64, 0, "unknown tensor type 99"),
        (-1, 64, 0, "unknown tensor type -1"),
    ],
)
def test_wrong_sizes_and_types_are_refused(type: int, columns: int, missing: int, message: str) -> None:
    data = np.zeros(16 * columns // 32 * 18 - missing, np.uint8)
    with pytest.raises(ValueError, match=message):
        native.matmul(type, 16, columns, data, np.zeros((1, columns), np.float32), False)


def test_activations_of_another_width_are_refused() -> None:
    data = np.zeros(16 * 2 * 18, np.uint8)
    with pytest.raises(ValueError, match="x has the wrong number of columns"):
        native.matmul(2, 16, 64, data, np.zeros((1, 32), np.float32), False)


def test_an_unknown_set_is_answered_with_the_usable_ones() -> None:
    before = native.current_kernels()
    with pytest.raises(ValueError) as caught:
        native.use_kernels("nope")
    assert str(caught.value) == f"no kernel set 'nope' on this CPU; usable: {', '.join(native.kernel_sets())}"
    assert native.current_kernels() == before
