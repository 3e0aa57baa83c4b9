"""The writer: its files read back equal, here and in the `gguf` package; what cannot be stored is refused whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.blocks import GGMLType, dequantize, random_blocks
from phial.gguf.container import read_gguf, write_gguf
from phial.gguf.layout import ValueType

SCALARS: dict[str, tuple[Any, ValueType]] = {
    "u8": (np.uint8(255), ValueType.U8),
    "i8": (np.int8(-128), ValueType.I8),
    "u16": (np.uint16(65535), ValueType.U16),
    "i16": (np.int16(-32768), ValueType.I16),
    "u32": (np.uint32(2**32 - 1), ValueType.U32),
    "i32": (np.int32(-(2**31)), ValueType.I32),
    "f32": (np.float32(0.1), ValueType.F32),
    "f64": (np.float64(0.1), ValueType.F64),
    "u64": (np.uint64(2**64 - 1), ValueType.U64),
    "i64": (np.int64(-(2**63)), ValueType.I64),
    "bool": (np.bool_(True), ValueType.BOOL),
    "python int": (5, ValueType.U32),
    "python negative": (-5, ValueType.I32),
    "python large": (2**40, ValueType.U64),
    "python large negative": (-(2**40), ValueType.I64),
    "python float": (0.5, ValueType.F32),
    "python bool": (False, ValueType.BOOL),
    "text": ("Zürich 🚀\n", ValueType.STRING),
    "empty text": ("", ValueType.STRING),
}
ARRAYS: dict[str, tuple[Any, str]] = {
    **{f"array {d}": (np.array([1, 0, 3]).astype(d), d) for d in "u1 i1 u2 i2 u4 i4 f4 u8 i8 f8 ?".split()},
    "ints": ([1, -2], "i4"),
    "large ints": ([1, 2**32 - 1], "u4"),
    "floats": ([1.5, 2], "f4"),
    "bools": ([True, False], "?"),
    "empty numbers": (np.array([], np.int16), "i2"),
}
TEXTS = {"texts": ["", "a", "\udcff", "ü"], "no texts": []}


def write(path: Path, metadata: dict[str, Any], **options: Any) -> Path:
    write_gguf(path, metadata, [], **options)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_reads_back_equal_and_of_the_same_type(tmp_path: Path, version: int) -> None:
    metadata = {**{k: v for k, (v, _) in SCALARS.items()}, **{k: v for k, (v, _) in ARRAYS.items()}, **TEXTS}
    with read_gguf(write(tmp_path / "all.gguf", metadata, version=version)) as file:
        assert file.version == version
        assert list(file.metadata) == list(metadata)
        for key, (value, kind) in SCALARS.items():
            assert file.value_types[key] == kind, key
            plain = value.item() if isinstance(value, np.generic) else value
            assert file.metadata[key] == plain and type(file.metadata[key]) is type(plain), key
        for key, (value, dtype) in ARRAYS.items():
            assert file.metadata[key].dtype == np.dtype(dtype), key
            assert file.metadata[key].tolist() == list(value), key
        assert {key: file.metadata[key] for key in TEXTS} == TEXTS


def test_typed_metadata_writes_the_very_same_file_again(tmp_path: Path) -> None:
    metadata = {**{k: v for k, (v, _) in SCALARS.items()}, **{k: v for k, (v, _) in ARRAYS.items()}, **TEXTS}
    first = write(tmp_path / "first.gguf", metadata)
    with read_gguf(first) as file:
        second = write(tmp_path / "second.gguf", file.typed_metadata())
    assert first.read_bytes() == second.read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True).filter(lambda key: key != "general.alignment"),
        st.one_of(
            st.booleans(),
            st.integers(-(2**63), 2**64 - 1),
            st.floats(width=32, allow_nan=False),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=5),
        ),
        max_size=6,
    )
)
def test_any_metadata_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> None:
    with read_gguf(write(tmp_path_factory.mktemp("any") / "any.gguf", metadata)) as file:
        assert file.metadata == metadata


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_of_every_type_read_back_equal_here_and_in_the_gguf_package(tmp_path: Path, alignment: int) -> None:
    rng = np.random.default_rng(1)
    tensors = [(f"t.{kind.name}", (3, 512), kind, random_blocks(kind, (3, 512), rng)) for kind in GGMLType]
    tensors.append(("cube", (2, 3, 4), GGMLType.F32, random_blocks(GGMLType.F32, (2, 3, 4), rng)))
    path = tmp_path / "tensors.gguf"
    metadata = {"general.architecture": "phi3", "texts": ["a", "bc"], "count": 3, "ratio": 0.5, "yes": True}
    write_gguf(path, metadata, tensors, alignment=alignment)
    with read_gguf(path) as file:
        assert file.alignment == alignment
        for name, shape, kind, data in tensors:
            info = file.tensors[name]
            assert (info.shape, info.type, info.offset % alignment) == (shape, kind, 0)
            assert np.array_equal(file.data(name), data)
    peer = gguf.GGUFReader(path)
    for key, value in metadata.items():
        field = peer.get_field(key)
        assert field is not None and field.contents() == value
    for read, (name, shape, kind, data) in zip(peer.tensors, tensors, strict=True):
        assert (read.name, tuple(read.shape[::-1]), read.tensor_type) == (name, shape, int(kind))
        assert read.data.tobytes() == data.tobytes()


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint64("big", 2**63)
    writer.add_array("scores", [0.5, -1.0])
    writer.add_token_list(["a", "b"])
    x = np.arange(64, dtype=np.float32).reshape(2, 32)
    packed = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("x", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with read_gguf(path) as file:
        assert file.metadata["big"] == 2**63 and file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
        assert file.metadata["scores"].tolist() == [0.5, -1.0]
        assert np.allclose(file.dequantized("x"), x, atol=0.25)


def test_chunks_write_the_same_file_as_one_array(tmp_path: Path) -> None:
    data = random_blocks(GGMLType.Q4_0, (8, 64), np.random.default_rng(2))
    paths = [tmp_path / "whole.gguf", tmp_path / "chunks.gguf"]
    for path, given_data in zip(paths, (data, iter(np.split(data, 8))), strict=True):
        write_gguf(path, {}, [("t", (8, 64), GGMLType.Q4_0, given_data), ("u", (8, 64), GGMLType.Q4_0, data)])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with read_gguf(paths[1]) as file:
        assert np.array_equal(file.dequantized("u"), dequantize(data, GGMLType.Q4_0, (8, 64)))


def failing_chunks() -> Any:
    yield np.zeros(18, np.uint8)
    raise RuntimeError("source broke")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (np.zeros(71, np.uint8), ArgumentError),
        (np.zeros(73, np.uint8), ArgumentError),
        (np.zeros(18, np.float32), ArgumentError),
        ([np.zeros(36, np.uint8)] * 3, ArgumentError),
        ([b"x" * 72], ArgumentError),
        (failing_chunks(), RuntimeError),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, data: Any, error: type[Exception]) -> None:
    path = tmp_path / "kept.gguf"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_gguf(path, {}, [("t", (2, 64), GGMLType.Q4_0, data)])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "value",
    [None, {}, object(), [1, "a"], [True, 1], 2**64, -(2**63) - 1, [2**63, -1], 1e39, "\ud800", ["\ud800"], [None],
     np.float16(1), np.zeros((2, 2), np.int32), np.array(["a"]), b"bytes", 1j, [[1], [2]]],
    ids=lambda value: f"{type(value).__name__} {value!r:.20}",
)  # fmt: skip
def test_metadata_gguf_cannot_hold_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ArgumentError, match="key"):
        write(tmp_path / "x.gguf", {"the.key": value})
    assert list(tmp_path.iterdir()) == []


def test_names_shapes_and_options_gguf_cannot_hold_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "x.gguf", np.zeros(4, np.uint8)
    one = [("t", (1,), GGMLType.F32, data)]
    for bad_key in ("", "a\nb", "a\0", "k" * 2000, 5):
        with pytest.raises(ArgumentError):
            write_gguf(path, {bad_key: 1}, [])  # type: ignore[dict-item]
    for tensors in (one * 2, [("", *one[0][1:])], [("t", (), *one[0][2:])], [("t", (0,), *one[0][2:])],
                    [("t", (1, 1, 1, 1, 1), *one[0][2:])]):  # fmt: skip
        with pytest.raises(ArgumentError):
            write_gguf(path, {}, tensors)
    for options in ({"alignment": 0}, {"alignment": 48}, {"alignment": -8}, {"version": 1}, {"version": 4}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            write_gguf(path, {}, one, **options)
    with pytest.raises(FormatError):
        write_gguf(path, {}, [("t", (33,), GGMLType.Q4_0, data)])
    with pytest.raises(ArgumentError, match=r"64.*alignment=32"):
        write_gguf(path, {"general.alignment": 64}, one)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="cannot write"):
        write_gguf(tmp_path / "missing" / "x.gguf", {}, [])
