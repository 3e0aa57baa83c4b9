"""GGUF files put together byte by byte, so that a test can break any field. Shares no code with the writer."""

from __future__ import annotations

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_Q4_0 = 0, 2
HUGE = 2**64 - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(raw: bytes, length: int | None = None) -> bytes:
    """A string whose length field may lie."""
    return u64(len(raw) if length is None else length) + raw


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def array(kind: int, length: int, elements: bytes) -> bytes:
    return u32(kind) + u64(length) + elements


def tensor(name: bytes, dimensions: list[int], kind: int, offset: int, n_dimensions: int | None = None) -> bytes:
    """One entry of the tensor list; dimensions in file order, the row length first."""
    count = len(dimensions) if n_dimensions is None else n_dimensions
    return text(name) + u32(count) + b"".join(map(u64, dimensions)) + u32(kind) + u64(offset)


def build(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    header = b"GGUF" + u32(version) + b"".join(map(u64, counts)) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data


ARCHITECTURE = key(b"general.architecture", STRING, text(b"phi3"))
WORDS = key(b"tokenizer.ggml.tokens", ARRAY, array(STRING, 2, text(b"a") + text(b"bc")))
NUMBERS = key(b"numbers", ARRAY, array(I32, 3, struct.pack("<3i", 1, -2, 3)))
COUNT = key(b"count", U32, u32(7))
MATRIX = tensor(b"matrix", [32, 2], TYPE_Q4_0, 0)  # 36 bytes, so the next one starts at 64
VECTOR = tensor(b"vector", [4], TYPE_F32, 64)
DATA = bytes(range(36)) + bytes(28) + struct.pack("<4f", 1, 2, 3, 4)


def valid(version: int = 3) -> bytes:
    """A small correct file with every kind of section."""
    return build([ARCHITECTURE, WORDS, NUMBERS, COUNT], [MATRIX, VECTOR], DATA, version=version)
