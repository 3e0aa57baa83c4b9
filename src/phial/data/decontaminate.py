"""Decontamination: drops documents that hold questions of benchmarks; see `overlap` for when a text holds one.

Three passes, each a datatrove step that any executor runs: `BuildIndex` (one task), `CountCommon` (a task a share of
the corpus: which n-grams of the questions many documents have), `Decontaminate` (the shares again). Documents stream;
what stays in memory is the index, see `question_index.Index`, and 4 bytes an n-gram for counting. A dropped document
has the reason "contaminated: NAME" and in its metadata `contaminated_by`, the question, and `contamination`, the share
of its words found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from phial.data.benchmarks import Benchmark, Item, files_of, read_items
from phial.data.overlap import Matcher, count_texts
from phial.data.pipeline import Phase, digest_of
from phial.data.question_index import Index
from phial.errors import ArgumentError, PhialError

_BATCH_DOCUMENTS = 64


class DecontaminateConfig(BaseModel):
    """Which benchmarks must not be in the data, and when a document holds a question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmarks: tuple[Benchmark, ...] = ()
    ngrams: tuple[int, ...] = Field((5, 8, 13), description="words; longer questions have longer n-grams")
    coverage: float = Field(0.5, gt=0, le=1, description="share of a question's words from which it is found")
    common_documents: int = Field(10, ge=1, description="n-grams in more documents tell no question apart")


def decontaminate_stage(
    config: DecontaminateConfig, folder: Path, tasks: int, items: Iterable[Item] = ()
) -> list[Phase]:
    """The passes, to be run one after the other.

    Args:
        folder: for the files between the passes; may be removed afterwards.
        tasks: into how many shares the reader splits the corpus.
        items: questions beside those of the configured files.

    Raises:
        ArgumentError: no questions to look for are given.
    """
    questions = tuple(items)
    if not config.benchmarks and not questions:
        raise ArgumentError("no benchmark to look for", "name their files under benchmarks")
    return [
        Phase("index", [BuildIndex(config, folder, questions)], 1, reads=False, writes=False),
        Phase("count", [CountCommon(folder)], tasks, writes=False),
        Phase("drop", [Decontaminate(config, folder, tasks)], tasks),
    ]


def benchmark_digests(config: DecontaminateConfig) -> dict[str, str]:
    """What goes into the stage beside the documents: the digest of each benchmark's files."""
    return {f"benchmark {one.name}": digest_of(files_of(one)) for one in config.benchmarks}


class BuildIndex(PipelineStep):
    """First pass, one task: the index of all questions."""

    type, name = "decontaminate", "index"

    def __init__(self, config: DecontaminateConfig, folder: Path, items: Sequence[Item] = ()) -> None:
        super().__init__()
        self.config, self.folder, self.items = config, folder, items

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError for benchmark files that cannot be read."""
        read = (read_items(benchmark) for benchmark in self.config.benchmarks)
        index = Index(chain(self.items, *read), self.config.ngrams)
        self.stat_update("questions", value=len(index.labels))
        self.stat_update("questions too short or too common", value=len(index.unmatched))
        self.stat_update("index bytes", value=index.nbytes)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "index.npz.partial"
        index.save(partial)
        os.replace(partial, _index_file(self.folder))
        yield from ()


class CountCommon(PipelineStep):
    """Second pass: how many of a task's documents have each n-gram, lets none through."""

    type, name = "decontaminate", "count"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError where the index has not been made."""
        index = _load(self.folder)
        counts = np.zeros(len(index.grams), np.uint32)
        batch: list[str] = []
        for document in data:
            batch.append(document.text)
            if len(batch) == _BATCH_DOCUMENTS:
                count_texts(index, batch, counts)
                batch = []
        count_texts(index, batch, counts)
        path = _counts_file(self.folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        counts.tofile(partial)
        os.replace(partial, path)
        yield from ()


class Decontaminate(BaseFilter):
    """Last pass: drops documents that hold a question."""

    name = "benchmark questions"

    def __init__(self, config: DecontaminateConfig, folder: Path, tasks: int, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer, batch_size=_BATCH_DOCUMENTS)
        self.config, self.folder, self.tasks = config, folder, tasks
        self._matcher: Matcher | None = None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises PhialError where a pass before this one has not ended."""
        index = _load(self.folder)
        self._matcher = Matcher(index, self.config.coverage, self._common(index))
        try:
            yield from super().run(data, rank, world_size)
        finally:
            self._matcher = None  # a step is sent to other processes, the index is not

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether one document is kept; see `filter_batch`."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Whether each is kept; sets the metadata of the others."""
        assert self._matcher is not None, "run() makes it"
        results: list[bool | tuple[bool, str]] = [True] * len(batch)
        index = self._matcher.index
        for found in self._matcher.find([document.text for document in batch]):
            if results[found.text] is True:
                metadata = batch[found.text].metadata
                metadata["contaminated_by"] = index.labels[found.item]
                metadata["contamination"] = round(found.coverage, 3)
                results[found.text] = (False, f"contaminated: {index.benchmarks[found.item]}")
        return results

    def _common(self, index: Index) -> NDArray[np.bool_]:
        counts = np.zeros(len(index.grams), np.uint32)
        for task in range(self.tasks):
            path = _counts_file(self.folder, task)
            part = np.fromfile(path, np.uint32) if path.exists() else None
            if part is None or len(part) != len(counts):
                raise PhialError(f"{path} is missing or of another index", "run the passes before this one")
            counts += part
        common: NDArray[np.bool_] = counts > self.config.common_documents
        return common


def _load(folder: Path) -> Index:
    path = _index_file(folder)
    if not path.exists():
        raise PhialError(f"{path} is missing", "run the passes before this one")
    return Index.load(path)


def _index_file(folder: Path) -> Path:
    return folder / "index.npz"


def _counts_file(folder: Path, task: int) -> Path:
    return folder / "counts" / f"{task:05d}.bin"
