"""The safetensors format in numpy: a folder of shards read through memory maps, and shards written in one pass.

A file is a little-endian length, a JSON header (name -> dtype, shape, data_offsets) and the data, back to back. The
header is checked against the file's size before any of it is believed. Left out: integer, float8 and complex tensors,
which no weight here has; pickles, always.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.formats import GGMLType

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
TYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DAMAGED = "the file is damaged or cut short; fetch it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a mapped file. `raw` has the tensor's shape and is not yet read; bfloat16 arrives as its uint16."""

    name: str
    dtype: str
    raw: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.raw.shape)

    def floats(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """`raw`, or rows of it, as float32. Exact: every stored type is a subset of it."""
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32)


# A tensor to be written: name, dtype, shape, its bytes in order.
NewTensor = tuple[str, str, tuple[int, ...], Iterable[NDArray[np.uint8]]]


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by name, from one file or the shards its index names.

    Raises:
        FormatError: no weights, a missing shard, a file that breaks the format, an index that contradicts its files.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            hint = "only safetensors are read, never pickles" if pickled else "name the folder that holds them"
            raise FormatError(f"{folder} has neither {SINGLE} nor {INDEX}", hint)
        return read_safetensors(folder / SINGLE)
    places = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            raise FormatError(f"shard {shard} named by {INDEX} is missing in {folder}", "fetch it, then convert again")
        held = read_safetensors(folder / shard)
        if absent := [name for name, place in places.items() if place == shard and name not in held]:
            raise FormatError(f"{shard} lacks tensor {absent[0]}, which {INDEX} places there", _DAMAGED)
        if twice := tensors.keys() & held.keys():
            raise FormatError(f"tensor {min(twice)} stands in two shards, the second is {shard}", _DAMAGED)
        tensors |= held
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. FormatError where the file is none; OSError as open()."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}", _DAMAGED) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, mapped. FormatError naming the field and the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise FormatError(f"{path}: header of {length} bytes in a file of {size}", _DAMAGED)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: the header is no JSON: {error}", _DAMAGED) from error
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is a {type(header).__name__}, not an object", _DAMAGED)
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, item[0], item[1])):
        tensor, end = _tensor(path, name, entry, data, end)
        tensors[name] = tensor
    if end != len(data):
        raise FormatError(f"{path}: tensors take {end} bytes, the file holds {len(data)}", _DAMAGED)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{index} has no weight_map", _DAMAGED)
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise FormatError(f"{index} places {name} in {shard!r}, which is no safetensors file beside it")
    return places


def _offsets(path: Path, name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise FormatError(f"{path}: data_offsets of {name} are {offsets!r}, not two byte counts", _DAMAGED)
    return offsets[0], offsets[1]


def _tensor(path: Path, name: str, entry: Any, data: NDArray[np.uint8], at: int) -> tuple[StoredTensor, int]:
    """The tensor that must begin at byte `at`, and where it ends."""
    (start, end), shape, dtype = _offsets(path, name, entry), entry.get("shape"), entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise FormatError(f"{path}: {name} has dtype {dtype!r}", f"read are {', '.join(_STORED)}")
    if not isinstance(shape, list) or not all(_is_count(extent) for extent in shape):
        raise FormatError(f"{path}: shape of {name} is {shape!r}", _DAMAGED)
    length = math.prod(shape) * np.dtype(_STORED[dtype]).itemsize
    if start != at or end - start != length or end > len(data):
        where = f"bytes {start} to {end} of {len(data)}, expected {at} to {at + length}"
        raise FormatError(f"{path}: {name} ({dtype}, shape {tuple(shape)}) lies at {where}", _DAMAGED)
    raw = np.frombuffer(data[start:end], _STORED[dtype]).reshape(shape)
    return StoredTensor(name, dtype, raw), end


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def write_folder(folder: Path, tensors: Sequence[NewTensor], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write one file, or shards of at most `shard_bytes` (a larger tensor gets its own) with their index.

    The folder is the caller's to remove if this fails. PhialError when a file cannot be written.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        places = {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_length(tensor) for tensor in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, readably. PhialError when the file cannot be written."""
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise PhialError(f"cannot write {path}: {error.strerror or error}", "check the folder and its space") from error


def _length(tensor: NewTensor) -> int:
    return math.prod(tensor[2]) * np.dtype(_STORED[tensor[1]]).itemsize


def _shards(tensors: Sequence[NewTensor], limit: int) -> Iterator[list[NewTensor]]:
    shard: list[NewTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + _length(tensor) > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += _length(tensor)
    yield shard


def _write_shard(path: Path, tensors: Sequence[NewTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        name, dtype, shape, _ = tensor
        start, end = end, end + _length(tensor)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # data begin at a multiple of 8
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                written = sum(file.write(np.ascontiguousarray(chunk).data) for chunk in tensor[3])
                if written != _length(tensor):
                    raise ArgumentError(f"tensor {tensor[0]!r} takes {_length(tensor)} bytes, its data have {written}")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PhialError(f"cannot write {path}: {error.strerror or error}", "check the folder and its space") from error
