"""The ggml block formats in numpy: what every quantised byte is worth.

This file is the definition the native kernels must match: every value is `code * scale + offset`, computed in
float32; formats.py says where the bits lie. The encoders round to the nearest code and do not search for better
scales: that is scale_search.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, FormatError
from phial.gguf.formats import (
    BLOCK_SIZES,
    FORMATS,
    PLAIN_BYTES,
    BlockFormat,
    Bytes,
    Codes,
    GGMLType,
    gather,
    n_bytes,
    spread,
)

__all__ = ["BLOCK_SIZES", "GGMLType", "dequantize", "n_bytes", "quantize", "random_blocks"]

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]  # (n,) of a format's structured dtype

# Elements per pass: bounds the temporaries to a few tens of MiB, whatever the tensor's size.
_PASS_ELEMENTS = 1 << 20


def _passes(n: int, per_pass: int) -> Iterator[slice]:
    return (slice(start, min(start + per_pass, n)) for start in range(0, n, per_pass))


def _codes(form: BlockFormat, blocks: Blocks) -> Codes:
    """(n, elements) signed codes."""
    codes = spread(blocks["qs"], *form.low)
    if form.high:
        codes |= spread(blocks["qh"], *form.high) << form.low[0]
    if form.low[0] == 8:  # Q8_0 stores two's complement, not a bias
        codes ^= 128
    return codes - form.bias


def store_codes(form: BlockFormat, blocks: Blocks, codes: Codes) -> None:
    """Write signed codes (n, elements) into the code bits of blocks (n,)."""
    stored = codes + form.bias
    if form.low[0] == 8:
        stored ^= 128
    blocks["qs"] = gather(stored, *form.low)
    if form.high:
        blocks["qh"] = gather(stored >> form.low[0], *form.high)


def _column(field: NDArray[np.void]) -> Floats:
    return field.astype(np.float32)[:, None]


def _decode(form: BlockFormat, blocks: Blocks) -> Floats:
    """(n, elements) float32; the order of the float operations is ggml's, so results agree bit for bit."""
    scale = _column(blocks["d"])
    offset = _column(blocks["m"]) if form.is_affine else None
    if form.scales:
        scale_codes, minimum_codes = form.scales.unpack(blocks["scales"])
        scale = scale * scale_codes.astype(np.float32)
        if offset is not None and minimum_codes is not None:
            offset = -(offset * minimum_codes.astype(np.float32))
    codes = _codes(form, blocks).astype(np.float32).reshape(len(blocks), form.groups, -1)
    values = codes * scale[:, :, None]
    if offset is not None:  # no "+ 0" for symmetric formats: it would turn -0.0 into 0.0
        values += offset[:, :, None]
    return values.reshape(len(blocks), form.elements)


def dequantize(data: Bytes, type: GGMLType, shape: Sequence[int]) -> Floats:
    """Bytes of a tensor -> float32 of `shape` (numpy order: rows, columns). FormatError on a wrong byte count."""
    expected = n_bytes(type, shape)
    raw = np.ascontiguousarray(data).reshape(-1)
    if raw.dtype != np.uint8 or raw.size != expected:
        raise FormatError(f"{type.name} of shape {tuple(shape)} needs {expected} uint8, got {raw.size} {raw.dtype}")
    if type == GGMLType.F32:
        return raw.view("<f4").astype(np.float32).reshape(shape)
    if type == GGMLType.F16:
        return raw.view("<f2").astype(np.float32).reshape(shape)
    if type == GGMLType.BF16:
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    form = FORMATS[type]
    blocks = raw.view(form.block)
    out = np.empty((len(blocks), form.elements), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # hostile scales may be inf; the caller sees the values
        for part in _passes(len(blocks), _PASS_ELEMENTS // form.elements):
            out[part] = _decode(form, blocks[part])
    return out.reshape(shape)


def half(x: Floats) -> NDArray[np.float16]:
    """float16, because `d` and `m` must be rounded before codes are chosen under them.

    ArgumentError where a value does not fit.
    """
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if not np.isfinite(half).all():
        raise ArgumentError(
            f"a block scale of {float(np.abs(x).max()):g} does not fit float16 (largest 65504)",
            "rescale the tensor or keep it in F32",
        )
    return half


def _nearest(x: Floats, step: Floats, low: int, high: int) -> Codes:
    """round(x / step) clipped to [low, high]; 0 where step is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(step == 0, np.float32(0), x / step)
    return np.clip(np.rint(ratio), low, high).astype(np.int32)


def _signed_largest(groups: Floats) -> Floats:
    """The signed value of largest magnitude along the last axis."""
    index = np.abs(groups).argmax(axis=-1)[..., None]
    return np.take_along_axis(groups, index, axis=-1)[..., 0]


def _encode_affine(form: BlockFormat, groups: Floats, blocks: Blocks) -> Codes:
    high = form.code_range[1]
    if form.scales is None:
        low = groups.min(axis=2)[:, 0]
        blocks["m"] = half(low)
        blocks["d"] = half(groups.max(axis=2)[:, 0] / np.float32(high) - low / np.float32(high))
        return _nearest(groups - _column(blocks["m"])[:, :, None], _column(blocks["d"])[:, :, None], 0, high)
    floor = np.minimum(groups.min(axis=2), 0)  # stored minimums are unsigned and subtracted
    step = np.maximum(groups.max(axis=2), 0) / np.float32(high) - floor / np.float32(high)
    blocks["d"] = half(step.max(axis=1) / np.float32(form.scales.largest))
    blocks["m"] = half((-floor).max(axis=1) / np.float32(form.scales.largest))
    scales = _nearest(step, _column(blocks["d"]), 0, form.scales.largest)
    minimums = _nearest(-floor, _column(blocks["m"]), 0, form.scales.largest)
    blocks["scales"] = form.scales.pack(scales, minimums)
    shift = _column(blocks["m"]) * minimums.astype(np.float32)
    step = _column(blocks["d"]) * scales.astype(np.float32)
    return _nearest(groups + shift[:, :, None], step[:, :, None], 0, high)


def _encode_symmetric(form: BlockFormat, groups: Floats, blocks: Blocks) -> Codes:
    low, high = form.code_range
    if form.low[0] == 8:  # Q8_0 by convention leaves -128 out
        low = -high
    # The most negative code has no positive twin, so the value of largest magnitude is mapped onto it.
    step = _signed_largest(groups) / np.float32(low)
    if form.scales is None:
        blocks["d"] = half(np.abs(step[:, 0]) if low == -high else step[:, 0])
        return _nearest(groups, _column(blocks["d"])[:, :, None], low, high)
    blocks["d"] = half(np.abs(step).max(axis=1) / np.float32(form.scales.largest))
    scales = _nearest(step, _column(blocks["d"]), -form.scales.largest, form.scales.largest)
    blocks["scales"] = form.scales.pack(scales, None)
    step = _column(blocks["d"]) * scales.astype(np.float32)
    return _nearest(groups, step[:, :, None], low, high)


def _encode(form: BlockFormat, x: Floats, blocks: Blocks) -> None:
    groups = x.reshape(len(blocks), form.groups, -1)
    encode = _encode_affine if form.is_affine else _encode_symmetric
    store_codes(form, blocks, encode(form, groups, blocks).reshape(len(blocks), form.elements))


def _to_plain(x: Floats, type: GGMLType) -> Bytes:
    if type == GGMLType.F32:
        return x.astype("<f4").reshape(-1).view(np.uint8)
    with np.errstate(over="ignore"):
        if type == GGMLType.F16:
            out = x.astype("<f2").reshape(-1).view("<u2")
            infinity = 0x7C00
        else:
            bits = x.reshape(-1).view(np.uint32)
            rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16  # to nearest, ties to even
            # A NaN must stay one: set its quiet bit instead of rounding.
            out = np.where(np.isnan(x.reshape(-1)), bits >> 16 | 0x40, rounded).astype("<u2")
            infinity = 0x7F80
    if (((out & 0x7FFF) == infinity) & np.isfinite(x).reshape(-1)).any():
        raise ArgumentError(f"a value of {float(np.abs(x).max()):g} does not fit {type.name}", "keep it in F32")
    return out.view(np.uint8)


def quantize(x: Floats, type: GGMLType) -> Bytes:
    """float32 (…, columns) -> the tensor's bytes, (n_bytes,). Rounds to nearest.

    ArgumentError where block types meet NaN or infinity, or a scale or value does not fit the type;
    FormatError where the columns do not fill whole blocks.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    size = n_bytes(type, x.shape)
    if type in PLAIN_BYTES:
        return _to_plain(x, type)
    if not np.isfinite(x).all():
        raise ArgumentError(f"NaN or infinity cannot be stored as {type.name}", "check the tensor's source")
    form = FORMATS[type]
    out = np.empty(size, dtype=np.uint8)
    blocks, values = out.view(form.block), x.reshape(-1, form.elements)
    for part in _passes(len(blocks), _PASS_ELEMENTS // form.elements):
        _encode(form, values[part], blocks[part])
    return out


def random_blocks(type: GGMLType, shape: Sequence[int], rng: np.random.Generator, scale: float = 0.02) -> Bytes:
    """Valid random bytes of a tensor, (n_bytes,), whose values have mean near 0 and standard deviation near `scale`.

    All code and group-scale bits are uniform, so every code occurs; `d` and `m` are finite and vary by block.
    """
    size = n_bytes(type, shape)
    if type in PLAIN_BYTES:
        return quantize(rng.standard_normal(tuple(shape), dtype=np.float32) * np.float32(scale), type)
    form = FORMATS[type]
    out = np.frombuffer(bytearray(rng.bytes(size)), dtype=np.uint8)
    blocks = out.view(form.block)
    # Centre: a minimum of half the largest code, in steps of d. K blocks subtract theirs, the others add it.
    centre = form.code_range[1] / 2 * (1 if form.scales else -1)
    probe = np.frombuffer(rng.bytes(64 * form.block.itemsize), dtype=form.block).copy()
    _set_scales(form, probe, np.ones(64), centre)
    unit = float(_decode(form, probe).std())
    _set_scales(form, blocks, rng.uniform(0.5, 1.5, len(blocks)) * scale / unit, centre)
    return out


def _set_scales(form: BlockFormat, blocks: Blocks, d: NDArray[np.float64], centre: float) -> None:
    blocks["d"] = d
    if form.is_affine:
        blocks["m"] = d * centre
