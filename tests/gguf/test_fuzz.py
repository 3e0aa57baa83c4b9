"""Property-based fuzz: whatever the bytes, reading ends soon, in little memory, with a file or a PhialError."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.gguf import craft

from phial.errors import PhialError
from phial.gguf.blocks import GGMLType, random_blocks
from phial.gguf.container import read_gguf, write_gguf
from phial.gguf.describe import describe

INTERESTING = [0, 1, 2, 7, 8, 9, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63, 2**64 - 1]
OPERATIONS = ["flip", "u32", "u64", "cut", "delete", "repeat", "insert"]
Mutation = tuple[str, int, int, int]
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 4000), st.sampled_from(INTERESTING), st.integers(1, 40)),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations: list[Mutation]) -> bytes:
    data = bytearray(content)
    for operation, where, value, length in mutations:
        at = where % (len(data) + 1)
        if operation == "flip" and at < len(data):
            data[at] ^= value & 255 or 1
        elif operation in ("u32", "u64"):
            width = int(operation[1:]) // 8
            data[at : at + width] = struct.pack("<Q", value)[:width]
        elif operation == "cut":
            del data[at:]
        elif operation == "delete":
            del data[at : at + length]
        elif operation == "repeat":
            data[at:at] = data[at : at + length]
        elif operation == "insert":
            data[at:at] = bytes([value & 255]) * length
    return bytes(data)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bool]:
    """Read the bytes as a file and use all of it; True if it was accepted. Any error but PhialError escapes."""
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.gguf"

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with read_gguf(path) as file:
                for name, info in file.tensors.items():
                    assert info.offset + info.n_bytes <= len(content)
                    assert file.dequantized(name).shape == info.shape
                json.dumps(describe(file), allow_nan=False).encode()
            return True
        except PhialError as error:
            assert error.message
            return False
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < (1 << 20) + 200 * len(content)

    return check


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a tensor of every type and an array of every kind."""
    path, rng = tmp_path_factory.mktemp("seed") / "seed.gguf", np.random.default_rng(0)
    tensors = [(f"t{int(kind)}", (1, 256), kind, random_blocks(kind, (1, 256), rng)) for kind in GGMLType]
    arrays = {f"a.{d}": np.arange(3).astype(d) for d in "u1 i1 u2 i2 u4 i4 f4 u8 i8 f8 ?".split()}
    write_gguf(path, {"general.architecture": "phi3", "texts": ["a", "", "bc"], **arrays}, tensors)
    return path.read_bytes()


def test_the_unbroken_seeds_are_accepted(check: Callable[[bytes], bool], every_type: bytes) -> None:
    assert check(craft.valid(2)) and check(craft.valid(3)) and check(every_type)


FUZZ = settings(deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FUZZ, max_examples=500)
@given(mutations=MUTATIONS)
@example(mutations=[("flip", 4, 2, 1)])
def test_a_mutated_small_file_is_read_or_refused(check: Callable[[bytes], bool], mutations: list[Mutation]) -> None:
    check(mutated(craft.valid(), mutations))


@settings(FUZZ, max_examples=300)
@given(mutations=MUTATIONS)
def test_a_mutated_file_of_every_type_is_read_or_refused(
    check: Callable[[bytes], bool], every_type: bytes, mutations: list[Mutation]
) -> None:
    header = every_type.index(b"t30") + 64  # mutations beyond it only change weights
    check(mutated(every_type[:header], mutations) + every_type[header:])


@settings(FUZZ, max_examples=200)
@given(tail=st.binary(max_size=200), counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_any_bytes_after_a_header_are_read_or_refused(
    check: Callable[[bytes], bool], tail: bytes, counts: tuple[int, int]
) -> None:
    check(b"GGUF" + craft.u32(3) + craft.u64(counts[0]) + craft.u64(counts[1]) + tail)
