"""Deduplication and decontamination as stages: the same files for any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from tests.data import leaks, planted

from phial.data.decontaminate import DecontaminateConfig, decontaminate_stage
from phial.data.dedup import DedupConfig, dedup_stage
from phial.data.document import read_documents
from phial.data.pipeline import Machines, Phase, run_stage
from phial.data.stage import dropped_files

TASKS = 3


class Given(PipelineStep):  # type: ignore[misc]
    """Reads documents that are at hand."""

    type, name = "reader", "given"

    def __init__(self, documents: Sequence[Document]) -> None:
        super().__init__()
        self.documents = documents

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        yield from planted.shares(self.documents, world_size)[rank]


def stage(folder: Path, phases: list[Phase], documents: Sequence[Document], workers: int) -> dict[str, Any]:
    return run_stage(
        folder, "stage", phases, Given(documents), inputs={}, config={}, machines=Machines(workers=workers)
    )


@pytest.mark.parametrize("workers", [2])
def test_dedup_writes_the_same_files_with_more_workers(tmp_path: Path, workers: int) -> None:
    corpus = planted.planted(seed=1, each=8)
    config = DedupConfig(bands=6, rows=4)
    results = []
    for count in (1, workers):
        folder = tmp_path / str(count)
        phases = dedup_stage(config, folder / "work", TASKS, ["books", "web"])
        results.append(stage(folder, phases, corpus.documents, count))
    assert results[0]["output_sha256"] == results[1]["output_sha256"]
    assert results[0]["dropped"] == {"duplicate: exact": 16, "duplicate: near": 16}
    found = {d.id: d.metadata["duplicate_of"] for path in dropped_files(tmp_path / "1") for d in read_documents(path)}
    assert found == {copy: original for kind in planted.COPIES for original, copy in corpus.pairs[kind]}


def test_decontamination_writes_the_same_files_with_more_workers(tmp_path: Path) -> None:
    corpus = leaks.leaks(seed=1, each=5)
    documents = list(chain(*corpus.documents.values()))
    results = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        phases = decontaminate_stage(DecontaminateConfig(), folder / "work", TASKS, corpus.items)
        results.append(stage(folder, phases, documents, count))
    assert results[0]["output_sha256"] == results[1]["output_sha256"]
    assert results[0]["dropped"] == {"contaminated: exam": 20}
