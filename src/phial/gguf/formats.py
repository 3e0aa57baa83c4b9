"""Where every bit of a ggml block lies: types, structured dtypes, code fields and group-scale packing.

A format is the structured dtype of one block plus where its code bits and its group scales are stored.
What the bits are worth (`code * scale + offset`) is in blocks.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from phial.errors import FormatError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int32]


class GGMLType(IntEnum):
    """Tensor types by their number in the file. IQ and ternary types are not read."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


def spread(packed: Bytes, bits: int, run: int) -> Codes:
    """Split bytes into fields of `bits` bits.

    packed: (n, chunks * run). Within a chunk of `run` bytes the lowest field of every byte comes first, then the
    next field of every byte. Returns (n, chunks * (8 // bits) * run).
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = (packed.reshape(len(packed), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1).astype(np.int32)


def gather(fields: Codes, bits: int, run: int) -> Bytes:
    """Inverse of `spread`; bits above the field's width are dropped."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    masked = (fields & ((1 << bits) - 1)).astype(np.uint8)
    parts = masked.reshape(len(fields), -1, 8 // bits, run) << shifts
    packed: Bytes = np.bitwise_or.reduce(parts, axis=2).reshape(len(fields), -1)
    return packed


@dataclass(frozen=True)
class ScaleCodec:
    """How a K block stores one small scale (and minimum) per group.

    unpack: the `scales` bytes -> (scales, minimums), each (n, groups); minimums is None for symmetric formats.
    pack: the inverse. largest: the largest scale code that may be stored.
    """

    unpack: Callable[[Bytes], tuple[Codes, Codes | None]]
    pack: Callable[[Codes, Codes | None], Bytes]
    largest: int


def _unpack_6bit_pairs(packed: Bytes) -> tuple[Codes, Codes]:
    """12 bytes: eight 6-bit scales and eight 6-bit minimums; the last four of each are split in two places."""
    scale, minimum, low = (packed[:, i : i + 4].astype(np.int32) for i in (0, 4, 8))
    scales = np.concatenate([scale & 63, (low & 15) | (scale >> 6 << 4)], axis=1)
    minimums = np.concatenate([minimum & 63, (low >> 4) | (minimum >> 6 << 4)], axis=1)
    return scales, minimums


def _pack_6bit_pairs(scales: Codes, minimums: Codes | None) -> Bytes:
    assert minimums is not None
    first = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    second = minimums[:, :4] | (minimums[:, 4:] >> 4 << 6)
    low = (scales[:, 4:] & 15) | ((minimums[:, 4:] & 15) << 4)
    return np.concatenate([first, second, low], axis=1).astype(np.uint8)


def _unpack_4bit_pairs(packed: Bytes) -> tuple[Codes, Codes]:
    return (packed & 15).astype(np.int32), (packed >> 4).astype(np.int32)


def _pack_4bit_pairs(scales: Codes, minimums: Codes | None) -> Bytes:
    assert minimums is not None
    return (scales | minimums << 4).astype(np.uint8)


def _unpack_6bit(packed: Bytes) -> tuple[Codes, None]:
    """12 bytes: sixteen scales of 6 bits, biased by 32; low nibbles in 8 bytes, high bit pairs in 4."""
    return (spread(packed[:, :8], 4, 8) | spread(packed[:, 8:], 2, 4) << 4) - 32, None


def _pack_6bit(scales: Codes, minimums: Codes | None) -> Bytes:
    biased = scales + 32
    return np.concatenate([gather(biased, 4, 8), gather(biased >> 4, 2, 4)], axis=1)


def _unpack_int8(packed: Bytes) -> tuple[Codes, None]:
    return packed.view(np.int8).astype(np.int32), None


def _pack_int8(scales: Codes, minimums: Codes | None) -> Bytes:
    return scales.astype(np.int8).view(np.uint8)


_PAIRS_4 = ScaleCodec(_unpack_4bit_pairs, _pack_4bit_pairs, 15)
_PAIRS_6 = ScaleCodec(_unpack_6bit_pairs, _pack_6bit_pairs, 63)
_SIGNED_6 = ScaleCodec(_unpack_6bit, _pack_6bit, 31)
_SIGNED_8 = ScaleCodec(_unpack_int8, _pack_int8, 127)


@dataclass(frozen=True)
class BlockFormat:
    """One quantised block. Stored codes are `low bits | high bits << width`, minus `bias`.

    block: the bytes in file order; `d` is the float16 scale, `m` (where present) the float16 minimum.
    low, high: (bits, run) of the fields `qs` and `qh`, see `spread`.
    """

    elements: int
    block: np.dtype[np.void]
    low: tuple[int, int]
    high: tuple[int, int] | None = None
    bias: int = 0
    scales: ScaleCodec | None = None
    groups: int = 1

    @property
    def is_affine(self) -> bool:
        return "m" in (self.block.names or ())

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code after the bias."""
        bits = self.low[0] + (self.high[0] if self.high else 0)
        return -self.bias, (1 << bits) - 1 - self.bias


def _format(elements: int, fields: str, low: tuple[int, int], **options: object) -> BlockFormat:
    """fields: "name:bytes ..." in file order; d and m are float16, everything else bytes."""
    parts = [field.split(":") for field in fields.split()]
    spec = [(name, "<f2") if name in "dm" else (name, "u1", (int(size),)) for name, size in parts]
    return BlockFormat(elements, np.dtype(spec), low, **options)  # type: ignore[arg-type]


FORMATS: dict[GGMLType, BlockFormat] = {
    GGMLType.Q4_0: _format(32, "d:2 qs:16", (4, 16), bias=8),
    GGMLType.Q4_1: _format(32, "d:2 m:2 qs:16", (4, 16)),
    GGMLType.Q5_0: _format(32, "d:2 qh:4 qs:16", (4, 16), high=(1, 1), bias=16),
    GGMLType.Q5_1: _format(32, "d:2 m:2 qh:4 qs:16", (4, 16), high=(1, 1)),
    GGMLType.Q8_0: _format(32, "d:2 qs:32", (8, 32), bias=128),
    GGMLType.Q2_K: _format(256, "scales:16 qs:64 d:2 m:2", (2, 32), scales=_PAIRS_4, groups=16),
    GGMLType.Q3_K: _format(
        256, "qh:32 qs:64 scales:12 d:2", (2, 32), high=(1, 32), bias=4, scales=_SIGNED_6, groups=16
    ),
    GGMLType.Q4_K: _format(256, "d:2 m:2 scales:12 qs:128", (4, 32), scales=_PAIRS_6, groups=8),
    GGMLType.Q5_K: _format(256, "d:2 m:2 scales:12 qh:32 qs:128", (4, 32), high=(1, 32), scales=_PAIRS_6, groups=8),
    GGMLType.Q6_K: _format(
        256, "qs:128 qh:64 scales:16 d:2", (4, 64), high=(2, 32), bias=32, scales=_SIGNED_8, groups=16
    ),
}
PLAIN_BYTES = {GGMLType.F32: 4, GGMLType.F16: 2, GGMLType.BF16: 2}

# (elements per block, bytes per block)
BLOCK_SIZES: dict[GGMLType, tuple[int, int]] = {
    **{kind: (1, size) for kind, size in PLAIN_BYTES.items()},
    **{kind: (form.elements, form.block.itemsize) for kind, form in FORMATS.items()},
}


def n_bytes(type: GGMLType, shape: Sequence[int]) -> int:
    """Bytes a tensor of this type and shape (numpy order) takes. FormatError where rows do not hold whole blocks."""
    elements, size = BLOCK_SIZES[type]
    columns = shape[-1] if shape else 1
    if columns % elements:
        raise FormatError(
            f"{type.name} stores blocks of {elements} elements, which {columns} columns do not fill evenly",
            "keep this tensor in F16, or choose a type with smaller blocks",
        )
    return math.prod(shape) // elements * size
