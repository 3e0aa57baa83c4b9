"""Files of documents and labels as lines of JSON, plain, .gz or .zst: read one by one, written whole or not at all.

A document is {"text", "id", "metadata"}; a label is {"text", "score"} and perhaps "group", which the answers of
phial.data.annotate are too.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from phial.compressed import opened
from phial.data.annotate import Text, group_of
from phial.data.quality import MAX_SCORE
from phial.data.quality_training import Labelled
from phial.errors import PhialError

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder: those a stage kept, where it is a stage's.

    Raises:
        PhialError: there is nothing, or nothing in it that ends as a file of documents does.
    """
    if path.is_file():
        return [path]
    folder = path / "kept" if (path / "kept").is_dir() else path
    found = sorted(file for file in folder.glob("*") if file.name.endswith(_ENDINGS)) if folder.is_dir() else []
    if not found:
        raise PhialError(f"no documents at {path}", f"name a file or a folder of {', '.join(_ENDINGS)}")
    return found


def read_texts(path: Path) -> Iterator[Text]:
    """The documents of a file or folder, in order.

    Raises:
        PhialError: as `files_of`, and for a line that is no document, named by file and line.
    """
    for where, record in _records(path):
        metadata = record.get("metadata", {})
        if not isinstance(record.get("text"), str) or not isinstance(metadata, dict):
            raise PhialError(f'{where} is no document with a "text"', "documents are lines of JSON: text, id, metadata")
        yield Text(str(record.get("id", where)), record["text"], metadata)


def read_labels(path: Path) -> list[Labelled]:
    """The labels of a file or folder; one without a group is a group of its own.

    Raises:
        PhialError: as `files_of`, and for a line that is no label, named by file and line.
    """
    labels = []
    for where, record in _records(path):
        text, score = record.get("text"), record.get("score")
        if not isinstance(text, str) or type(score) is not int or not 0 <= score <= MAX_SCORE:
            raise PhialError(f"{where} is no label: score {score!r}", 'labels have a "text" and a "score" from 0 to 5')
        group = record.get("group") or group_of(Text(str(record.get("id", where)), text, {}))
        labels.append(Labelled(text, score, str(group)))
    return labels


def write_texts(documents: Iterable[Any], path: Path) -> int:
    """Writes documents (with text, id and metadata) as lines with sorted keys; returns how many.

    Raises:
        PhialError: the name does not end as a file of documents does.
    """
    if not path.name.endswith(_ENDINGS):
        raise PhialError(f"{path} does not end in {', '.join(_ENDINGS)}", "the ending decides the compression")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    count = 0
    try:
        with _written(partial) as file:
            for document in documents:
                record = {"text": document.text, "id": document.id, "metadata": document.metadata}
                file.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line as (file:line, its object)."""
    for file in files_of(path):
        number = 0
        try:
            for number, line in enumerate(_lines(file), 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("no object")
                    yield f"{file}:{number}", record
        except ValueError as error:
            if isinstance(error, PhialError):
                raise
            raise PhialError(f"{file}:{number} cannot be read: {error}", "every line is one JSON object") from None


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """A new file for UTF-8 text; compressed as its name says, without the time of day in it."""
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("wb"))
        if path.name.endswith(".gz"):
            raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        elif path.name.endswith(".zst"):
            raw = stack.enter_context(zstandard.ZstdCompressor().stream_writer(raw))
        yield stack.enter_context(io.TextIOWrapper(raw, "utf-8", newline="\n"))


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; ValueError where a compressed one is damaged or ends too early."""
    try:
        with opened(path) as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise ValueError(str(error)) from None
