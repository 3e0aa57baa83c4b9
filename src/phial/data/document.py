"""One document and its line on disk: datatrove's `Document`, with the metadata keys that every stage agrees on.

A line is JSON with sorted keys, files are zstandard: a gzip header would hold the time, and no two files be equal.

Metadata: `source`, `licence`, `path` (file#record it came from), `url`, `language`, `language_score`, `quality` (0 to
5, the score and not the decision), `filter_reason` and `duplicate_of` (on dropped documents), `synthetic`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from datatrove.data import Document
from loguru import logger

from phial.compressed import opened
from phial.errors import FormatError

__all__ = ["Document", "DocumentFile", "document_id", "read_documents"]

logger.disable("datatrove")  # its log goes into the stage's folder; here, so that worker processes are quiet, too
SUFFIX = ".jsonl.zst"
_LEVEL = 3


def document_id(source: str, text: str) -> str:
    """An id that follows from the source's name and the text alone: 16 hexadecimal digits."""
    return hashlib.sha256(f"{source}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one file, streamed. Raises FormatError with the line's number where one is damaged."""
    number = 0
    try:
        with opened(path) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    raise ValueError("it is cut short")
                number += 1
                fields = json.loads(line)
                yield Document(fields["text"], fields["id"], metadata=fields["metadata"])
    except (EOFError, zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        hint = "remove the stage's folder and run it again"
        raise FormatError(f"{path}: damaged after line {number}: {error}", hint) from error


class DocumentFile:
    """Writes documents to a temporary name; `close` gives the file its own, and nothing has it before."""

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "wb")
        self._stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file)

    def write(self, document: Document) -> int:
        """Append one document; the bytes of its line."""
        fields: dict[str, Any] = {"text": document.text, "id": document.id, "metadata": document.metadata}
        line = (json.dumps(fields, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        self._stream.write(line)
        return len(line)

    def close(self) -> None:
        """Finish the file; it exists under its name from here on."""
        self._stream.close()  # type: ignore[no-untyped-call]
        self._file.close()
        os.replace(self._partial, self.path)
