"""Strict GGUF reader (versions 2 and 3, little-endian), memory-mapped. The writer is in writer.py.

A GGUF file is a stranger's input: every count, length, offset, alignment, type and overlap is checked against the
file's size before anything is allocated for it, and a violation is a FormatError naming the field and both numbers.
Not read: version 1, big-endian files, nested arrays, IQ and ternary tensor types. Not guarded: another process
truncating the file while it is mapped.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from phial.errors import FormatError, PhialError
from phial.gguf import layout
from phial.gguf.blocks import dequantize
from phial.gguf.formats import BLOCK_SIZES, GGMLType, n_bytes
from phial.gguf.layout import SCALARS, ValueType
from phial.gguf.writer import write_gguf

__all__ = ["GGUFFile", "TensorInfo", "read_gguf", "write_gguf"]

_DAMAGED = "the file is damaged or cut short; fetch it again"
_FOREIGN = {
    b"FUGG": "it looks like a big-endian GGUF file; only little-endian files are read",
    b"ggml": "it is a GGML file from before GGUF; convert it with a llama.cpp of that time",
    b"tjgg": "it is a GGJT file from before GGUF; convert it with a llama.cpp of that time",
    b"PK\x03\x04": "it is a zip archive (a PyTorch checkpoint?); convert the model to GGUF first",
    b"vers": "it looks like a Git LFS pointer; fetch the real file with `git lfs pull`",
    b"<!DO": "it is a web page; the download address was not that of the file itself",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: numpy-order shape (rows, columns), absolute byte offset in the file, length in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    n_bytes: int


class GGUFFile:
    """An open GGUF file. Tensor data are views of the memory map; views stay valid after close().

    Attributes:
        metadata: scalars as int, float, bool or str; arrays of strings as list[str]; arrays of numbers as
            np.ndarray of the stored dtype. Bytes that are not UTF-8 arrive as surrogate escapes.
        tensors: TensorInfo by name, in file order.
    """

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        parser = _Parser(path, mapping)
        self.size = parser.size
        self.version, self.metadata, self.value_types = parser.version, parser.metadata, parser.value_types
        self.alignment, self.tensors = parser.alignment, parser.tensors
        self._mapping: mmap.mmap | None = mapping

    def data(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, (n_bytes,), a read-only view of the map. KeyError for an unknown name."""
        info = self.tensors[name]
        if self._mapping is None:
            raise ValueError(f"{self.path} is closed")
        return np.frombuffer(self._mapping, dtype=np.uint8, count=info.n_bytes, offset=info.offset)

    def dequantized(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32 in its numpy shape. KeyError for an unknown name."""
        info = self.tensors[name]
        return dequantize(self.data(name), info.type, info.shape)

    def release(self, name: str) -> None:
        """Let the system drop this tensor's resident pages; a later read fetches them from the file again."""
        info = self.tensors[name]
        if self._mapping is None or not hasattr(mmap, "MADV_DONTNEED"):  # no such advice on Windows
            return
        start = layout.align(info.offset, mmap.PAGESIZE)
        length = (info.offset + info.n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._mapping.madvise(mmap.MADV_DONTNEED, start, length)

    def typed_metadata(self) -> dict[str, Any]:
        """The metadata with scalars as numpy scalars of the stored type, so that write_gguf repeats them exactly."""
        return {
            key: SCALARS[self.value_types[key]].type(value) if self.value_types[key] in SCALARS else value
            for key, value in self.metadata.items()
        }

    def close(self) -> None:
        """Give up the map. It is unmapped when the last view of it is gone."""
        self._mapping = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open and check a GGUF file.

    Raises FormatError when the file breaks the format or a cap, PhialError when it cannot be opened at all.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would hang
            raise PhialError(f"{path} is not a regular file", "name a .gguf file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < layout.HEADER_BYTES:
                raise FormatError(f"{path}: a GGUF header has {layout.HEADER_BYTES} bytes, the file {size}", _DAMAGED)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file emptied meanwhile
        reason = getattr(error, "strerror", None) or error
        raise PhialError(f"cannot open {path}: {reason}", "check the path") from error
    return GGUFFile(path, mapping)


class _Parser:
    """Reads the header once, front to back. Every read goes through `take`, which checks it first."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer = path, buffer
        self.size = len(buffer)
        self.position = 0
        self.metadata: dict[str, Any] = {}
        self.value_types: dict[str, ValueType] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.version = self.read_version()
        n_tensors = self.count("tensor count", layout.MAX_TENSORS, layout.MIN_TENSOR_BYTES)
        n_keys = self.count("key count", layout.MAX_KEYS, layout.MIN_KEY_BYTES)
        for index in range(n_keys):
            self.read_key(index)
        self.alignment = self.checked_alignment()
        listed = [self.read_tensor(index) for index in range(n_tensors)]
        self.place(listed)

    def fail(self, message: str, hint: str = _DAMAGED) -> NoReturn:
        raise FormatError(f"{self.path}: {message}", hint)

    def take(self, length: int, field: str) -> int:
        """Advance over `length` bytes and return where they start."""
        start, end = self.position, self.position + length
        if end > self.size:
            self.fail(f"{field} needs {length} bytes at offset {start}, the file ends at {self.size}")
        if end > layout.MAX_HEADER_BYTES:
            self.fail(f"{field} ends at byte {end} of the header, at most {layout.MAX_HEADER_BYTES} are read")
        self.position = end
        return start

    def u32(self, field: str) -> int:
        return int.from_bytes(self.buffer[self.take(4, field) : self.position], "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.buffer[self.take(8, field) : self.position], "little")

    def count(self, field: str, largest: int, least_bytes: int) -> int:
        """A u64 number of things of at least `least_bytes` each."""
        count = self.u64(field)
        if count > largest:
            self.fail(f"{field} is {count}, at most {largest} are read")
        if count * least_bytes > self.size - self.position:
            left = self.size - self.position
            self.fail(f"{field} is {count}, which takes {count * least_bytes} bytes or more, the file has {left} left")
        return count

    def string(self, field: str, largest: int) -> bytes:
        length = self.u64(f"{field} length")
        if length > self.size - self.position:
            self.fail(f"{field} length is {length}, the file has {self.size - self.position} bytes left")
        if length > largest:
            self.fail(f"{field} length is {length}, at most {largest} bytes are read")
        return self.buffer[self.take(length, field) : self.position]

    def name(self, field: str, largest: int) -> str:
        """A key or tensor name: not empty, UTF-8, printable (it will be shown in terminals)."""
        raw = self.string(field, largest)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{field} {raw[:40]!r} is not UTF-8: {error.reason} at byte {error.start}")
        if not name or not name.isprintable():
            self.fail(f"{field} {name[:40]!r} is empty or not printable")
        return name

    def read_version(self) -> int:
        magic = self.buffer[self.take(4, "magic") : self.position]
        if magic != layout.MAGIC:
            self.fail(f"magic is {magic!r}, not {layout.MAGIC!r}", _FOREIGN.get(magic, "this is not a GGUF file"))
        version = self.u32("version")
        if version & 0xFFFF == 0 and version:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            self.fail(
                f"big-endian file: version reads {version}, byte-swapped {swapped}",
                "only little-endian files are read; fetch or convert the little-endian one",
            )
        if version not in layout.VERSIONS:
            self.fail(f"version is {version}, only 2 and 3 are read", "convert the model again with a current tool")
        return version

    def read_key(self, index: int) -> None:
        key = self.name(f"key {index}", layout.MAX_KEY_BYTES)
        if key in self.metadata:
            self.fail(f"key {key!r} appears twice, the second time as number {index}")
        kind = self.value_type(f"type of {key!r}")
        self.value_types[key] = kind
        if kind == ValueType.STRING:
            self.metadata[key] = self.string(f"{key!r}", layout.MAX_STRING_BYTES).decode("utf-8", "surrogateescape")
        elif kind == ValueType.ARRAY:
            self.metadata[key] = self.array(key)
        else:
            self.metadata[key] = self.numbers(kind, 1, key)[0].item()

    def value_type(self, field: str) -> ValueType:
        number = self.u32(field)
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{field} is {number}, types end at {max(ValueType)}")

    def numbers(self, kind: ValueType, count: int, key: str) -> NDArray[Any]:
        dtype = SCALARS[kind]
        start = self.take(count * dtype.itemsize, f"{key!r}")
        raw = np.frombuffer(self.buffer, dtype=np.uint8, count=count * dtype.itemsize, offset=start)
        if kind == ValueType.BOOL and count and raw.max() > 1:
            self.fail(f"{key!r} holds the boolean {raw.max()}, only 0 and 1 are booleans")
        return raw.view(dtype).copy()

    def array(self, key: str) -> list[str] | NDArray[Any]:
        kind = self.value_type(f"element type of {key!r}")
        if kind == ValueType.ARRAY:
            self.fail(f"{key!r} is an array of arrays", "nested arrays are not read; no model family here uses them")
        least = 8 if kind == ValueType.STRING else SCALARS[kind].itemsize
        count = self.count(f"length of {key!r}", layout.MAX_ARRAY_LENGTH, least)
        return self.strings(count, key) if kind == ValueType.STRING else self.numbers(kind, count, key)

    def strings(self, count: int, key: str) -> list[str]:
        """An array of strings. Vocabularies have 10^5 of them, hence a loop of its own without method calls."""
        out: list[str] = []
        buffer, position = self.buffer, self.position
        limit = min(self.size, layout.MAX_HEADER_BYTES)
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = position + 8
            if start > limit:
                break
            position = start + length_of(buffer, position)[0]
            if position > limit or position - start > layout.MAX_STRING_BYTES:
                break
            out.append(str(buffer[start:position], "utf-8", "surrogateescape"))
            self.position = position
        if len(out) < count:  # read the offender the careful way, which names it and fails
            self.string(f"{key!r}[{len(out)}]", layout.MAX_STRING_BYTES)
            raise AssertionError("the careful read accepted what the fast one refused")
        return out

    def checked_alignment(self) -> int:
        key = "general.alignment"
        if key not in self.metadata:
            return layout.DEFAULT_ALIGNMENT
        kind, alignment = self.value_types[key], self.metadata[key]
        if kind != ValueType.U32:
            self.fail(f"{key} has type {kind.name}, it must be U32")
        if alignment <= 0 or alignment & (alignment - 1):
            self.fail(f"{key} is {alignment}, it must be a power of two")
        if alignment > layout.MAX_ALIGNMENT:
            self.fail(f"{key} is {alignment}, at most {layout.MAX_ALIGNMENT} is read")
        return int(alignment)

    def read_tensor(self, index: int) -> TensorInfo:
        """One entry of the tensor list; its offset is still relative to the data section."""
        name = self.name(f"name of tensor {index}", layout.MAX_NAME_BYTES)
        n_dimensions = self.u32(f"dimensions of {name!r}")
        if not 1 <= n_dimensions <= layout.MAX_DIMENSIONS:
            self.fail(f"{name!r} has {n_dimensions} dimensions, 1 to {layout.MAX_DIMENSIONS} are read")
        shape = [self.u64(f"dimension {i} of {name!r}") for i in range(n_dimensions)][::-1]
        product = 1
        for extent in shape:
            product *= extent
            if not 0 < product <= layout.MAX_ELEMENTS:
                self.fail(f"{name!r} has shape {tuple(shape)}: its element count is outside 1 to {layout.MAX_ELEMENTS}")
        kind = self.tensor_type(name)
        try:
            length = n_bytes(kind, shape)
        except FormatError as error:
            self.fail(f"{name!r}: {error.message}")
        return TensorInfo(name, tuple(shape), kind, self.u64(f"offset of {name!r}"), length)

    def tensor_type(self, name: str) -> GGMLType:
        number = self.u32(f"type of {name!r}")
        try:
            return GGMLType(number)
        except ValueError:
            known = layout.UNREAD_TENSOR_TYPES.get(number, "unknown")
            readable = ", ".join(kind.name for kind in BLOCK_SIZES)
            self.fail(f"{name!r} has type {number} ({known})", f"tensor types that are read: {readable}")

    def place(self, listed: list[TensorInfo]) -> None:
        """Turn relative offsets into absolute ones; check alignment, end and overlap."""
        start = layout.align(self.position, self.alignment)
        for info in listed:
            if info.name in self.tensors:
                self.fail(f"tensor {info.name!r} appears twice")
            if info.offset % self.alignment:
                self.fail(f"offset of {info.name!r} is {info.offset}, not a multiple of the alignment {self.alignment}")
            end = start + info.offset + info.n_bytes
            if end > self.size:
                self.fail(f"{info.name!r} ends at byte {end}, the file ends at {self.size}")
            self.tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start + info.offset, info.n_bytes)
        ordered = sorted(self.tensors.values(), key=lambda info: info.offset)
        for before, after in zip(ordered, ordered[1:], strict=False):
            if before.offset + before.n_bytes > after.offset:
                self.fail(
                    f"{before.name!r} ends at byte {before.offset + before.n_bytes}, "
                    f"inside it {after.name!r} starts at {after.offset}"
                )
