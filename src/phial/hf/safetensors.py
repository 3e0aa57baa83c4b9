"""The safetensors format in numpy: a file read through a memory map, and one written in one pass.

A file is a little-endian length, a JSON header (name -> dtype, shape, data_offsets) and the data, back to back. The
header is checked against the file's size before any of it is believed. Left out: integer, float8 and complex tensors,
which no weight here has; pickles, always.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, FormatError, PhialError

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_PASS_VALUES = 1 << 20
DAMAGED = "the file is damaged or cut short; fetch it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a mapped file. `raw` has the tensor's shape and is not yet read; bfloat16 arrives as its uint16."""

    name: str
    dtype: str
    raw: NDArray[Any]
    mapping: mmap.mmap
    start: int  # byte of the file

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.raw.shape)

    def floats(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """`raw`, or rows of it, as float32. Exact: every stored type is a subset of it."""
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32)

    def release(self) -> None:
        """Let the system drop this tensor's resident pages; a later read fetches them from the file again."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # no such advice on Windows
            return
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (self.start + self.raw.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, length)


# A tensor to be written: name, dtype, shape, its bytes in order.
NewTensor = tuple[str, str, tuple[int, ...], Iterable[NDArray[np.uint8]]]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, mapped. FormatError naming the field and the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise FormatError(f"{path}: header of {length} bytes in a file of {size}", DAMAGED)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: the header is no JSON: {error}", DAMAGED) from error
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is a {type(header).__name__}, not an object", DAMAGED)
    header.pop("__metadata__", None)
    data = np.frombuffer(mapping, np.uint8)[8 + length :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, item[0], item[1])):
        raw, end = _tensor(path, name, entry, data, end)
        tensors[name] = StoredTensor(name, entry["dtype"], raw, mapping, 8 + length + end - raw.nbytes)
    if end != len(data):
        raise FormatError(f"{path}: tensors take {end} bytes, the file holds {len(data)}", DAMAGED)
    return tensors


def _offsets(path: Path, name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise FormatError(f"{path}: data_offsets of {name} are {offsets!r}, not two byte counts", DAMAGED)
    return offsets[0], offsets[1]


def _tensor(path: Path, name: str, entry: Any, data: NDArray[np.uint8], at: int) -> tuple[NDArray[Any], int]:
    """The values that must begin at byte `at`, and where they end."""
    (start, end), shape, dtype = _offsets(path, name, entry), entry.get("shape"), entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise FormatError(f"{path}: {name} has dtype {dtype!r}", f"read are {', '.join(_STORED)}")
    if not isinstance(shape, list) or not all(_is_count(extent) for extent in shape):
        raise FormatError(f"{path}: shape of {name} is {shape!r}", DAMAGED)
    length = math.prod(shape) * np.dtype(_STORED[dtype]).itemsize
    if start != at or end - start != length or end > len(data):
        where = f"bytes {start} to {end} of {len(data)}, expected {at} to {at + length}"
        raise FormatError(f"{path}: {name} ({dtype}, shape {tuple(shape)}) lies at {where}", DAMAGED)
    return np.frombuffer(data[start:end], _STORED[dtype]).reshape(shape), end


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def row_passes(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows that hold about a million values each: how weights stream through without a second copy of one."""
    rows = max(1, _PASS_VALUES // max(1, math.prod(shape[1:])))
    return (slice(at, at + rows) for at in range(0, shape[0], rows))


def byte_count(tensor: NewTensor) -> int:
    """Bytes of data a new tensor takes."""
    return math.prod(tensor[2]) * np.dtype(_STORED[tensor[1]]).itemsize


def write_safetensors(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Write one file. ArgumentError where data are not as long as their shape says, PhialError for the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        name, dtype, shape, _ = tensor
        start, end = end, end + byte_count(tensor)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # data begin at a multiple of 8
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                written = sum(file.write(np.ascontiguousarray(chunk).data) for chunk in tensor[3])
                if written != byte_count(tensor):
                    raise ArgumentError(
                        f"tensor {tensor[0]!r} takes {byte_count(tensor)} bytes, its data have {written}"
                    )
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PhialError(f"cannot write {path}: {error.strerror or error}", "check the folder and its space") from error
