"""Rows of a file: JSON lines or a JSON list, plain or packed, or parquet; each an object, or the file is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from phial.compressed import opened
from phial.errors import PhialError

SUFFIXES = tuple(stem + packing for stem in (".jsonl", ".ndjson", ".json") for packing in ("", ".gz", ".zst"))


class Row(NamedTuple):
    """An object of a file, and where it stands, for messages."""

    value: dict[str, Any]
    where: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file in order, numbered from 1.

    Raises PhialError for a file of another kind, one that cannot be read or is damaged, and a row that is no object.
    """
    number = 0
    for number, value in enumerate(_values(path), 1):
        if not isinstance(value, dict):
            raise PhialError(f"{path}, row {number} is {type(value).__name__}, not an object", "a row is {...}")
        yield Row(value, f"{path}, row {number}")
    if not number:
        raise PhialError(f"{path} has no rows", "name a file that has some")


def _values(path: Path) -> Iterator[Any]:
    """Whatever the rows are. Raises PhialError as read_rows()."""
    name = path.name.lower()
    if not name.endswith((".parquet", *SUFFIXES)):
        raise PhialError(f"{path} is no file of rows", f"its name ends in one of {', '.join(SUFFIXES)}, .parquet")
    needed = "pyarrow" if name.endswith(".parquet") else "zstandard"
    if name.endswith((".parquet", ".zst")) and find_spec(needed) is None:
        raise PhialError(f"{needed} is needed to read {path}", f"pip install {needed}")
    if name.endswith(".parquet"):
        yield from _parquet(path)
        return
    try:
        with opened(path) as file:
            yield from _json(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _json(file: BinaryIO, path: Path) -> Iterator[Any]:
    """The items of a list, where the first character opens one; else a value from each line."""
    first = b""
    while not first.strip():
        first = file.readline()
        if not first:
            return
    if first.lstrip()[:1] == b"[":
        yield from _loaded(first + file.read(), str(path))
        return
    yield _loaded(first, f"{path}, row 1")
    rows = (line for line in file if line.strip())
    yield from (_loaded(line, f"{path}, row {number}") for number, line in enumerate(rows, 2))


def _loaded(data: bytes, where: str) -> Any:
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text, and no file can hold it
        return value
    except (ValueError, RecursionError) as error:
        raise PhialError(
            f"{where} is no JSON: {error}", "a file is a JSON list, or has one object on each line"
        ) from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> PhialError:
    return PhialError(
        f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", "check the path and the file"
    )
