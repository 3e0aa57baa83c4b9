"""A stage's folder: what it kept, what it dropped and why, and the counts; written by the steps below.

kept/00000.jsonl.zst ...           one file a task
dropped/00000-02.jsonl.zst ...     one file a task and filter, `filter_reason` in each document's metadata
counts/                            documents and bytes by source, a file beside each of the above; summed in stage.json
stage.json                         the whole, once everything is there
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from phial.data.document import SUFFIX, Document, DocumentFile, read_documents
from phial.errors import PhialError
from phial.manifest import hash_file, write_json

STAGE = "stage.json"


class StageReader(PipelineStep):
    """The documents that the stage before kept; task r reads the file of its task r."""

    type, name = "reader", "stage"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError where the stage has no file for this task."""
        if data is not None:
            yield from data
        for path in kept_files(self.folder)[rank::world_size]:
            yield from read_documents(path)


class Counted:
    """Documents and bytes by (source, reason), written beside the file they are in."""

    def __init__(self) -> None:
        self.documents: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def add(self, document: Document, reason: str = "") -> None:
        key = (str(document.metadata.get("source", "")), reason)
        self.documents[key] += 1
        self.bytes[key] += len(document.text.encode("utf-8", "surrogatepass"))

    def write(self, path: Path) -> None:
        rows = [[*key, n, self.bytes[key]] for key, n in sorted(self.documents.items())]
        write_json(path, rows)


class Keep(PipelineStep):
    """Writes what reaches the end of a stage."""

    type, name = "writer", "keep"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Lets nothing through: it is the last step."""
        file, counted = DocumentFile(self.folder / "kept" / f"{rank:05}{SUFFIX}"), Counted()
        for document in data:
            file.write(document)
            counted.add(document)
        counted.write(self.folder / "counts" / f"kept-{rank:05}.json")
        file.close()
        yield from ()


class Dropped:
    """What a filter of a stage drops; stands where datatrove's filters take an `exclusion_writer`."""

    def __init__(self, folder: Path, place: int) -> None:
        self.folder, self.place = folder, place
        self._file: DocumentFile | None = None
        self._counted, self._rank = Counted(), 0

    def __enter__(self) -> Dropped:
        self._file, self._counted = None, Counted()
        return self

    def write(self, document: Document, rank: int = 0, **_: Any) -> None:
        """Append a document with its reason in the metadata."""
        if self._file is None:
            self._rank = rank
            self._file = DocumentFile(self.folder / "dropped" / f"{rank:05}-{self.place:02}{SUFFIX}")
        self._file.write(document)
        self._counted.add(document, str(document.metadata.get("filter_reason", "")))

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._file is not None and kind is None:
            self._counted.write(self.folder / "counts" / f"dropped-{self._rank:05}-{self.place:02}.json")
            self._file.close()


def with_writers(steps: list[PipelineStep], folder: Path) -> list[PipelineStep]:
    """The steps, each filter given a place for what it drops, and the writer of what is kept behind them."""
    for place, step in enumerate(steps):
        if (isinstance(step, BaseFilter) or hasattr(step, "exclusion_writer")) and step.exclusion_writer is None:
            step.exclusion_writer = Dropped(folder, place)
    return [*steps, Keep(folder)]


def kept_files(folder: Path) -> list[Path]:
    """The files of what a stage kept, in the order of its tasks. Raises PhialError where the stage is not finished."""
    if not (folder / STAGE).exists():
        raise PhialError(f"{folder} holds no finished stage", "run the stage before this one first: phial data run")
    return sorted((folder / "kept").glob("*" + SUFFIX))


def dropped_files(folder: Path) -> list[Path]:
    """The files of what a stage dropped."""
    return sorted((folder / "dropped").glob("*" + SUFFIX))


def summary(folder: Path) -> dict[str, Any]:
    """documents_in, kept, dropped by reason, the same by source, and the digest of all files of a stage."""
    sources: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    for path in sorted((folder / "counts").glob("*.json")):
        for source, reason, documents, n_bytes in json.loads(path.read_text("utf-8")):
            entry = sources.setdefault(source, {"in": 0, "kept": 0, "bytes_kept": 0, "dropped": {}})
            entry["in"] += documents
            if path.name.startswith("kept-"):
                entry["kept"] += documents
                entry["bytes_kept"] += n_bytes
            else:
                entry["dropped"][reason] = entry["dropped"].get(reason, 0) + documents
                dropped[reason] += documents
    kept = sum(entry["kept"] for entry in sources.values())
    return {
        "documents_in": kept + sum(dropped.values()),
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "by_source": dict(sorted(sources.items())),
        "output_sha256": output_digest(folder),
    }


def output_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all that a stage kept and dropped."""
    digest = hashlib.sha256()
    for path in [*sorted((folder / "kept").glob("*" + SUFFIX)), *dropped_files(folder)]:
        digest.update(path.relative_to(folder).as_posix().encode())
        hash_file(path, digest)
    return digest.hexdigest()
