"""Deduplication: exact, near (MinHash) and, given embeddings, by meaning; what is kept is defined, memory is bounded.

Four passes, each a datatrove step that any executor runs: `Signatures` (a task a share of the corpus), `Pairs` (a task
a band), `Decide` (one task), `DropDuplicates` (the shares again, in the same order). Of documents that are alike the
one first in order is kept: the order of the sources in the configuration, then the id. The others carry
`metadata["duplicate_of"]`, the id of a kept document, and a reason: "duplicate: exact" (the same but for case, white
space and Unicode form), "duplicate: near" or "duplicate: semantic".

Memory of a process above what the interpreter and its libraries take, with M = memory_mb, D documents:

    Signatures      32 MB + 100 bytes x characters of the longest document
    Pairs           M + 32 MB
    Decide          32 bytes x D + 120 bytes x documents with a duplicate + 32 MB
                    + (4 x bands x rows + id + 200 bytes) x documents of the largest group of duplicates
    DropDuplicates  1 MB and a document

Disk: (16 + 8 x bands + 2 x bands x rows + 12 + id) bytes a document, 430 and the id by default, in the working folder.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from phial.data import duplicates, semantic
from phial.data.minhash import MinHash
from phial.data.pipeline import Phase
from phial.data.signature_files import SignatureReader, SignatureWriter, document_name, identifier_of
from phial.data.word_hashes import BATCH_CHARACTERS
from phial.errors import ArgumentError, PhialError

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
_REASONS = (duplicates.EXACT, duplicates.NEAR, duplicates.SEMANTIC)
_BATCH_DOCUMENTS = 256


class DedupConfig(BaseModel):
    """What counts as a duplicate, and how much memory finding it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    near: bool = True
    ngram: int = Field(5, ge=1, description="words in a shingle")
    threshold: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of shingles from which texts are alike")
    bands: int = Field(20, ge=1, le=1000)
    rows: int = Field(6, ge=1, le=100)
    seed: int = Field(0, ge=0, lt=1 << 31)
    memory_mb: int = Field(512, ge=1, description="for the keys of one band; see phial.data.dedup for the whole")
    semantic_threshold: float | None = Field(None, gt=0, le=1, description="cosine similarity; needs embeddings")
    semantic_cluster: int = Field(1000, ge=2, description="documents in a cluster of embeddings, on average")

    @property
    def passes(self) -> int:
        """Tasks of `Pairs`: one for the digest of the text, one for each band."""
        return 1 + (self.bands if self.near else 0)

    def hashes(self) -> MinHash:
        """The hash functions; a single one where near duplicates are not asked for."""
        return MinHash(self.ngram, self.bands if self.near else 1, self.rows if self.near else 1, self.seed)

    def reader(self, folder: Path, tasks: int) -> SignatureReader:
        """What `Signatures` wrote with this configuration."""
        hashes = self.hashes()
        return SignatureReader(folder, tasks, hashes.bands, hashes.bands * hashes.rows)

    def recall(self, similarity: float) -> float:
        """The expected part of pairs of this Jaccard similarity that meet in a band and so are compared."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


def dedup_stage(
    config: DedupConfig, folder: Path, tasks: int, sources: Sequence[str], embed: Embed | None = None
) -> list[Phase]:
    """The passes of deduplication, to be run one after the other.

    Args:
        folder: for the files between the passes; may be removed afterwards.
        tasks: into how many shares the reader splits the corpus, the same in the first and the last pass.
        sources: names of the sources, those whose documents are kept in preference first.
        embed: vectors of texts, one row a text, for `semantic_threshold`.

    Raises:
        ArgumentError: semantic_threshold without embed.
    """
    if config.semantic_threshold is not None and embed is None:
        raise ArgumentError("semantic_threshold needs embeddings", "give embed=, or leave semantic_threshold out")
    embed = embed if config.semantic_threshold is not None else None
    return [
        Phase("signatures", [Signatures(config, folder, sources, embed)], tasks, writes=False),
        Phase("pairs", [Pairs(config, folder, tasks)], config.passes, reads=False, writes=False),
        Phase("decide", [Decide(config, folder, tasks)], 1, reads=False, writes=False),
        Phase("drop", [DropDuplicates(folder)], tasks),
    ]


class Signatures(PipelineStep):
    """First pass: writes the signatures of a task's documents, lets none through."""

    type, name = "dedup", "signatures"

    def __init__(self, config: DedupConfig, folder: Path, sources: Sequence[str], embed: Embed | None = None) -> None:
        super().__init__()
        self.config, self.folder, self.embed = config, folder, embed
        self.places = {source: place for place, source in enumerate(sources)}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError for a document of a source that is not in `sources`."""
        hashes = self.config.hashes()
        with SignatureWriter(self.folder, rank, embeddings=self.embed is not None) as writer:
            for batch in _batches(data):
                with self.track_time():
                    texts = [document.text for document in batch]
                    vectors = None if self.embed is None else _unit_rows(self.embed(texts), len(texts))
                    writer.write(hashes(texts), [self._name(document) for document in batch], vectors)
                self.stat_update("total", value=len(batch))
        yield from ()

    def _name(self, document: Document) -> bytes:
        source = document.metadata.get("source")
        if source not in self.places:
            raise PhialError(
                f"document {document.id} is of source {source!r}, which is not configured",
                f"sources: {', '.join(self.places)}",
            )
        return document_name(self.places[source], document.id)


class Pairs(PipelineStep):
    """Second pass: the pairs of alike documents that meet in one band."""

    type, name = "dedup", "pairs"

    def __init__(self, config: DedupConfig, folder: Path, tasks: int) -> None:
        super().__init__()
        self.config, self.folder, self.tasks = config, folder, tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents that met more leaders than are compared are counted as "not compared" in the statistics."""
        path = _pairs_file(self.folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with self.config.reader(self.folder, self.tasks) as files, open(partial, "wb") as out:
            memory = self.config.memory_mb << 20
            for found in duplicates.similar_pairs(files, rank, self.config.threshold, memory):
                if isinstance(found, duplicates.Uncompared):
                    self.stat_update("not compared", value=found.documents)
                else:
                    found.tofile(out)
        os.replace(partial, path)
        yield from ()


class Decide(PipelineStep):
    """Third pass, one task: which documents are dropped, and for which kept one."""

    type, name = "dedup", "decide"

    def __init__(self, config: DedupConfig, folder: Path, tasks: int) -> None:
        super().__init__()
        self.config, self.folder, self.tasks = config, folder, tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes, for each task, a line [place, id, reason, id of the kept] a dropped document, in order of place."""
        with self.config.reader(self.folder, self.tasks) as files:
            numbers, kept, reasons = array("q"), array("q"), array("b")
            for drop in self._drops(files):
                numbers.append(drop.number)
                kept.append(drop.kept)
                reasons.append(_REASONS.index(drop.reason))
            dropped, targets = np.array(numbers, np.int64), np.array(kept, np.int64)
            order = np.argsort(dropped)
            dropped, targets, codes = dropped[order], targets[order], np.array(reasons, np.int8)[order]
            for task in range(self.tasks):
                first, last = np.searchsorted(dropped, files.firsts[task : task + 2])
                lines = zip(*(part[first:last].tolist() for part in (dropped, codes, targets)), strict=True)
                self._write(files, task, lines, dropped, targets)
        yield from ()

    def _drops(self, files: SignatureReader) -> Iterator[duplicates.Drop]:
        groups = duplicates.Groups(files.documents)
        for band in range(self.config.passes):
            with open(_pairs_file(self.folder, band), "rb") as file:
                while (pairs := np.fromfile(file, np.int64, 1 << 16)).size:
                    groups.link(pairs)
        kept = np.ones(files.documents, np.bool_)
        threshold = self.config.threshold if self.config.near else 2.0  # nothing is as near as that
        for group in groups:
            for drop in duplicates.drops_of_group(files, group, threshold):
                kept[drop.number] = False
                yield drop
        if self.config.semantic_threshold is not None:
            yield from semantic.drops(
                files, kept, self.config.semantic_threshold, self.config.semantic_cluster, self.config.seed
            )

    def _write(
        self,
        files: SignatureReader,
        task: int,
        lines: Iterator[tuple[int, ...]],
        dropped: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> None:
        path = _drops_file(self.folder, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "w", encoding="utf-8") as out:
            for number, code, kept in lines:
                # The kept one of a group may have been dropped later, for its meaning.
                while (place := int(np.searchsorted(dropped, kept))) < len(dropped) and dropped[place] == kept:
                    kept = int(targets[place])
                ids = [identifier_of(files.name(n)) for n in (number, kept)]
                out.write(json.dumps([number - int(files.firsts[task]), ids[0], _REASONS[code], ids[1]]) + "\n")
                self.stat_update(f"dropped_{_REASONS[code]}")
        os.replace(partial, path)


class DropDuplicates(BaseFilter):
    """Last pass: drops what the third decided; the documents must come as they came to the first."""

    name = "duplicates"

    def __init__(self, folder: Path, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.folder = folder
        self._place = 0
        self._lines: Iterator[list[Any]] = iter(())
        self._next: list[Any] | None = None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError where the documents differ from those of the first pass."""
        path = _drops_file(self.folder, rank)
        if not path.exists():
            raise PhialError(f"{path} is missing", "run the passes before this one")
        with open(path, encoding="utf-8") as file:
            self._place, self._lines = 0, map(json.loads, file)
            self._next = next(self._lines, None)
            yield from super().run(data, rank, world_size)
            if self._next is not None:
                raise _changed(rank)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether this document, the next of its task, is kept."""
        line, place = self._next, self._place
        self._place += 1
        if line is None or line[0] != place:
            return True
        if line[1] != doc.id:
            raise _changed(doc.id)
        self._next = next(self._lines, None)
        doc.metadata["duplicate_of"] = line[3]
        return False, line[2]


def _changed(where: object) -> PhialError:
    return PhialError(f"the documents changed between two passes of deduplication ({where})", "run the stage again")


def _batches(data: Any) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in data:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _unit_rows(vectors: NDArray[Any], count: int) -> NDArray[np.float32]:
    """Rows of length 1, so that their products are cosines; PhialError where they are not `count` finite rows."""
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise PhialError(
            f"embed gave an array of shape {rows.shape} for {count} texts", "it must give a finite row a text"
        )
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _pairs_file(folder: Path, band: int) -> Path:
    return folder / "pairs" / f"{band:05d}.bin"


def _drops_file(folder: Path, task: int) -> Path:
    return folder / "drops" / f"{task:05d}.jsonl"
