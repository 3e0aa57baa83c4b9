"""Stages: the same files for any number of workers and after a kill; what is dropped can be read; no work twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from phial.data.document import document_id, read_documents
from phial.data.pipeline import Machines, Phase, run_stage
from phial.data.stage import StageReader, dropped_files, kept_files
from phial.errors import FormatError, PhialError


class Numbers(PipelineStep):
    """Documents 0 to n-1 of two sources, cut over the tasks."""

    type, name = "reader", "numbers"

    def __init__(self, n: int, pause: float = 0.0) -> None:
        super().__init__()
        self.n, self.pause = n, pause

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        for i in range(rank, self.n, world_size):
            time.sleep(self.pause)
            source = "even" if i % 2 == 0 else "odd"
            yield Document(f"text {i} é", document_id(source, str(i)), metadata={"source": source, "number": i})


class NotDivisible(BaseFilter):
    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def filter(self, document: Document) -> Any:
        return True if document.metadata["number"] % self.by else (False, f"divisible: {self.by}")


class Fails(BaseFilter):
    def filter(self, document: Document) -> Any:
        raise ValueError("no such luck")


def stage(folder: Path, n: int = 60, pause: float = 0.0, config: Any = None, **machines: Any) -> dict[str, Any]:
    phase = Phase("filter", [NotDivisible(3), NotDivisible(5)], 4)
    inputs = {"numbers": str(n)}
    return run_stage(
        folder,
        "numbers",
        [phase],
        Numbers(n, pause),
        inputs=inputs,
        config=config or {},
        machines=Machines(**machines),
    )


def test_kept_and_dropped_documents_are_counted_by_source_and_reason(tmp_path: Path) -> None:
    result = stage(tmp_path / "s")
    assert (result["documents_in"], result["kept"]) == (60, 32)
    assert result["dropped"] == {"divisible: 3": 20, "divisible: 5": 8}
    assert result["by_source"]["even"] == {
        "in": 30,
        "kept": 16,
        "bytes_kept": sum(len(f"text {i} é".encode()) for i in range(0, 60, 2) if i % 3 and i % 5),
        "dropped": {"divisible: 3": 10, "divisible: 5": 4},
    }
    kept = [d.metadata["number"] for path in kept_files(tmp_path / "s") for d in read_documents(path)]
    assert sorted(kept) == [i for i in range(60) if i % 3 and i % 5]
    dropped = [d for path in dropped_files(tmp_path / "s") for d in read_documents(path)]
    assert {d.metadata["number"]: d.metadata["filter_reason"] for d in dropped}[25] == "divisible: 5"
    assert len(dropped) == 28 and all(d.text.endswith("é") for d in dropped)


def test_a_stage_reads_the_one_before(tmp_path: Path) -> None:
    first = stage(tmp_path / "1")
    phase = Phase("filter", [NotDivisible(7)], 4)
    inputs = {"numbers": first["output_sha256"]}
    second = run_stage(tmp_path / "2", "next", [phase], StageReader(tmp_path / "1"), inputs=inputs, config={})
    assert (second["documents_in"], second["kept"]) == (
        32,
        32 - len([i for i in (7, 14, 28, 49, 56) if i % 3 and i % 5]),
    )
    with pytest.raises(PhialError, match="no finished stage"):
        run_stage(tmp_path / "3", "next", [phase], StageReader(tmp_path / "none"), inputs={}, config={})


def test_any_number_of_workers_writes_the_same_files(tmp_path: Path) -> None:
    one, two = stage(tmp_path / "one"), stage(tmp_path / "two", workers=2)
    assert one["output_sha256"] == two["output_sha256"]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.zst"))
    assert len(files) == 12
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_finished_stage_is_not_run_again_and_a_changed_one_is(tmp_path: Path) -> None:
    first = stage(tmp_path / "s")
    times = {path: path.stat().st_mtime_ns for path in kept_files(tmp_path / "s")}
    assert stage(tmp_path / "s") == first
    assert {path: path.stat().st_mtime_ns for path in kept_files(tmp_path / "s")} == times
    assert stage(tmp_path / "s", n=61)["documents_in"] == 61
    kept_files(tmp_path / "s")[0].write_bytes(b"")  # somebody's accident
    assert stage(tmp_path / "s", n=61)["documents_in"] == 61
    assert kept_files(tmp_path / "s")[0].stat().st_size > 0


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PhialError, match="letter.txt"):
        stage(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_failing_step_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="ValueError: no such luck"):
        run_stage(tmp_path / "s", "bad", [Phase("f", [Fails()], 2)], Numbers(4), inputs={}, config={})


@pytest.mark.parametrize("after", [0.4, 0.9, 1.4])
def test_killed_anywhere_it_ends_with_the_same_files(tmp_path: Path, after: float) -> None:
    whole = stage(tmp_path / "whole")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from tests.data.test_pipeline import stage; print('go', flush=True); stage(Path(sys.argv[2]), pause=0.05)"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, root, str(tmp_path / "s")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline() == b"go\n"
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s" / "stage.json").exists()
    assert stage(tmp_path / "s")["output_sha256"] == whole["output_sha256"]
    assert not list((tmp_path / "s" / "kept").glob("*.partial"))


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    stage(tmp_path / "s")
    path = kept_files(tmp_path / "s")[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="damaged after line"):
        list(read_documents(path))


@pytest.mark.slow
def test_ray_writes_the_same_files(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    local = stage(tmp_path / "local")
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": f"{root}:{root}/src"}})
    try:
        result = stage(tmp_path / "ray", executor="ray", workers=2)
    finally:
        ray.shutdown()
    assert result["output_sha256"] == local["output_sha256"]
    assert json.loads((tmp_path / "ray" / "stage.json").read_text())["kept"] == 32
