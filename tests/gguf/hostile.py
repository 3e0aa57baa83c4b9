"""Hostile GGUF files, at least one per class of bug that GGUF readers have had, each with what the error must say.

Each case is (name, bytes, fragments of the message): the field and both numbers. Files whose container is correct
but whose model is absurd are in test_hostile_models.py.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.gguf.craft import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    COUNT,
    DATA,
    HUGE,
    I32,
    MATRIX,
    STRING,
    TYPE_F32,
    TYPE_Q4_0,
    U8,
    U32,
    U64,
    VECTOR,
    array,
    build,
    key,
    tensor,
    text,
    u32,
    u64,
    valid,
)


class Case(NamedTuple):
    name: str
    content: bytes
    says: tuple[str, ...]


def with_key(name: str, entry: bytes, *says: str) -> Case:
    return Case(name, build([ARCHITECTURE, entry], [MATRIX, VECTOR], DATA), says)


def with_tensor(name: str, entry: bytes, *says: str) -> Case:
    return Case(name, build([COUNT], [entry], bytes(256)), says)


def with_alignment(name: str, kind: int, value: bytes, *says: str) -> Case:
    return with_key(name, key(b"general.alignment", kind, value), "general.alignment", *says)


HEADERS = [
    Case("43 bytes, key length past the end", b"GGUF" + u32(3) + u64(0) + u64(1) + u64(2**63 - 1) + b"general.arc",
         ("key 0 length", str(2**63 - 1), "11")),
    Case("43 bytes, cut before the element type", b"GGUF" + u32(3) + u64(0) + u64(1) + text(b"numbers") + u32(ARRAY),
         ("element type of 'numbers'", "43")),
    Case("43 bytes of zero", bytes(43), ("magic",)),
    Case("empty", b"", ("24", "0")),
    Case("header cut", valid()[:23], ("24", "23")),
    Case("wrong magic", b"GGML" + valid()[4:], ("magic", "GGML")),
    Case("zip archive", b"PK\x03\x04" + bytes(60), ("magic",)),
    Case("version 0", build([], [], version=0), ("version is 0",)),
    Case("version 1", build([], [], version=1), ("version is 1",)),
    Case("version 4", build([], [], version=4), ("version is 4",)),
    Case("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(40), ("big-endian", "50331648", "3")),
    Case("tensor count overflow", build([], [], n_tensors=HUGE), ("tensor count", str(HUGE))),
    Case("tensor count over the file", build([], [], n_tensors=60000), ("tensor count", "60000")),
    Case("tensor count wraps 64 bits when multiplied", build([], [], n_tensors=2**64 // 8), ("tensor count",)),
    Case("key count overflow", build([], [], n_keys=HUGE), ("key count", str(HUGE))),
    Case("key count over the file", build([COUNT], [], n_keys=9000), ("key count", "9000")),
    Case("one key missing", b"GGUF" + u32(3) + u64(0) + u64(2) + COUNT, ("key count is 2", "28", "21")),
    Case("negative key count", build([], [], n_keys=-1 % 2**64), ("key count",)),
]  # fmt: skip

KEYS = [
    with_key("key length past the end", text(b"k", HUGE) + u32(U32) + u32(1), "key 1 length", str(HUGE)),
    with_key("key longer than the cap", key(b"k" * 2000, U32, u32(1)), "key 1 length", "2000", "1024"),
    with_key("empty key", key(b"", U32, u32(1)), "key 1", "empty"),
    with_key("key is not UTF-8", key(b"\xff\xfe", U32, u32(1)), "key 1", "UTF-8"),
    with_key("key writes to the terminal", key(b"a\x1b[2J", U32, u32(1)), "key 1", "not printable"),
    with_key("duplicate key", ARCHITECTURE, "'general.architecture'", "twice"),
    with_key("unknown value type", key(b"k", 13, u32(1)), "type of 'k'", "13", "12"),
    with_key("huge value type", key(b"k", 2**32 - 1, u32(1)), "type of 'k'", str(2**32 - 1)),
    with_key("string length past the end", key(b"k", STRING, text(b"v", 2**40)), "'k' length", str(2**40)),
    with_key("string length overflow", key(b"k", STRING, text(b"v", HUGE)), "'k' length", str(HUGE)),
    with_key("boolean is 2", key(b"k", BOOL, b"\x02"), "'k'", "2", "boolean"),
    with_key("boolean array holds 255", key(b"k", ARRAY, array(BOOL, 2, b"\x01\xff")), "'k'", "255"),
    with_key("array length past the end", key(b"k", ARRAY, array(I32, 10**6, b"")), "length of 'k'", "1000000"),
    with_key("array length overflow", key(b"k", ARRAY, array(U64, HUGE, b"")), "length of 'k'", str(HUGE)),
    with_key("array bytes wrap 64 bits", key(b"k", ARRAY, array(U64, 2**61 + 1, u64(1))), "length of 'k'"),
    with_key("string array length past the end", key(b"k", ARRAY, array(STRING, 4000, b"")), "length of 'k'", "4000"),
    with_key("string in an array past the end", key(b"k", ARRAY, array(STRING, 2, text(b"a") + text(b"b", 2**50))),
             "'k'[1]", str(2**50)),
    with_key("string in an array overflow", key(b"k", ARRAY, array(STRING, 1, text(b"b", HUGE))), "'k'[0]", str(HUGE)),
    with_key("nested array", key(b"k", ARRAY, array(ARRAY, 1, array(U8, 1, b"\x01"))), "'k'", "array of arrays"),
    with_key("deeply nested array", key(b"k", ARRAY, array(ARRAY, 1, b"") * 100), "'k'", "array of arrays"),
    with_key("unknown element type", key(b"k", ARRAY, array(77, 1, u32(1))), "element type of 'k'", "77"),
    with_alignment("alignment 0", U32, u32(0), "is 0"),
    with_alignment("alignment 48", U32, u32(48), "48", "power of two"),
    with_alignment("alignment 2^31", U32, u32(2**31), str(2**31)),
    with_alignment("alignment of the wrong type", U64, u64(32), "U64", "U32"),
    with_alignment("alignment is an array", ARRAY, array(U32, 1, u32(32)), "ARRAY", "U32"),
    with_alignment("alignment is text", STRING, text(b"32"), "STRING", "U32"),
]  # fmt: skip

TENSORS = [
    with_tensor("no dimensions", tensor(b"t", [], TYPE_F32, 0), "'t'", "0 dimensions"),
    with_tensor("five dimensions", tensor(b"t", [1] * 5, TYPE_F32, 0), "'t'", "5 dimensions", "4"),
    with_tensor("2^32 - 1 dimensions", tensor(b"t", [1], TYPE_F32, 0, 2**32 - 1), "'t'", str(2**32 - 1)),
    with_tensor("dimension 0", tensor(b"t", [32, 0], TYPE_F32, 0), "'t'", "(0, 32)"),
    with_tensor("dimension product overflows to 0", tensor(b"t", [2**32, 2**32], TYPE_F32, 0), "'t'", str(2**32)),
    with_tensor("dimension product overflows to 32", tensor(b"t", [2**63 + 16, 2], TYPE_F32, 0), "(2, 922337203685477"),
    with_tensor("negative dimension", tensor(b"t", [2**64 - 32, 1], TYPE_F32, 0), "'t'", str(2**64 - 32)),
    with_tensor("byte count overflow", tensor(b"t", [2**62], TYPE_F32, 0), "'t' ends at byte", str(2**64 + 96)),
    with_tensor("unknown tensor type", tensor(b"t", [32], 1000, 0), "'t'", "1000", "unknown"),
    with_tensor("removed tensor type", tensor(b"t", [32], 4, 0), "'t'", "type 4"),
    with_tensor("tensor type that is not read", tensor(b"t", [256], 23, 0), "'t'", "IQ4_XS"),
    with_tensor("block-size misfit", tensor(b"t", [33], TYPE_Q4_0, 0), "'t'", "32", "33"),
    with_tensor("row misfit though the total fits", tensor(b"t", [16, 2], TYPE_Q4_0, 0), "'t'", "32", "16"),
    with_tensor("superblock misfit", tensor(b"t", [128, 2], 12, 0), "'t'", "256", "128"),
    with_tensor("offset past the end", tensor(b"t", [4], TYPE_F32, 1024), "'t' ends at byte", "1136", "352"),
    with_tensor("offset overflow", tensor(b"t", [4], TYPE_F32, 2**64 - 32), "'t' ends at byte", "352"),
    with_tensor("offset not aligned", tensor(b"t", [4], TYPE_F32, 8), "offset of 't'", "8", "32"),
    with_tensor("size past the end", tensor(b"t", [65], TYPE_F32, 0), "'t' ends at byte", "356", "352"),
    with_tensor("empty tensor name", tensor(b"", [4], TYPE_F32, 0), "name of tensor 0", "empty"),
    with_tensor("tensor name too long", tensor(b"n" * 300, [4], TYPE_F32, 0), "name of tensor 0", "300", "256"),
    with_tensor("tensor name is not UTF-8", tensor(b"\xc3", [4], TYPE_F32, 0), "name of tensor 0", "UTF-8"),
    Case("duplicate tensor", build([], [VECTOR, VECTOR], bytes(256)), ("'vector'", "twice")),
    Case("overlapping tensors", build([], [MATRIX, tensor(b"inside", [4], TYPE_F32, 32)], bytes(256)),
         ("'matrix' ends at byte", "'inside' starts at", "164", "160")),
    Case("same bytes twice", build([], [tensor(b"b", [4], TYPE_F32, 0), tensor(b"a", [4], TYPE_F32, 0)], bytes(64)),
         ("'b' ends", "'a' starts")),
    Case("one tensor around another", build([], [tensor(b"out", [60], TYPE_F32, 0), tensor(b"in", [1], TYPE_F32, 64)],
         bytes(256)), ("'out' ends", "'in' starts")),
    Case("tensor without a data section", build([], [VECTOR]), ("'vector' ends",)),
]  # fmt: skip

CASES = [*HEADERS, *KEYS, *TENSORS]
