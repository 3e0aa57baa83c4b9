"""A model's weights as the core computes with them, in a file beside the model: no repacking at the start.

Where the system holds the file in huge pages (Linux from 6.16 on ext4 and xfs, while memory is not in pieces), tiles
are used where they are mapped: a start costs next to nothing and processes share one copy. In small pages decoding
would be a sixth slower, so the tiles are then copied into huge pages of the process's own. The file is written and
mapped in large aligned runs, because that is what makes the system choose huge pages.

Layout: the tiles of each matrix on cache lines of 64 bytes; a JSON table (whose tiles, how they are laid out, where
each matrix is); 8 bytes its length, 32 sha256 of it, 8 magic. The table is checked before anything is mapped; tiles
are numbers, which can be wrong but do no harm. A file that does not fit the model is passed over, with a line on
stderr. Not guarded, as with the model file: another process cutting it short while it is mapped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_TENSORS, ModelConfig
from phial.engine import native_backend
from phial.engine.model_file import model_fingerprint, read_config
from phial.engine.native_backend import Tiles
from phial.errors import FormatError, PhialError
from phial.gguf.container import GGUFFile, TensorInfo, read_gguf

SUFFIX = ".prepared"
MAGIC = b"PHIALPK1"
_TAIL = struct.Struct("<Q32s8s")  # the table's length and sha256, magic
_MAX_TABLE = 16 << 20
_LINE = 64
_RUN = 8 << 20
_HUGE = 2 << 20
_ENOUGH = 0.95  # of a file in huge pages
_POPULATED = 64 << 20  # read in at once; Ctrl-C waits for it
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which Python does not name
_AGAIN = "`phial pull --prepare` makes it again"

Progress = Callable[[int, int], None]  # called after each matrix with (bytes done, bytes to do)


def prepared_path(model: Path) -> Path:
    """Where the prepared form of a model file lies."""
    return model.with_name(model.name + SUFFIX)


def prepared_tiles(file: GGUFFile, config: ModelConfig) -> Tiles:
    """The tiles of all matrices of a model, mapped from its prepared file; of none where there is no fitting one."""
    path = prepared_path(file.path)
    try:
        with path.open("rb") as opened:
            table = _read_table(opened)
            if table["model"] != _identity(file, config):
                raise FormatError("it was made for another version of the model or of phial", _AGAIN)
            places = {info.name: _place(table, info, config) for info in _matrices(file)}
            mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return Tiles()
    except FormatError as error:
        print(f"phial: {path} is not used: {error.message}; {_AGAIN}", file=sys.stderr)
        return Tiles()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:  # a table of other things, too
        print(f"phial: {path} is not used: {error!r}; {_AGAIN}", file=sys.stderr)
        return Tiles()
    tiles = {name: np.frombuffer(mapping, np.uint8, n_bytes, start) for name, (start, n_bytes) in places.items()}
    return Tiles(tiles, _in_huge_pages(mapping))


def _in_huge_pages(mapping: mmap.mmap) -> bool:
    """Read a mapped file in, and say whether it lies in huge pages; True where copying would not bring any either."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return True
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, len(mapping), _POPULATED):
            mapping.madvise(_POPULATE_READ, start, min(_POPULATED, len(mapping) - start))
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:  # a kernel without them
        return False
    begin = f"{np.frombuffer(mapping, np.uint8, 1).ctypes.data:x}-"  # the view goes with this line
    found = re.search(rf"^{begin}(?:.*\n)+?FilePmdMapped:\s*(\d+) kB", smaps, re.MULTILINE)
    return found is not None and int(found[1]) * 1024 >= _ENOUGH * (len(mapping) - _HUGE)


def prepare(model: str | os.PathLike[str], progress: Progress | None = None) -> tuple[Path, bool]:
    """Write the prepared form of a GGUF model beside it, unless it is there, whole and fitting.

    Returns its path and whether it was written.

    Raises:
        PhialError: there is no compiled core, no such model, or no room for the file.
        FormatError: the model is damaged or not supported.
    """
    if not native_backend.is_available():
        raise PhialError("this installation has no compiled core to prepare a model for", "build it: pip install .")
    with read_gguf(model) as file:
        config = read_config(file)
        path = prepared_path(file.path)
        if _is_whole(path, _identity(file, config)):
            return path, False
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as target:
                    _write(target, file, config, progress)
                    os.fsync(target.fileno())
                os.chmod(temporary, file.path.stat().st_mode & 0o666)
                _settle(Path(temporary))  # under this name nobody else can take it away meanwhile
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            needed = f"about {file.size / 1e9:.1f} GB are needed beside the model"
            raise PhialError(f"cannot write {path}: {error.strerror or error}", needed) from error
        return path, True


def _settle(path: Path) -> None:
    """Have the system read a written file anew, as it will be mapped: as written it may lie in small pages."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            _in_huge_pages(mapping)


def _matrices(file: GGUFFile) -> list[TensorInfo]:
    return [i for i in file.tensors.values() if len(i.shape) == 2 and i.name not in ROPE_TENSORS]


def _identity(file: GGUFFile, config: ModelConfig) -> list[Any]:
    """What a prepared file must have been made from: this very file, with tiles laid out as this build has them."""
    status = file.path.stat()
    digests = [model_fingerprint(file, config), native_backend.packing_digest()]
    return [*digests, status.st_size, status.st_mtime_ns]


def _write(target: BinaryIO, file: GGUFFile, config: ModelConfig, progress: Progress | None) -> None:
    places: dict[str, list[int]] = {}
    weights, digest = _matrices(file), hashlib.sha256()
    total = sum(info.n_bytes for info in weights)

    def parts() -> Iterable[NDArray[np.uint8]]:
        at = done = 0
        for info in weights:
            tiles = native_backend.packed(file, info, config)
            n_bytes = sum(part.size for part in tiles)
            places[info.name] = [at, n_bytes]
            yield from tiles
            at, done = at + n_bytes, done + info.n_bytes
            file.release(info.name)
            if progress is not None:
                progress(done, total)

    _write_runs(target, parts(), digest)
    table = {"model": _identity(file, config), "sha256": digest.hexdigest(), "matrices": places}
    text = json.dumps(table).encode()
    target.write(text + _TAIL.pack(len(text), hashlib.sha256(text).digest(), MAGIC))


def _write_runs(target: BinaryIO, parts: Iterable[NDArray[np.uint8]], digest: Any) -> None:
    """Write arrays one behind the other in runs of _RUN bytes, each at a multiple of it."""
    run, filled = bytearray(_RUN), 0
    for part in parts:
        data = part.data
        digest.update(data)
        while len(data):
            n = min(_RUN - filled, len(data))
            run[filled : filled + n] = data[:n]
            data, filled = data[n:], filled + n
            if filled == _RUN:
                _write_all(target, run)
                filled = 0
    _write_all(target, memoryview(run)[:filled])


def _write_all(target: BinaryIO, data: bytearray | memoryview) -> None:
    rest = memoryview(data)
    while len(rest):  # an unbuffered file may take less
        rest = rest[target.write(rest) :]


def _read_table(file: BinaryIO) -> dict[str, Any]:
    """The table of a prepared file. Raises FormatError where it is damaged."""
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL.size:
        raise FormatError(f"it has {size} bytes", _AGAIN)
    file.seek(size - _TAIL.size)
    length, digest, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != MAGIC or length > min(_MAX_TABLE, size - _TAIL.size):
        raise FormatError("it is damaged or cut short", _AGAIN)
    file.seek(size - _TAIL.size - length)
    text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise FormatError("its table is damaged", _AGAIN)
    table = json.loads(text)
    return {**table, "end": size - _TAIL.size - length}


def _place(table: dict[str, Any], info: TensorInfo, config: ModelConfig) -> tuple[int, int]:
    """Where a matrix's tiles begin and how many bytes they have."""
    start, n_bytes = map(int, table["matrices"].get(info.name, (-1, 0)))
    fits = start >= 0 and start % _LINE == 0 and n_bytes == native_backend.packed_bytes(info, config)
    if not fits or start + n_bytes > table["end"]:
        raise FormatError(f"{info.name} is not where its table says", _AGAIN)
    return start, n_bytes


def _is_whole(path: Path, identity: list[Any]) -> bool:
    """Whether a file fits and all its tiles have the digest they were written with."""
    try:
        with path.open("rb") as file:
            table = _read_table(file)
            if table["model"] != identity:
                return False
            digest, left = hashlib.sha256(), table["end"]
            file.seek(0)
            while left and (data := file.read(min(_RUN, left))):
                digest.update(data)
                left -= len(data)
            return bool(digest.hexdigest() == table["sha256"])
    except (OSError, ValueError, FormatError, KeyError, TypeError, RecursionError):
        return False
