"""Files of lines, plain, .gz or .zst by their names, read as one stream of bytes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any, BinaryIO

_COMPRESSED = 1 << 13  # bytes decompressed at once


def opened(path: Path) -> BinaryIO:
    """The file, unpacked as its name says; reading one that is cut short ends with EOFError, whatever the packing,
    and one that is damaged with OSError or, .gz, zlib.error."""
    if path.name.endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    file = open(path, "rb")
    return io.BufferedReader(_Frames(file)) if path.name.endswith(".zst") else file


class _Frames(io.RawIOBase):
    """What zstandard frames hold, one after the other; EOFError where the last one is cut short.

    zstandard's own reader takes a file that ends in the middle of a frame for a whole one.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard  # of the extra data; what is not packed so needs none

        self._file, self._rest, self._ready = file, b"", b""
        self._new, self._damaged = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._decoder: Any = self._new()  # no frame at all is cut short, too

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._file.read(_COMPRESSED)
            if not data:
                if self._decoder is not None:
                    raise EOFError("the file is cut short")
                return 0
            if self._decoder is None:
                self._decoder = self._new()
            try:
                self._ready, self._rest = self._decoder.decompress(data), b""
            except self._damaged as error:
                raise OSError(str(error)) from error
            if self._decoder.eof:
                self._rest, self._decoder = self._decoder.unused_data, None
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)], self._ready = taken, self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._file.close()
        super().close()
