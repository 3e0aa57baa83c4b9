"""Pages of the key-value cache on disk: a later process with the same beginning reads them instead of computing.

One file a page, named by a digest of who computed it (model, cache type, build, kernels) and of the page's key, that
is of all tokens to its end; the tokens themselves are not stored. Layout: 8 bytes magic, sha256 over name and page,
the page as the backend stores it. Nothing is executed, and a file that is damaged or foreign is a miss and removed.

The folder is bounded: what was used longest ago goes first, of one prompt its end. Several processes may share it: a
file gets its name when it is complete, and one that vanishes meanwhile is a miss. A disk that is full or read-only
costs the cache, never the answer; one line on stderr says so.

What is here can be turned back into the text by whoever has the model: the folder is for its owner alone (0700).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from phial.engine.cache import PageTable, page_keys

DISK_BYTES = 1 << 30
MIN_TOKENS = 256  # a shorter beginning is computed nearly as fast as it is read
MAGIC = b"PHIALPG1"
SUFFIX, UNFINISHED = ".page", ".part"
_HEADER = len(MAGIC) + hashlib.sha256().digest_size
_ABANDONED = 3600.0  # seconds after which an unfinished file belongs to nobody


class DiskCache:
    """A folder of pages, as seen by one engine.

    Args:
        folder: made when first needed.
        owner: all that keys depend on beside tokens, factor set and adapters.
        max_bytes: what all files of the folder may take together, whoever wrote them.
        min_tokens: of a prompt that is worth keeping.

    Attributes:
        writes: whether pages are written; False once the engine holds some that may have been computed elsewhere.
    """

    def __init__(self, folder: Path, owner: str, *, max_bytes: int = DISK_BYTES, min_tokens: int = MIN_TOKENS) -> None:
        self.folder = folder
        self._owner = hashlib.sha256(owner.encode()).digest()
        self._max_bytes, self._min_tokens = max_bytes, min_tokens
        self.writes = True
        self._told = False

    def fill(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Lengthen an exact table, which holds a beginning of these tokens, by the pages found for what follows."""
        names = self._names(table, tokens)
        done = table.n_tokens // table.pool.page_tokens
        for name in names[done:]:
            data = self._read(name, table.pool.store.page_bytes)
            if data is None:
                break
            table.append_page(data)
            done += 1
        self._touch(names[:done])

    def keep(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Write the full pages of a prompt that are not there yet, the first ones first. tokens: the prompt's ids."""
        filled = tokens[: table.n_tokens]
        if not self.writes or not table.exact or len(filled) < self._min_tokens:
            return
        file_bytes = _HEADER + table.pool.store.page_bytes
        names = self._names(table, filled)[: self._max_bytes // file_bytes]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._touch([name for name in names if self._path(name).exists()])
            missing = [i for i, name in enumerate(names) if not self._path(name).exists()]
            self._make_room(len(missing) * file_bytes)
            for i in missing:
                self._write(names[i], table.pool.store.read_page(table.pages[i]))
        except OSError as error:
            self._say(f"no prefix is kept in {self.folder}: {error.strerror or error}")
        self._touch(names)

    def _names(self, table: PageTable, tokens: Sequence[int]) -> list[str]:
        keys = page_keys(tokens, table.pool.page_tokens, table.long, table.adapters)
        return [hashlib.blake2b(key, digest_size=20, key=self._owner).hexdigest() for key in keys]

    def _path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)

    def _read(self, name: str, page_bytes: int) -> bytes | None:
        """A page that is there and whole, else None."""
        path = self._path(name)
        try:
            status = path.lstat()
            whole = stat.S_ISREG(status.st_mode) and status.st_size == _HEADER + page_bytes
            if whole:
                with path.open("rb") as file:
                    header, data = file.read(_HEADER), file.read(page_bytes)
                if header == _header(name, data):
                    return data
            path.unlink()
            self._say(f"removed a damaged file of kept prefixes: {path}")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._say(f"a kept prefix cannot be read: {path}: {error.strerror or error}")
        return None

    def _write(self, name: str, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_header(name, data))
                file.write(data)
            os.replace(temporary, self._path(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _touch(self, names: Sequence[str]) -> None:
        """Mark pages as used now, each a little before the one it follows: without that one it is of no use."""
        now = time.time_ns()
        for i, name in enumerate(names):
            try:
                os.utime(self._path(name), ns=(now, now - 1000 * i))
            except OSError:  # removed meanwhile, or read-only
                return

    def _make_room(self, wanted: int) -> None:
        """Remove what was used longest ago until `wanted` bytes fit, and what a killed process left unfinished."""
        files = []
        for path in self.folder.iterdir():
            try:
                status = path.lstat()
                if path.suffix == SUFFIX:
                    files.append((status.st_mtime_ns, path, status.st_size))
                elif path.suffix == UNFINISHED and time.time() - status.st_mtime > _ABANDONED:
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue
        used = sum(size for *_, size in files)
        for _, path, size in sorted(files):
            if used + wanted <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            used -= size

    def _say(self, text: str) -> None:
        if not self._told:
            self._told = True
            print(f"phial: {text}", file=sys.stderr)


def _header(name: str, data: bytes) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(data)
    return MAGIC + digest.digest()
