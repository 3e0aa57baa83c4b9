"""GGUF writer: what it writes, container.py reads back equal. Files appear under their name only when complete.

Tensor data may come as chunks, so a file of many gigabytes needs no more memory than its largest chunk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, PhialError
from phial.gguf import layout
from phial.gguf.formats import GGMLType, n_bytes
from phial.gguf.layout import SCALARS, ValueType

Data = NDArray[np.uint8] | Iterable[NDArray[np.uint8]]
Tensor = tuple[str, tuple[int, ...], GGMLType, Data]
_TYPE_OF_DTYPE = {dtype: kind for kind, dtype in SCALARS.items()}


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    alignment: int = layout.DEFAULT_ALIGNMENT,
    version: int = 3,
) -> None:
    """Write a GGUF file atomically.

    metadata: int -> u32 (negative: i32; too large: u64 or i64), float -> f32, bool, str, list[str], list[bool],
        list[int] -> i32 or wider, list[float] -> f32; numpy scalars and 1-d arrays keep their dtype; an empty list
        is an empty array of strings. Surrogate escapes in strings become the bytes they stand for.
    tensors: (name, shape in numpy order, type, uint8 array or iterable of uint8 arrays) each.
    Raises ArgumentError for what cannot be stored, PhialError when the file cannot be written.
    """
    path = Path(path)
    header = _header(metadata, tensors, alignment, version)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                file.write(header)
                for name, shape, kind, data in tensors:
                    _write_tensor(file, name, n_bytes(kind, shape), data, alignment)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PhialError(f"cannot write {path}: {error.strerror or error}", "check the folder and its space") from error


def file_size(
    metadata: Mapping[str, Any], tensors: Sequence[Tensor], *, alignment: int = layout.DEFAULT_ALIGNMENT
) -> int:
    """Bytes of the file that write_gguf would write; the tensors' data are not looked at."""
    header = len(_header(metadata, tensors, alignment, layout.VERSIONS[-1]))
    return header + sum(layout.align(n_bytes(kind, shape), alignment) for _, shape, kind, _ in tensors)


def _header(metadata: Mapping[str, Any], tensors: Sequence[Tensor], alignment: int, version: int) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    if version not in layout.VERSIONS:
        raise ArgumentError(f"version={version} cannot be written", "use 2 or 3")
    if not 0 < alignment <= layout.MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ArgumentError(f"alignment={alignment} is not a power of two up to {layout.MAX_ALIGNMENT}")
    metadata = _with_alignment(metadata, alignment)
    _at_most("keys", len(metadata), layout.MAX_KEYS)
    _at_most("tensors", len(tensors), layout.MAX_TENSORS)
    out = bytearray(layout.MAGIC + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _name(key, "key", layout.MAX_KEY_BYTES) + _value(key, value)
    offset, seen = 0, set()
    for name, shape, kind, _ in tensors:
        if name in seen:
            raise ArgumentError(f"tensor {name!r} is given twice")
        seen.add(name)
        if not 1 <= len(shape) <= layout.MAX_DIMENSIONS or min(shape) < 1:
            raise ArgumentError(f"tensor {name!r} has shape {tuple(shape)}; 1 to 4 dimensions of 1 or more are stored")
        out += _name(name, "tensor name", layout.MAX_NAME_BYTES)
        out += struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
        offset = layout.align(offset + n_bytes(kind, shape), alignment)
    _at_most("header bytes", len(out), layout.MAX_HEADER_BYTES)
    return bytes(out.ljust(layout.align(len(out), alignment), b"\0"))


def _with_alignment(metadata: Mapping[str, Any], alignment: int) -> dict[str, Any]:
    key = "general.alignment"
    given = metadata.get(key, alignment)
    if given != alignment:
        raise ArgumentError(f"metadata has {key}={given}, the file is written with alignment={alignment}")
    stored = {key: np.uint32(alignment)} if key in metadata or alignment != layout.DEFAULT_ALIGNMENT else {}
    return {**metadata, **stored}


def _at_most(what: str, count: int, largest: int) -> None:
    if count > largest:
        raise ArgumentError(f"{count} {what} cannot be stored, the limit is {largest}")


def _string(text: str, what: str, largest: int) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} holds a lone surrogate at character {error.start}") from error
    _at_most(f"bytes in {what}", len(raw), largest)
    return struct.pack("<Q", len(raw)) + raw


def _name(name: str, what: str, largest: int) -> bytes:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ArgumentError(f"{what} {name!r} is empty or not printable text")
    return _string(name, f"{what} {name[:40]!r}", largest)


def _value(key: str, value: Any) -> bytes:
    """Type number and value of one metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + _string(value, f"{key!r}", layout.MAX_STRING_BYTES)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        _at_most(f"elements of {key!r}", len(value), layout.MAX_ARRAY_LENGTH)
        head = struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(value))
        return head + b"".join(_string(item, f"{key!r}[{i}]", layout.MAX_STRING_BYTES) for i, item in enumerate(value))
    array = _numbers(key, value)
    kind = _TYPE_OF_DTYPE[array.dtype]
    if array.ndim == 0:
        return struct.pack("<I", kind) + array.tobytes()
    _at_most(f"elements of {key!r}", array.size, layout.MAX_ARRAY_LENGTH)
    return struct.pack("<IIQ", ValueType.ARRAY, kind, array.size) + array.tobytes()


def _numbers(key: str, value: Any) -> NDArray[Any]:
    """A number, a list of numbers, a numpy scalar or array -> little-endian array of 0 or 1 dimensions."""
    is_list = isinstance(value, list | tuple)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
    else:
        array = _from_python(key, list(value) if is_list else [value], is_list=is_list)
        array = array if is_list else array.reshape(())
    array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in _TYPE_OF_DTYPE or array.ndim > 1:
        raise ArgumentError(f"metadata {key!r} is {array.dtype} of {array.ndim} dimensions, which GGUF cannot store")
    return array


def _from_python(key: str, items: list[Any], *, is_list: bool) -> NDArray[Any]:
    if all(isinstance(item, bool) for item in items):
        return np.array(items)
    if not any(isinstance(item, bool) for item in items):
        if all(isinstance(item, int) for item in items):
            return np.array(items, dtype=_integer_dtype(key, items, is_list=is_list))
        if all(isinstance(item, int | float) for item in items):
            return _single(key, items)
    raise ArgumentError(f"metadata {key!r} has no GGUF type: {items!r:.80}", "use numbers, text, or lists of one kind")


def _integer_dtype(key: str, items: list[int], *, is_list: bool) -> str:
    """Scalars are u32 by custom, arrays i32; wider or signed only where the values need it."""
    low, high = min(items), max(items)
    for dtype in ("<i4", "<u4", "<i8", "<u8") if is_list else ("<u4", "<i4", "<u8", "<i8"):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return dtype
    raise ArgumentError(f"metadata {key!r} holds {high if high > 0 else low}, which no 64-bit integer can")


def _single(key: str, items: list[float]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        array = np.array(items, dtype=np.float64).astype(np.float32)
    if (np.isinf(array) & np.isfinite(np.array(items, dtype=np.float64))).any():
        raise ArgumentError(f"metadata {key!r} does not fit float32", "pass np.float64")
    return array


def _write_tensor(file: BinaryIO, name: str, length: int, data: Data, alignment: int) -> None:
    written = 0
    for chunk in [data] if isinstance(data, np.ndarray) else data:
        if not isinstance(chunk, np.ndarray) or chunk.dtype != np.uint8:
            found = getattr(chunk, "dtype", type(chunk).__name__)
            raise ArgumentError(f"data of tensor {name!r} is {found}, not uint8", "pass blocks.quantize(x, type)")
        written += chunk.size
        if written > length:
            break
        file.write(np.ascontiguousarray(chunk).data)
    if written != length:
        at_least = "at least " if written > length else ""
        raise ArgumentError(f"tensor {name!r} takes {length} bytes, its data have {at_least}{written}")
    file.write(bytes(layout.align(length, alignment) - length))
