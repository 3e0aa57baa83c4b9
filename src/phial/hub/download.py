"""Bytes from a server into a part file: resumed after a cut, bounded by the expected size, checked against the sha256.

A part file holds a prefix of the wanted bytes and is only ever appended to, so that any later run goes on where the
last one stopped. It becomes a model by `verify` and a rename, both of which the store does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from phial.errors import PhialError
from phial.hub.progress import Progress, human
from phial.hub.request import Reply, SourceError, TransientError, request, shown

TRIES = 5  # failures in a row without a single new byte
PAUSE = 1.0  # seconds before the second try, doubled for each further one
DISK_MARGIN = 16 << 20  # bytes left free for records, locks and the rest of the machine
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RangesRefused(SourceError):
    """The server sends whole files only."""


def fetch(
    url: str,
    part: Path,
    size: int | None,
    progress: Progress,
    *,
    title: str,
    offset: int = 0,
    secret: str | None = None,
) -> None:
    """Appends to `part` until it holds bytes [offset, offset + size) of `url`.

    Args:
        size: bytes wanted; None takes whatever a plain GET sends and cannot resume.
        offset: where the wanted bytes start; only with a server that honours ranges.

    Raises:
        RangesRefused: offset > 0 and the server ignores ranges.
        SourceError: a refusal, a wrong length, or TRIES failures in a row; after failures `part` keeps what has come.
        PhialError: the disk is full; `part` keeps what has been written.
    """
    failures = 0
    with progress.bar(title, size) as done:
        while size is None or length(part) != size:
            before = length(part)
            try:
                _attempt(url, part, size, offset, secret, done)
                if size is None:
                    return
            except TransientError as error:
                failures = 1 if length(part) > before else failures + 1
                if failures >= TRIES:
                    kept = f"{human(length(part))} are kept: run the same command again to go on"
                    raise SourceError(error.message, kept if size and length(part) else error.hint) from error
                time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(
    url: str, part: Path, size: int | None, offset: int, secret: str | None, done: Callable[[int], None]
) -> None:
    """One request for what `part` still lacks. Raises TransientError where less came than was due."""
    have = length(part)
    if size is None or have > size:
        part.unlink(missing_ok=True)
        have = 0
    first = offset + have
    last = "" if size is None else offset + size - 1
    headers = {"Range": f"bytes={first}-{last}"} if first else {}
    with request(url, headers=headers, secret=secret) as reply:
        if reply.status == 206 and headers:
            _check_range(reply, first, None if offset else size)
        elif reply.status == 200:
            if offset:
                raise RangesRefused(f"{shown(url)} does not send parts of files", "the whole file is needed")
            if have:  # the server ignored the range: what it sends is the beginning
                part.unlink()
                have = 0
            _check_length(reply, reply.length(), size)
        else:
            raise SourceError(f"{shown(url)} answered with status {reply.status}", "use another source")
        due = size if size is not None else reply.length()
        append(part, reply.chunks(), due, done)
    if due is not None and length(part) < due:
        raise TransientError(
            f"{shown(url)} broke off at {length(part)} of {due} bytes", "run the same command again to go on"
        )


def _check_range(reply: Reply, first: int, total: int | None) -> None:
    text = reply.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19}|\*)", text.strip())
    if not match or int(match[1]) != first:
        raise SourceError(
            f"{shown(reply.url)} sent the range {text!r}, asked for from byte {first}", "use another source"
        )
    if match[2] != "*":
        _check_length(reply, int(match[2]), total)


def _check_length(reply: Reply, actual: int | None, expected: int | None) -> None:
    if None not in (actual, expected) and actual != expected:
        raise SourceError(
            f"{shown(reply.url)} has {actual} bytes, expected {expected}", "it is not the file that was asked for"
        )


def append(
    part: Path, pieces: Iterable[bytes], limit: int | None, done: Callable[[int], None] = lambda length: None
) -> None:
    """Appends `pieces` to `part`, telling `done` the length after each.

    Raises:
        SourceError: `part` would grow past `limit` bytes; it is removed.
        PhialError: the disk is full, with the numbers; `part` keeps what was written.
    """
    written, fits = length(part), True
    with open_part(part) as file:
        for piece in pieces:
            fits = limit is None or written + len(piece) <= limit
            if not fits:
                break
            view = memoryview(piece)
            try:
                while view:
                    view = view[file.write(view) or 0 :]
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise disk_full(part.parent, limit, length(part)) from error
            written += len(piece)
            done(written)
        os.fsync(file.fileno())
    if not fits:
        part.unlink()
        raise SourceError(
            f"{part.name}: more than the expected {limit} bytes came", "it is not the file that was asked for"
        )


def open_part(part: Path) -> io.FileIO:
    """`part` opened for appending, unbuffered: what is written is in the file."""
    return io.FileIO(part, "ab")


def ensure_space(folder: Path, needed: int) -> None:
    """Raises PhialError with both numbers where the disk of `folder` cannot take `needed` more bytes."""
    free = shutil.disk_usage(folder).free
    if needed + DISK_MARGIN > free:
        message = f"not enough disk space in {folder}: {human(needed)} needed, {human(free)} free"
        raise PhialError(message, "free some space, or move the store with PHIAL_HOME=/another/disk")


def disk_full(folder: Path, due: int | None, got: int) -> PhialError:
    """The error for a write that found no room."""
    of = f" of {human(due)}" if due is not None else ""
    message = f"the disk of {folder} is full: {human(got)}{of} written, {human(shutil.disk_usage(folder).free)} free"
    return PhialError(message, "free some space and run the same command again: it goes on where it stopped")


def verify(part: Path, size: int, sha256: str, progress: Progress) -> None:
    """Raises SourceError, and removes `part`, unless it has `size` bytes with digest `sha256`."""
    if length(part) != size:
        message = f"{part.name}: {length(part)} bytes, expected {size}"
    elif (actual := digest_of(part, progress)) != sha256:
        message = f"{part.name}: the sha256 is {actual}, expected {sha256}"
    else:
        return
    part.unlink(missing_ok=True)
    raise SourceError(
        message, "the download was damaged or the file was replaced; run the command again to start afresh"
    )


def digest_of(path: Path, progress: Progress) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    digest, seen = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file, progress.bar("checking", length(path)) as done:
        while piece := file.read(1 << 20):
            digest.update(piece)
            seen += len(piece)
            done(seen)
    return digest.hexdigest()


def length(path: Path) -> int:
    """The size of a file in bytes, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
