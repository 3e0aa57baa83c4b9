"""The files between the passes of deduplication: for every document its keys, its sketch and its name.

A task writes four files, in the order it read its documents; document numbers count through the tasks in order.
Rows are read with plain reads, not through memory maps, so that what a pass holds is what it asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from phial.data.minhash import Signatures
from phial.errors import PhialError

Numbers = NDArray[np.int64]
_CHUNK_BYTES = 8 << 20  # of a sequential read
_OPEN_AT_MOST = 128  # files of a reader
_KINDS = ("keys", "sketches", "embeddings", "offsets", "names")


class SignatureWriter:
    """Writes one task's files under temporary names; they get their names when the block ends well."""

    def __init__(self, folder: Path, task: int, *, embeddings: bool) -> None:
        self._paths = {kind: folder / kind / f"{task:05d}.bin" for kind in _KINDS}
        if not embeddings:
            del self._paths["embeddings"]
        self._files: dict[str, BinaryIO] = {}
        self._end = 0

    def __enter__(self) -> SignatureWriter:
        for kind, path in self._paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[kind] = open(_partial(path), "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            for path in self._paths.values():
                os.replace(_partial(path), path)

    def write(self, rows: Signatures, names: list[bytes], embeddings: NDArray[np.float32] | None = None) -> None:
        """Appends one row a document; a name is what documents are ordered by, see `document_name`."""
        np.hstack([rows.exact, rows.keys]).tofile(self._files["keys"])
        rows.sketches.tofile(self._files["sketches"])
        if embeddings is not None:
            embeddings.tofile(self._files["embeddings"])
        ends = self._end + np.cumsum([len(name) for name in names], dtype=np.uint64)
        self._end = int(ends[-1]) if len(names) else self._end
        ends.tofile(self._files["offsets"])
        self._files["names"].write(b"".join(names))


class SignatureReader:
    """What all tasks wrote, as rows by document number."""

    def __init__(self, folder: Path, tasks: int, bands: int, places: int) -> None:
        self._files: dict[tuple[str, int], int] = {}
        self._folder, self._tasks = folder, tasks
        self._rows: dict[str, tuple[Any, int]] = {"keys": (np.uint64, 2 + bands), "sketches": (np.uint16, places)}
        counts = [self._size("offsets", task) // 8 for task in range(tasks)]
        self.firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.documents = int(self.firsts[-1])
        if (folder / "embeddings").exists() and self.documents:
            total = sum(self._size("embeddings", task) for task in range(tasks))
            self._rows["embeddings"] = (np.float32, total // (4 * self.documents))

    def __enter__(self) -> SignatureReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def chunks(self, kind: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows in order, a few MB at a time, with the number of the first."""
        dtype, width = self._rows[kind]
        row = self.row_bytes(kind)
        step = max(1, _CHUNK_BYTES // row)
        for task in range(self._tasks):
            first, last = int(self.firsts[task]), int(self.firsts[task + 1])
            for start in range(first, last, step):
                size = min(step, last - start)
                data = self._read(kind, task, (start - first) * row, size * row)
                yield start, np.frombuffer(data, dtype).reshape(size, width)

    def rows(self, kind: str, numbers: Numbers) -> NDArray[Any]:
        """The rows of these documents."""
        dtype, width = self._rows[kind]
        row = self.row_bytes(kind)
        tasks = np.searchsorted(self.firsts, numbers, side="right") - 1
        places = (numbers - self.firsts[tasks]) * row
        data = b"".join(
            [self._read(kind, task, at, row) for task, at in zip(tasks.tolist(), places.tolist(), strict=True)]
        )
        return np.frombuffer(data, dtype).reshape(len(numbers), width)

    def row_bytes(self, kind: str) -> int:
        """Bytes of a row."""
        dtype, width = self._rows[kind]
        return int(np.dtype(dtype).itemsize * width)

    def name(self, number: int) -> bytes:
        """What the document is ordered by, see `document_name`."""
        task = int(np.searchsorted(self.firsts, number, side="right")) - 1
        place = number - int(self.firsts[task])
        size = 16 if place else 8
        bounds = np.frombuffer(self._read("offsets", task, 8 * place + 8 - size, size), np.uint64).tolist()
        start, end = bounds if place else (0, bounds[0])
        return self._read("names", task, start, end - start)

    def _size(self, kind: str, task: int) -> int:
        return os.fstat(self._open(kind, task)).st_size

    def _read(self, kind: str, task: int, start: int, size: int) -> bytes:
        data = os.pread(self._open(kind, task), size, start)
        if len(data) != size:
            raise PhialError(f"{self._folder / kind}: file {task} is too short", "remove the folder and run again")
        return data

    def _open(self, kind: str, task: int) -> int:
        """The file's descriptor; of many tasks' files those used last stay open."""
        descriptor = self._files.pop((kind, task), None)
        if descriptor is None:
            path = self._folder / kind / f"{task:05d}.bin"
            if not path.exists():
                raise PhialError(f"{path} is missing", "the pass that writes it has not ended; run the stage again")
            while len(self._files) >= _OPEN_AT_MOST:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = os.open(path, os.O_RDONLY)
        self._files[kind, task] = descriptor
        return descriptor


def document_name(source: int, identifier: str) -> bytes:
    """Bytes that order documents by the place of their source, then by id (code points)."""
    return source.to_bytes(4, "big") + identifier.encode("utf-8", "surrogatepass")


def identifier_of(name: bytes) -> str:
    """The id in a `document_name`."""
    return name[4:].decode("utf-8", "surrogatepass")


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
