"""Where documents come from: files and folders of txt, md, html, jsonl, parquet and WARC, and `hf:` data sets.

Each document carries `source`, `licence` and `path` (file#record). A record that cannot be read becomes a dropped
document with reason "bad-record: ..." whose text is what was found: counted, readable, never fatal. Tasks share the
files that are one document each in turn; a file of many records is read by every task, which takes its own. So the
result depends on the number of tasks alone, not on how many run at a time.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import BaseModel, ConfigDict, Field

from phial.data.document import Document, document_id
from phial.data.source_formats import BAD, FORMATS, SINGLE, Record, records
from phial.errors import PhialError

_HF = "hf:"


class SourceConfig(BaseModel):
    """One source of a corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    paths: tuple[str, ...] = Field(
        min_length=1, description="files, folders, globs, or hf:owner/dataset[/path or glob]"
    )
    licence: str = Field(min_length=1, description="SPDX id, or words")
    format: str | None = Field(None, description="of every file; None: by its ending")
    text_key: str = "text"
    url_key: str = "url"
    synthetic: bool = False
    revision: str = Field("main", description="of hf: data sets")


class SourceFile(BaseModel):
    """One file that a task opens."""

    model_config = ConfigDict(frozen=True)

    path: Path
    shown: str  # as it stands in metadata.path
    format: str
    source: int


def find_files(sources: Sequence[SourceConfig], base: Path) -> list[SourceFile]:
    """All files of all sources in a defined order; relative paths are taken from `base`.

    Raises PhialError for a path without files, an unknown format, and a name that two sources have.
    """
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PhialError(f"two sources are called {twice[0]}", "give each source a name of its own")
    files: list[SourceFile] = []
    for place, source in enumerate(sources):
        for pattern in source.paths:
            files += _matching(source, place, pattern, base)
    return files


def _matching(source: SourceConfig, place: int, pattern: str, base: Path) -> list[SourceFile]:
    if pattern.startswith(_HF):
        found = _from_hub(pattern, source.revision)
        root = None
    else:
        root = base / os.path.expanduser(pattern)
        found = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else _globbed(root)
    known = [(path, source.format or _format_of(path)) for path in found]
    if source.format is None and root is not None and root.is_dir():
        known = [(path, kind) for path, kind in known if kind is not None]  # a folder may hold other things
    if not known:
        raise PhialError(f"source {source.name}: {pattern} has no files", f"formats: {', '.join(FORMATS)}")
    files = []
    for path, kind in known:
        if kind not in FORMATS:
            hint = f"give the source a format: {', '.join(FORMATS)}"
            raise PhialError(f"source {source.name}: {path} is of no known format ({kind})", hint)
        shown = os.path.relpath(path, base) if root is not None else f"{pattern}/{path.name}"
        files.append(SourceFile(path=path, shown=shown, format=kind, source=place))
    return files


def _globbed(pattern: Path) -> list[Path]:
    if pattern.is_file():
        return [pattern]
    return sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file())


def _format_of(path: Path) -> str | None:
    name = path.name.lower()
    for kind, endings in FORMATS.items():
        if name.endswith(endings):
            return kind
    return None


def _from_hub(pattern: str, revision: str) -> list[Path]:
    """Download the matching files of a data set into the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, _, rest = pattern.removeprefix(_HF).partition("/")
    name, _, wanted = rest.partition("/")
    if not owner or not name:
        raise PhialError(f"{pattern} names no data set", "hf:owner/name, or hf:owner/name/folder/*.parquet")
    try:
        folder = Path(
            snapshot_download(f"{owner}/{name}", repo_type="dataset", revision=revision, allow_patterns=wanted or None)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PhialError(f"{pattern}: {message}", "check the name, the network, and HF_TOKEN for gated data") from error
    return sorted(p for p in folder.rglob("*") if p.is_file() and _format_of(p) is not None)


class Sources(PipelineStep):
    """The reader in front of the first stage; see `find_files` for what it is given."""

    type, name = "reader", "sources"

    def __init__(self, sources: Sequence[SourceConfig], files: Sequence[SourceFile]) -> None:
        super().__init__()
        self.sources, self.files = list(sources), list(files)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents of one task. Bad records come as documents with the metadata key `bad_record`."""
        for number, file in enumerate(self.files):
            if file.format in SINGLE and number % world_size != rank:
                continue
            source = self.sources[file.source]
            share = (0, 1) if file.format in SINGLE else (rank, world_size)
            for index, record in records(file.path, file.format, source.text_key, source.url_key, *share):
                yield self._document(source, file, index, record)

    def _document(self, source: SourceConfig, file: SourceFile, index: int, record: Record) -> Document:
        metadata: dict[str, Any] = dict(record.metadata)
        metadata.pop(BAD, None)
        metadata |= {"source": source.name, "licence": source.licence, "path": f"{file.shown}#{index}"}
        if record.url:
            metadata["url"] = record.url
        if source.synthetic:
            metadata["synthetic"] = True
        if record.error:
            metadata[BAD] = record.error
        return Document(
            record.text, document_id(source.name, f"{file.shown}#{index}\0{record.text}"), metadata=metadata
        )


class BadRecords(BaseFilter):
    """Sets aside what could not be read, with the reason."""

    name = "bad records"

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """A document without `bad_record` and with text stays."""
        error = document.metadata.get(BAD)
        if error is not None:
            return False, f"bad-record: {error}"
        return True if document.text.strip() else (False, "bad-record: empty")
