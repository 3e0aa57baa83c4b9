"""The quantiser that searches for scales: what its bytes decode to, against plain rounding and against llama.cpp's.

Every claim is about decoded values: dequantize (held to an independent implementation in test_blocks.py) says what the
bytes are worth. Leaves out speed (bench/quantize.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.gguf.made_weights import KINDS, dithered, importances, rmse, tensor

from phial.errors import ArgumentError, FormatError
from phial.gguf import scale_search
from phial.gguf.blocks import GGMLType, dequantize, quantize
from phial.gguf.formats import FORMATS
from phial.gguf.scale_search import encode, search

try:
    from phial import _native as native
except ImportError:  # then the numpy definition alone is tested
    native = None

TYPES = list(FORMATS)


KERNELS = native.kernel_sets() if native else ["numpy"]


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel set in turn."""
    if native is None:
        yield request.param
        return
    before = native.current_kernels()
    native.use_kernels(request.param)
    yield request.param
    native.use_kernels(before)


every_type = pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)


@every_type
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_the_error_is_below_that_of_rounding_to_nearest(type: GGMLType, kind: str) -> None:
    x, importance = tensor(kind, 8, 1024), importances(1024)
    assert rmse(x, encode(x, type), type) < 0.99 * rmse(x, quantize(x, type), type)
    weighted = rmse(x, encode(x, type, importance), type, importance)
    assert weighted < 0.9 * rmse(x, quantize(x, type), type, importance)
    assert weighted < 0.99 * rmse(x, encode(x, type), type, importance)


@every_type
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_no_larger_than_llama_cpps(kernels: str, type: GGMLType, kind: str, repository: Path) -> None:
    """Against what its quantiser left of the same tensor under the same matrix, recorded in tests/golden."""
    record = json.loads((repository / "tests" / "golden" / "llama_scales.json").read_text("utf-8"))
    x, columns = tensor(kind, *record["shape"]), record["shape"][1]
    for importance, theirs in zip((None, importances(columns)), record["rmse"][type.name][kind], strict=True):
        assert rmse(x, encode(x, type, importance), type, importance) < theirs


@pytest.mark.slow
@every_type
@pytest.mark.parametrize("columns", [3072, 8192])
def test_the_error_is_no_larger_than_that_of_the_llama_cpp_here(type: GGMLType, columns: int, smollm2: Path) -> None:
    """Larger made-up tensors, and a real one."""
    from bench.peer_quantizer import PeerQuantizer

    from phial.gguf.container import read_gguf

    try:
        peer = PeerQuantizer()
    except FileNotFoundError as error:
        pytest.skip(f"NOT COMPARED WITH LLAMA.CPP: {error}")
    with read_gguf(smollm2) as file:
        real = dithered(file, "blk.7.ffn_down.weight")
    for x in (*(tensor(kind, 64, columns, seed=2) for kind in KINDS), real):
        for importance in (None, importances(x.shape[1], seed=3)):
            theirs = rmse(x, peer(x, type, importance), type, importance)
            assert rmse(x, encode(x, type, importance), type, importance) <= theirs


@every_type
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_every_kernel_set_finds_what_the_definition_finds(
    kernels: str, type: GGMLType, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums run in another order and multiply-adds are fused, so near ties may fall differently: the errors agree."""
    x, importance = tensor("laplace", 5, 768), importances(768) if weighted else None
    x[0, :32] = 0
    x[1, 100:120] *= 1000
    x[2, :256] = np.abs(x[2, :256])
    found = search(x, type, importance)
    monkeypatch.setattr(scale_search, "_native", None)
    truth = search(x, type, importance)
    assert found.error == pytest.approx(truth.error, rel=1e-3)
    assert found.power == pytest.approx(truth.power, rel=1e-5)
    assert np.mean(found.data == truth.data) > 0.8  # a K block that fell differently is 7 % of these


@every_type
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_the_error_claimed_is_that_of_the_decoded_values(kernels: str, type: GGMLType, weighted: bool) -> None:
    x, importance = tensor("heavy", 19, 512), importances(512) if weighted else None
    found = search(x, type, importance)
    weights = np.ones(512) if importance is None else importance / importance.mean(dtype=np.float64)
    lost = np.square(dequantize(found.data, type, x.shape).astype(np.float64) - x) @ weights
    assert found.error == pytest.approx(lost.sum(), rel=1e-4)
    assert found.power == pytest.approx((np.square(x.astype(np.float64)) @ weights).sum(), rel=1e-5)


@every_type
def test_half_precision_sources_are_read_as_they_are(kernels: str, type: GGMLType) -> None:
    x = tensor("normal", 18, 256)
    half, bfloat = x.astype(np.float16), (x.view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(encode(half, type), encode(half.astype(np.float32), type))
    assert np.array_equal(encode(bfloat, type), encode((bfloat.astype(np.uint32) << 16).view(np.float32), type))


def test_sources_may_lie_anywhere(kernels: str) -> None:
    """Rows of a mapped file: at any address, any number of columns apart."""
    x = tensor("normal", 18, 512)
    data = np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not data.flags.aligned
    assert np.array_equal(encode(data, GGMLType.Q4_K), encode(x, GGMLType.Q4_K))
    assert np.array_equal(encode(x[::2, 256:], GGMLType.Q4_0), encode(x[::2, 256:].copy(), GGMLType.Q4_0))
    assert np.array_equal(encode(x.astype(np.float64), GGMLType.Q4_1), encode(x, GGMLType.Q4_1))


@every_type
def test_the_number_of_threads_changes_nothing(type: GGMLType) -> None:
    x, importance = tensor("laplace", 70, 512), importances(512)
    alone = search(x, type, importance, n_threads=1)
    together = search(x, type, importance, n_threads=2)
    assert np.array_equal(alone.data, together.data) and alone[1:] == together[1:]


@every_type
def test_importance_moves_the_error_to_the_columns_without_it(type: GGMLType) -> None:
    x, importance = tensor("normal", 16, 512), np.ones(512, np.float32)
    importance[::8] = 1000
    errors = [
        np.square(dequantize(data, type, x.shape) - x).mean(axis=0)
        for data in (encode(x, type, importance), encode(x, type))
    ]
    assert errors[0][::8].mean() < 0.7 * errors[1][::8].mean()
    assert np.delete(errors[0], np.s_[::8]).mean() > np.delete(errors[1], np.s_[::8]).mean()


@every_type
def test_only_ratios_of_importances_matter(type: GGMLType) -> None:
    x, importance = tensor("laplace", 4, 512), np.float32(2) ** np.arange(-256, 256).astype(np.float32).clip(-9, 9)
    data = encode(x, type, importance)
    for scale in (2.0**-100, 2.0**100):
        assert np.array_equal(encode(x, type, importance * np.float32(scale)), data)


@every_type
def test_groups_without_importance_count_as_evenly_weighted(type: GGMLType) -> None:
    x = tensor("normal", 4, 512)
    assert np.array_equal(encode(x, type, np.zeros(512, np.float32)), encode(x, type, np.ones(512, np.float32)))
    importance = np.ones(512, np.float32)
    importance[:256] = 0
    left, even = x[:, :256], encode(x, type)
    error = np.square(dequantize(encode(x, type, importance), type, x.shape)[:, :256] - left).mean()
    assert error < 1.1 * np.square(dequantize(even, type, x.shape)[:, :256] - left).mean()


@every_type
@pytest.mark.parametrize("level", [0.0, 1.0, -3.0, 0.37, 1e-2, 1e3, -2e4])
def test_one_value_repeated_is_kept(type: GGMLType, level: float) -> None:
    """To the precision of the scales: the smallest of these levels makes d of a K block a subnormal of nine bits."""
    x = np.full((2, 256), level, np.float32)
    assert np.allclose(dequantize(encode(x, type), type, x.shape), x, rtol=3e-3, atol=0)


@every_type
@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-20, 1e-7, 3e-6, 1e-4, 1e4])
def test_tiny_and_large_values_are_encoded_no_worse_than_by_rounding(type: GGMLType, magnitude: float) -> None:
    x = (tensor("normal", 4, 512) / 0.02 * magnitude).astype(np.float32)
    for importance in (None, importances(512)):
        data = encode(x, type, importance)
        values = dequantize(data, type, x.shape)
        assert np.isfinite(values).all()
        assert rmse(x, data, type, importance) <= rmse(x, quantize(x, type), type, importance) * (1 + 1e-6)


@every_type
def test_a_single_outlier_costs_its_own_block_alone(type: GGMLType) -> None:
    x = tensor("normal", 2, 1024)
    before = dequantize(encode(x, type), type, x.shape)
    x[1, 300] = 40.0
    data = encode(x, type)
    assert rmse(x, data, type) <= rmse(x, quantize(x, type), type) * (1 + 1e-6)
    after, block = dequantize(data, type, x.shape), FORMATS[type].elements
    start = 300 // block * block
    after[1, start : start + block] = before[1, start : start + block]
    assert np.array_equal(after, before)


@every_type
def test_rows_do_not_depend_on_each_other(type: GGMLType) -> None:
    x, importance = tensor("heavy", 37, 512), importances(512)
    data = encode(x, type, importance).reshape(37, -1)
    for rows in (slice(0, 1), slice(5, 36)):
        assert np.array_equal(encode(x[rows], type, importance), data[rows].reshape(-1))
    assert encode(x[:0], type).size == 0


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_and_importances_that_are_no_numbers_are_refused(kernels: str, type: GGMLType, bad: float) -> None:
    x, importance = np.ones((2, 256), np.float32), np.ones(256, np.float32)
    importance[7] = bad
    with pytest.raises(ArgumentError, match=f"importance of {bad}"):
        encode(x, type, importance)
    x[1, 200] = bad
    with pytest.raises(ArgumentError, match=f"NaN or infinity cannot be stored as {type.name}"):
        encode(x, type)


@pytest.mark.parametrize(
    ("importance", "says"),
    [
        (np.full(256, -1), "importance of -1"),
        (np.ones(255), "255.* for 256 columns"),
        (np.ones((2, 256)), "256 columns"),
    ],
)
def test_unusable_importances_are_refused(importance: NDArray[np.float64], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        encode(np.ones((2, 256), np.float32), GGMLType.Q4_K, importance.astype(np.float32))


@every_type
@pytest.mark.parametrize("value", [3e38, -3e38, 1e20, -1e20, 1e9, -1e9])
def test_scales_beyond_float16_are_refused(kernels: str, type: GGMLType, value: float) -> None:
    x = np.ones((2, 256), np.float32)
    x[1, 100] = value
    with pytest.raises(ArgumentError, match="does not fit float16"):
        encode(x, type)


def test_shapes_and_types_that_have_no_blocks_are_refused() -> None:
    with pytest.raises(FormatError, match="128 columns"):
        encode(np.ones((2, 128), np.float32), GGMLType.Q4_K)
    with pytest.raises(ArgumentError, match="F16"):
        encode(np.ones((2, 256), np.float32), GGMLType.F16)
    with pytest.raises(ArgumentError, match=r"shape \(256,\)"):
        encode(np.ones(256, np.float32), GGMLType.Q4_0)
    with pytest.raises(ArgumentError, match="n_threads is 0"):
        encode(np.ones((2, 256), np.float32), GGMLType.Q4_0, n_threads=0)
