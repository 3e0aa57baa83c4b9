"""What reader and writer of the GGUF container share: magic, value types, and the caps a file must keep.

The caps exist because a file is an input from a stranger. Each is several times what the largest public models
need and small enough that a file which reaches all of them still cannot exhaust memory.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 used 32-bit lengths and is long gone
DEFAULT_ALIGNMENT = 32
HEADER_BYTES = 24  # magic, version, tensor count, key count

MAX_HEADER_BYTES = 128 << 20  # everything before the tensor data; a 262k vocabulary with merges takes about 15 MiB
MAX_KEYS = 1 << 14  # models carry 20 to 60
MAX_KEY_BYTES = 1 << 10  # the longest key in use has about 60
MAX_STRING_BYTES = 8 << 20  # chat templates reach about 100 KiB
MAX_ARRAY_LENGTH = 1 << 22  # merges of the largest vocabularies reach about half a million
MAX_TENSORS = 1 << 16  # the largest mixture-of-experts models have a few thousand
MAX_NAME_BYTES = 256  # ggml itself stops at 63
MAX_DIMENSIONS = 4  # ggml's limit
MAX_ELEMENTS = (1 << 63) - 1  # what a signed 64-bit count can hold; larger products overflow in other readers
MAX_ALIGNMENT = 1 << 24  # 16 MiB; a huge page is 2 MiB

# A key takes a length, at least one character, a type and at least one byte of value; a tensor a length, a
# character, a dimension count, one dimension, a type and an offset.
MIN_KEY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8


class ValueType(IntEnum):
    """Metadata value types by their number in the file."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


# Everything but strings and arrays, as stored.
SCALARS: dict[ValueType, np.dtype[np.generic]] = {
    ValueType.U8: np.dtype("u1"),
    ValueType.I8: np.dtype("i1"),
    ValueType.U16: np.dtype("<u2"),
    ValueType.I16: np.dtype("<i2"),
    ValueType.U32: np.dtype("<u4"),
    ValueType.I32: np.dtype("<i4"),
    ValueType.F32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.U64: np.dtype("<u8"),
    ValueType.I64: np.dtype("<i8"),
    ValueType.F64: np.dtype("<f8"),
}

# Tensor types that exist but are not read, so that the error can name them.
UNREAD_TENSOR_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment` at or after `offset`."""
    return -(-offset // alignment) * alignment
