"""A file of records, one per window, that a stopped run goes on from; a saved base is such a file, finished.

Layout, little-endian: 8 bytes magic; u32 header length; header as JSON (what was measured); sha256 of the header; then
for each window its record and the sha256 of (u64 window, record). Records are appended and synced: a kill can at most
leave the last one torn, which is seen and dropped. A version change changes the magic. No pickle, nothing executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from phial.errors import FormatError, PhialError

MAGIC = b"PHIALEV1"
NLL = np.dtype([("nll", "<f8")])
COMPARED = np.dtype([("nll", "<f8"), ("base_nll", "<f8"), ("kl", "<f8"), ("same_top", "<f8")])
_DIGEST = hashlib.sha256().digest_size
_LONGEST_HEADER = 1 << 16
_LARGEST_VOCABULARY = 1 << 24
_NAMES = {  # of header fields, as a person knows them
    "kind": "another measurement",
    "settings": "another model, cache type or kernel set",
    "tokens": "another text",
    "n_vocab": "another vocabulary",
    "base": "another base",
}


def base_record(n_vocab: int) -> np.dtype[Any]:
    """The record of one token of a saved base: see perplexity.encode."""
    return np.dtype([("nll", "<f8"), ("low", "<f8"), ("step", "<f8"), ("codes", "<u2", (n_vocab,))])


def tokens_digest(ids: list[int]) -> str:
    """What identifies a tokenised text."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Header:
    """What a journal holds; a run goes on only from a journal with an equal header."""

    kind: str  # "perplexity", "kld" or "base"
    model: str  # its name, for people
    settings: str  # what else decides its logits: fingerprint of the weights, cache type, kernels
    tokens: str  # digest of the whole text's ids
    n_vocab: int
    size: int  # these four as in windows.Windows
    step: int
    first: int
    count: int
    base: str  # settings of the base, or ""

    @property
    def record(self) -> np.dtype[Any]:
        """The type of one scored token's record."""
        return base_record(self.n_vocab) if self.kind == "base" else NLL if self.kind == "perplexity" else COMPARED

    @property
    def record_bytes(self) -> int:
        """The size of one window's record."""
        return (self.size - self.first - 1) * self.record.itemsize

    def differences(self, other: Header) -> list[str]:
        """What makes the other one a different run, in words."""
        names = [f.name for f in fields(self) if f.name != "model" and getattr(self, f.name) != getattr(other, f.name)]
        return list(dict.fromkeys(_NAMES.get(name, "other windows") for name in names))


class Journal:
    """An open journal; made by `resume` to write or `load` to read, and closed as a context manager."""

    def __init__(self, path: Path, file: BinaryIO, header: Header, start: int) -> None:
        self.path, self.header = path, header
        self._file, self._start = file, start
        stride = header.record_bytes + _DIGEST
        self.n_records, rest = divmod(os.fstat(file.fileno()).st_size - start, stride)
        if (self.n_records, rest) > (header.count, 0):
            raise FormatError(f"{path} is longer than its {header.count} windows", "remove it and make it again")

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Open a journal to read. Raises FormatError where it is none or its header is damaged."""
        return _opened(path, "rb")

    @classmethod
    def resume(cls, path: Path, header: Header) -> Journal:
        """Open a journal to write: the one that is there, or a new one.

        Raises:
            FormatError: what is there is no journal, or is damaged before its last record.
            PhialError: it belongs to another run.
        """
        if not path.exists():
            _create(path, header)
        journal = _opened(path, "r+b")
        try:
            if different := journal.header.differences(header):
                raise PhialError(
                    f"{path} belongs to another run: {', '.join(different)}", "remove it or name another file"
                )
            journal._drop_torn()
        except BaseException:
            journal.close()
            raise
        return journal

    def read(self, window: int) -> NDArray[Any]:
        """The record of one window. Raises FormatError where it is damaged."""
        self._file.seek(self._start + window * (self.header.record_bytes + _DIGEST))
        data, digest = self._file.read(self.header.record_bytes), self._file.read(_DIGEST)
        if digest != _record_digest(window, data):
            raise FormatError(f"{self.path} is damaged in window {window + 1}", "remove it and make it again")
        return np.frombuffer(data, self.header.record)

    def append(self, record: NDArray[Any]) -> None:
        """Add the next window's record and see it to the disk."""
        data = np.ascontiguousarray(record, self.header.record).tobytes()
        assert len(data) == self.header.record_bytes, "a record of another size"
        self._file.seek(self._start + self.n_records * (len(data) + _DIGEST))
        self._file.write(data)
        self._file.write(_record_digest(self.n_records, data))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.n_records += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _drop_torn(self) -> None:
        """Forget what a kill or a power cut left of the last record; every earlier one must be whole."""
        for window in range(self.n_records):
            try:
                self.read(window)
            except FormatError:
                if window < self.n_records - 1:
                    raise
                self.n_records = window  # append writes over it: all records have one size


def is_journal(path: Path) -> bool:
    """Whether the file begins as a journal does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _record_digest(window: int, data: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<Q", window) + data).digest()


def _create(path: Path, header: Header) -> None:
    text = json.dumps(asdict(header)).encode()
    unfinished = path.with_name(path.name + f".{os.getpid()}.new")
    try:
        unfinished.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + hashlib.sha256(text).digest())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _opened(path: Path, mode: str) -> Journal:
    file = path.open(mode)
    try:
        return Journal(path, file, *_read_header(path, file))  # type: ignore[arg-type]
    except BaseException:
        file.close()
        raise


def _read_header(path: Path, file: Any) -> tuple[Header, int]:
    """The header and where the records start."""
    start = file.read(len(MAGIC) + 4)
    if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
        raise FormatError(f"{path} is not a file of phial perplexity, or of another version", "name another file")
    (length,) = struct.unpack("<I", start[len(MAGIC) :])
    text, digest = file.read(min(length, _LONGEST_HEADER)), file.read(_DIGEST)
    if len(text) != length or digest != hashlib.sha256(text).digest():
        raise FormatError(f"{path} is damaged in its header", "remove it and make it again")
    return _parsed(path, text), len(start) + length + _DIGEST


def _parsed(path: Path, text: bytes) -> Header:
    """The header of its JSON, every field checked: the checksum guards against damage, not against malice."""
    try:
        values = json.loads(text)
        header = Header(**values)
    except (ValueError, TypeError, RecursionError):
        raise FormatError(f"{path} has a header of another form", "make it again") from None
    numbers = (header.n_vocab, header.size, header.step, header.first, header.count)
    texts = (header.kind, header.model, header.settings, header.tokens, header.base)
    sound = all(type(n) is int and 0 <= n < 2**31 for n in numbers) and all(type(t) is str for t in texts)
    if not sound or header.kind not in ("perplexity", "kld", "base") or not header.first + 1 < header.size:
        raise FormatError(f"{path} has a header with impossible values", "make it again")
    if not 1 <= header.n_vocab <= _LARGEST_VOCABULARY:
        raise FormatError(f"{path} has a vocabulary of {header.n_vocab} tokens", "make it again")
    return header
