"""Reading one file of a source: its records, good and bad, streamed.

A bad record never stops a file: what was found comes with an error in a word or two (they are counted by it) and the
rest is read on, as far as the format allows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from phial.compressed import opened

FORMATS: dict[str, tuple[str, ...]] = {
    "txt": (".txt", ".text"),
    "md": (".md", ".markdown"),
    "html": (".html", ".htm", ".xhtml"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
    "warc": (".warc", ".warc.gz"),
}
SINGLE = ("txt", "md", "html")  # a file is a document
BAD = "bad_record"
_LONGEST = 64 << 20  # bytes of a record; a longer one is bad, not a reason to run out of memory


class Record(NamedTuple):
    """A document before it is one. `error` is empty for a good one."""

    text: str
    metadata: dict[str, Any] = {}
    url: str = ""
    error: str = ""


def records(
    path: Path, kind: str, text_key: str, url_key: str, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, Record]]:
    """The records of a file of this format with their numbers, in order; an unreadable rest is one bad record.

    Only every `world_size`-th record, from number `rank` on, is parsed and given; the others are stepped over.
    """
    number = 0
    try:
        for parse in _unparsed(path, kind, text_key, url_key):
            if number % world_size == rank:
                yield number, parse()
            number += 1
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        if number % world_size == rank:
            yield number, Record(str(error), error="unreadable file")


def _unparsed(path: Path, kind: str, text_key: str, url_key: str) -> Iterator[Callable[[], Record]]:
    """A call for each record, which parses it; good until the next one is asked for."""
    if kind in SINGLE:
        yield partial(_single, path, kind)
    elif kind == "jsonl":
        yield from _jsonl(path, text_key, url_key)
    elif kind == "parquet":
        yield from _parquet(path, text_key, url_key)
    else:
        yield from _warc(path)


def _single(path: Path, kind: str) -> Record:
    if path.stat().st_size > _LONGEST:
        return Record(f"{path.name}: {path.stat().st_size} bytes", error="too long")
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        return Record(data[:4096].decode("utf-8", "replace"), error="binary")
    return Record(decoded(data), {"html": True} if kind == "html" else {})


def decoded(data: bytes) -> str:
    """UTF-8 where it is that, else Windows-1252, which nearly every sequence of bytes is; without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _jsonl(path: Path, text_key: str, url_key: str) -> Iterator[Callable[[], Record]]:
    with opened(path) as file:
        while line := file.readline(_LONGEST):
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                    pass
                yield partial(Record, line[:4096].decode("utf-8", "replace"), error="too long")
            elif line.strip():
                yield partial(_from_json, line, text_key, url_key)


def _from_json(line: bytes, text_key: str, url_key: str) -> Record:
    shown = line.decode("utf-8", "replace")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Record(shown, error="not JSON")
    return _from_mapping(value, shown, text_key, url_key)


def _from_mapping(value: Any, shown: str, text_key: str, url_key: str) -> Record:
    """A record from a row; the columns that are plain values go along as metadata."""
    if not isinstance(value, dict):
        return Record(shown, error="no object")
    text = value.get(text_key)
    if not isinstance(text, str):
        return Record(shown, error=f"no text in {text_key}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Record(text, error="half a surrogate pair")  # no character; no later stage could encode it
    kept = value.pop("metadata", None)
    metadata = {k: v for k, v in (kept if isinstance(kept, dict) else {}).items() if _plain(v)}
    metadata |= {k: v for k, v in value.items() if k != text_key and _plain(v)}
    url = metadata.pop(url_key, "")
    return Record(text, metadata, url if isinstance(url, str) else "")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _parquet(path: Path, text_key: str, url_key: str) -> Iterator[Callable[[], Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in range(batch.num_rows):
                    yield partial(_from_row, batch, row, text_key, url_key)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _from_row(batch: Any, row: int, text_key: str, url_key: str) -> Record:
    import pyarrow

    try:
        value = batch.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError:  # Arrow does not check what a file calls strings
        texts = batch.column(text_key) if text_key in batch.schema.names else batch.column(0)
        found = texts.slice(row, 1).cast(pyarrow.binary())[0].as_py()
        return Record((found or b"").decode("utf-8", "replace"), error="not UTF-8")
    return _from_mapping(value, str(value), text_key, url_key)


def _warc(path: Path) -> Iterator[Callable[[], Record]]:
    """Responses of 200 with a text; other records (requests, metadata) are no documents."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with open(path, "rb") as file:
        try:
            for record in ArchiveIterator(file):
                if record.rec_type in ("response", "conversion", "resource"):
                    yield partial(_from_warc, record)
        except ArchiveLoadFailed as error:
            raise OSError(str(error)) from error


def _from_warc(record: Any) -> Record:
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    metadata = {"date": record.rec_headers.get_header("WARC-Date") or ""}
    headers = record.http_headers
    status = headers.get_statuscode() if headers is not None else "200"
    kind = (headers.get_header("Content-Type") if headers is not None else None) or record.content_type or ""
    if status != "200":
        return Record(url, metadata, url, f"status {status}")
    if "html" not in kind and "text/plain" not in kind:
        return Record(url, metadata, url, f"content type {kind.split(';')[0].strip()}")
    data = record.content_stream().read(_LONGEST + 1)
    if len(data) > _LONGEST:
        return Record(url, metadata, url, "too long")
    if getattr(record.raw_stream, "limit", 0) > 0 and not record.raw_stream.read(1):
        return Record(decoded(data), metadata, url, "cut short")
    return Record(decoded(data), metadata | ({"html": True} if "html" in kind else {}), url)
