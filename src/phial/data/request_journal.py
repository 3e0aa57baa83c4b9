"""What a teacher was asked and answered, kept in a file that a stopped run goes on from.

One JSON line an entry, {"key", "value", "check"}, appended and seen to the disk; `key` is the digest of everything that
decides the answer, so a changed request is asked anew and an unchanged one never twice. `check` is a digest of key and
value: a kill leaves at most a torn last line, which is dropped; damage before it is an error. One process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from phial.errors import FormatError, PhialError


def digest(*parts: Any) -> str:
    """What identifies a request: sha256 of its parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class RequestJournal:
    """An open journal; a context manager. `entries` maps keys to values; `append` may be called from any thread.

    Raises:
        FormatError: the file is damaged before its last line.
        PhialError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._guard = threading.Lock()
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise PhialError(f"{path} is in use by another run", "wait for it, or name another folder") from None
        try:
            self._file = path.open("a+b")
            self._read()
        except BaseException:
            self._lock.release()
            raise

    def append(self, key: str, value: dict[str, Any]) -> None:
        """Add an entry and see it to the disk. A key that is there already keeps its value."""
        line = json.dumps({"key": key, "value": value, "check": digest(key, value)}, sort_keys=True).encode() + b"\n"
        with self._guard:
            if key in self.entries:
                return
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.entries[key] = value

    def _read(self) -> None:
        self._file.seek(0)
        good = 0
        for number, line in enumerate(self._file, 1):
            entry = _entry(line)
            if entry is None:
                if self._file.read(1):
                    raise FormatError(f"{self.path} is damaged in line {number}", "remove it and run again")
                self._file.truncate(good)
                break
            self.entries[entry["key"]] = entry["value"]
            good += len(line)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file and let others have it."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> RequestJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line's entry, or None where it is torn or damaged."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(entry, dict) or set(entry) != {"key", "value", "check"}:
        return None
    return entry if entry["check"] == digest(entry["key"], entry["value"]) else None
