"""Processes started by the real torchrun give the losses of one process, whatever the split.

Not bit for bit: a sum over two processes is added up in another order. Within 1e-6 of each loss over the ten steps
here in float32; a wrong weight of one share, or a mean instead of a sum, is off by percents.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import parallel_run

from phial.errors import PhialError
from phial.train.metrics import read_metrics
from phial.train.parallel import torchrun_processes
from phial.train.processes import OneProcess

TEN: dict[str, Any] = {"steps": 10, "checkpoint_every": 5, "keep": 9}


def torchrun(processes: int, *runs: dict[str, Any], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs one after the other in `processes` processes on this machine, with gloo."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, parallel_run.__file__, json.dumps(runs)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def alone(**settings: Any) -> None:
    torch.set_num_threads(1)
    parallel_run.run(OneProcess(), **settings)


def column(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl")]


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    assert column(one, "count") == column(other, "count")
    assert len(column(one)) == 10
    assert column(other) == pytest.approx(column(one), rel=tolerance)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=100 * tolerance)


def halfway(folder: Path, copy: Path) -> Path:
    """A copy of a run of ten steps that has only its fifth's checkpoint."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "00000010")
    return copy


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    alone(folder=str(folder), **TEN)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    result = torchrun(2, {"folder": str(folder), **TEN})
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_have_the_losses_of_one(one: Path, two: Path) -> None:
    """With several micro-batches a step, unevenly shared, unevenly counted, some steps having one for two."""
    assert_same_losses(one, two)
    assert column(one)[0] == pytest.approx(4.16, abs=0.1) and column(one)[9] < 3.9  # something was learned


def test_what_two_saved_one_goes_on_with(one: Path, two: Path, tmp_path: Path) -> None:
    folder = halfway(two, tmp_path / "run")
    alone(folder=str(folder), **TEN)
    assert_same_losses(one, folder)
    assert column(folder)[:5] == column(two)[:5]


def test_an_environment_that_is_not_whole_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(PhialError, match="WORLD_SIZE is set, but RANK, .*MASTER_PORT not"), torchrun_processes():
        pass


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun_processes() as processes:
        assert isinstance(processes, OneProcess)
