"""Turning the cached keys of a page: every layout of the core's cache against numpy, page bytes taken apart here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phial.engine.reference import rotate_pairs
from phial.gguf.blocks import GGMLType, dequantize, quantize

native = pytest.importorskip("phial._native", reason="the compiled core is not built", exc_type=ImportError)

LAYERS, HEADS, PAGE, GROUP = 2, 3, 64, 16
# The rounding of a key: relative to itself, in q8_0 to the largest of the 32 that share a scale (rounded to float16).
ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.5 / 127 + 2.0**-11}
TYPES = {"f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}


def make_cache(cache_type: str, head_dim: int, interleaved: bool) -> Any:
    model = native.Model(
        n_vocab=40, n_embd=64, n_layer=LAYERS, n_head=HEADS, n_head_kv=HEADS, head_dim=head_dim, n_ff=64,
        rms_norm_eps=1e-5, rope_dim=head_dim, rope_interleaved=interleaved, sliding_window=0, n_threads=1,
    )  # fmt: skip
    return native.Cache(model, cache_type)


def key_bytes(cache_type: str, head_dim: int) -> int:
    padded = -(-head_dim // 32) * 32
    return 34 * padded // 32 if cache_type == "q8_0" else 2 * head_dim


def regions(cache: Any, cache_type: str, head_dim: int) -> tuple[int, int]:
    """Bytes of a head in a page, and of its keys, which come first."""
    return cache.page_bytes // (LAYERS * HEADS), PAGE * key_bytes(cache_type, head_dim)


def pack(keys: np.ndarray, cache_type: str) -> bytes:
    """Keys (16, head_dim) as the core's tile: words of 4 bytes (q8_0) or values (16 bits) of 16 keys side by side."""
    padded = -(-keys.shape[1] // 32) * 32 if cache_type == "q8_0" else keys.shape[1]
    rows = np.zeros((GROUP, padded), np.float32)
    rows[:, : keys.shape[1]] = keys
    data = quantize(rows, TYPES[cache_type]).reshape(GROUP, -1)
    if cache_type != "q8_0":
        return data.view(np.uint16).T.tobytes()
    blocks = data.reshape(GROUP, -1, 34)
    parts = []
    for b in range(blocks.shape[1]):
        parts += [blocks[:, b, 2:].reshape(GROUP, 8, 4).swapaxes(0, 1).tobytes(), blocks[:, b, :2].tobytes()]
    return b"".join(parts)


def unpack(data: bytes, cache_type: str, head_dim: int) -> np.ndarray:
    raw = np.frombuffer(data, np.uint8)
    if cache_type != "q8_0":
        rows = raw.view(np.uint16).reshape(head_dim, GROUP).T
        return dequantize(np.ascontiguousarray(rows).view(np.uint8), TYPES[cache_type], (GROUP, head_dim))
    blocks = raw.reshape(-1, 34 * GROUP)
    out = np.empty((GROUP, len(blocks), 34), np.uint8)
    out[:, :, 2:] = blocks[:, :512].reshape(-1, 8, GROUP, 4).transpose(2, 0, 1, 3).reshape(GROUP, -1, 32)
    out[:, :, :2] = blocks[:, 512:].reshape(-1, GROUP, 2).swapaxes(0, 1)
    return dequantize(out.reshape(-1), GGMLType.Q8_0, (GROUP, 32 * len(blocks)))[:, :head_dim]


def all_keys(page: bytes, cache: Any, cache_type: str, head_dim: int) -> np.ndarray:
    """(PAGE, LAYERS * HEADS, head_dim)."""
    stride, size = regions(cache, cache_type, head_dim)
    group = size // (PAGE // GROUP)
    heads = []
    for at in range(0, len(page), stride):
        groups = [page[at + g * group : at + (g + 1) * group] for g in range(PAGE // GROUP)]
        heads.append(np.concatenate([unpack(data, cache_type, head_dim) for data in groups]))
    return np.stack(heads, axis=1)


def random_page(cache: Any, cache_type: str, head_dim: int, rng: np.random.Generator) -> bytes:
    """Random keys in the core's layout; the values are random bytes that nobody may touch."""
    stride, size = regions(cache, cache_type, head_dim)
    parts = []
    for _ in range(LAYERS * HEADS):
        keys = rng.standard_normal((PAGE, head_dim)).astype(np.float32)
        parts += [pack(keys[g : g + GROUP], cache_type) for g in range(0, PAGE, GROUP)]
        parts.append(rng.bytes(stride - size))
    return b"".join(parts)


def angles(rng: np.random.Generator, half: int) -> tuple[np.ndarray, np.ndarray]:
    turn = rng.uniform(-4, 4, (PAGE, half))
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


@pytest.mark.parametrize("kernels", native.kernel_sets())
@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rope_dim"), [(96, 96), (128, 96), (80, 80), (16, 8)])
@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_keys_turn_as_in_numpy_and_values_stay(
    cache_type: str, head_dim: int, rope_dim: int, interleaved: bool, kernels: str
) -> None:
    rng, before = np.random.default_rng(1), native.current_kernels()
    cache = make_cache(cache_type, head_dim, interleaved)
    page, other = cache.new_page(), cache.new_page()
    data = random_page(cache, cache_type, head_dim, rng)
    cache.write_page(page, data)
    cache.write_page(other, data)
    cos, sin = angles(rng, rope_dim // 2)
    native.use_kernels(kernels)
    try:
        cache.rotate_keys(page, cos, sin)
    finally:
        native.use_kernels(before)
    got = cache.read_page(page)
    keys = all_keys(data, cache, cache_type, head_dim)
    expected = rotate_pairs(keys, cos[:, None], sin[:, None], interleaved)
    scale = np.abs(expected).max() if cache_type == "q8_0" else np.abs(expected)
    error = np.abs(all_keys(got, cache, cache_type, head_dim) - expected)
    assert (error <= 1.01 * ROUNDING[cache_type] * scale + 1e-6).all()
    assert np.abs(expected - keys).max() > 1  # they did turn
    if cache_type != "q8_0":
        unturned = all_keys(got, cache, cache_type, head_dim)[..., rope_dim:]
        np.testing.assert_array_equal(unturned, keys[..., rope_dim:])
    stride, size = regions(cache, cache_type, head_dim)
    for at in range(0, len(data), stride):
        assert got[at + size : at + stride] == data[at + size : at + stride]  # the values
    assert cache.read_page(other) == data


@pytest.mark.parametrize("cache_type", ["f16", "bf16"])
def test_turning_by_nothing_changes_nothing(cache_type: str) -> None:
    cache = make_cache(cache_type, 96, False)
    page, data = cache.new_page(), random_page(cache, cache_type, 96, np.random.default_rng(2))
    cache.write_page(page, data)
    cache.rotate_keys(page, np.ones((PAGE, 48), np.float32), np.zeros((PAGE, 48), np.float32))
    assert cache.read_page(page) == data


def test_bad_arguments_are_refused() -> None:
    cache = make_cache("f16", 96, False)
    page, fits, wide = cache.new_page(), np.ones((PAGE, 48), np.float32), np.ones((PAGE, 49), np.float32)
    for bad in (
        (page + 1, fits, fits),
        (page, fits[:63], fits[:63]),
        (page, fits, fits[:, :47].copy()),
        (page, wide, wide),
    ):
        with pytest.raises(ValueError):
            cache.rotate_keys(*bad)
