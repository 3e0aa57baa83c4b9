"""Processes started by the real torchrun give the losses of one process, whatever the split.

Not bit for bit: a sum over two processes is added up in another order. Within 1e-6 of each loss over the ten steps
here in float32; a wrong weight of one share, or a mean instead of a sum, is off by percents.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import parallel_run

from phial.errors import PhialError
from phial.train.metrics import read_metrics
from phial.train.parallel import torchrun_processes
from phial.train.processes import OneProcess

TEN: dict[str, Any] = {"steps": 10, "checkpoint_every": 5, "keep": 9, "evaluate_every": 3}


def torchrun(processes: int, *runs: Any, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Runs one after the other in `processes` processes on this machine, with gloo."""
    with started(processes, *runs) as process:
        out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def started(processes: int, *runs: Any) -> Iterator[subprocess.Popen[str]]:
    """torchrun at work; whatever it still has is killed at the end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, parallel_run.__file__, json.dumps(runs)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # upon which torchrun ends its processes


def alone(**settings: Any) -> None:
    torch.set_num_threads(1)
    parallel_run.run(OneProcess(), **settings)


def launched(processes: int, *runs: dict[str, Any]) -> None:
    """torchrun(), or the runs in this process, where one is asked for."""
    if processes == 1:
        for run in runs:
            alone(**run)
        return
    result = torchrun(processes, *runs)
    assert result.returncode == 0, result.stderr


def column(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl")]


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    assert column(one, "count") == column(other, "count")
    assert len(column(one)) == 10
    assert column(other) == pytest.approx(column(one), rel=tolerance)
    measured = [row["validation/loss"] for row in read_metrics(one / "metrics.jsonl") if "validation/loss" in row]
    again = [row["validation/loss"] for row in read_metrics(other / "metrics.jsonl") if "validation/loss" in row]
    assert len(measured) > 1 and again == pytest.approx(measured, rel=tolerance)
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
    launched(2, {"folder": str(folder), **TEN})
    return folder


def test_two_processes_have_the_losses_of_one(one: Path, two: Path) -> None:
    """With several micro-batches a step, unevenly shared, unevenly counted, some steps having one for two."""
    assert_same_losses(one, two)
    assert column(one)[0] == pytest.approx(4.16, abs=0.1) and column(one)[9] < 4.0  # something was learned


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_contrasts_reach_over_processes(processes: int, tmp_path: Path) -> None:
    """Negatives of all of them: a loss among each one's own texts alone would be far smaller."""
    settings = {**TEN, "contrast": True}
    alone(folder=str(tmp_path / "one"), **settings)
    launched(processes, {"folder": str(tmp_path / "many"), **settings})
    assert_same_losses(tmp_path / "one", tmp_path / "many")
    assert column(tmp_path / "many", "masked") == [0.0] * 10
    assert 0 < sum(column(tmp_path / "many", "accuracy")) < 10


def test_what_two_saved_one_goes_on_with(one: Path, two: Path, tmp_path: Path) -> None:
    folder = halfway(two, tmp_path / "run")
    alone(folder=str(folder), **TEN)
    assert_same_losses(one, folder)
    assert column(folder)[:5] == column(two)[:5]


@pytest.mark.slow
def test_adapters_learn_in_two_processes_as_in_one(tmp_path: Path) -> None:
    """Frozen weights are cut over processes too; the whole model comes together with what was learnt."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {**TEN, "lora": True, "ema": 0.9, "optimizer": {"lr": 0.003}}
    alone(folder=str(one), **settings)
    launched(2, {"folder": str(two), **settings})
    again = halfway(two, tmp_path / "again")
    launched(2, settings | {"folder": str(again)})
    assert column(again) == column(two)
    assert_same_losses(one, two, tolerance=1e-5)  # Adam makes much of A's first gradients, which are next to nothing
    alike, other = (torch.load(folder / "model.pt") for folder in (one, two))
    assert alike.keys() == other.keys() and any(".lora_A." in name for name in alike)
    for name, weight in alike.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-3)
        assert ".lora_B." not in name or weight.abs().max() > 0.005


def test_an_environment_that_is_not_whole_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(PhialError, match="WORLD_SIZE is set, but RANK, .*MASTER_PORT not"), torchrun_processes():
        pass


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun_processes() as processes:
        assert isinstance(processes, OneProcess)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 3), (4, 2), (3, 1)])
def test_a_run_goes_on_with_another_number_of_processes(first: int, then: int, one: Path, tmp_path: Path) -> None:
    settings = {**TEN, "ema": 0.9}
    whole = tmp_path / "whole"
    alone(folder=str(whole), **settings)
    launched(first, {"folder": str(tmp_path / "first"), **settings})
    folder = halfway(tmp_path / "first", tmp_path / "then")
    launched(then, {"folder": str(folder), **settings})
    assert_same_losses(whole, folder)
    assert (folder / "model.pt").is_file()
    ours, theirs = (torch.load(path / "model.pt") for path in (folder, whole))
    for name, weight in theirs.items():  # the averaged weights
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_every_way_to_train_has_the_losses_of_one_process(tmp_path: Path) -> None:
    """bfloat16 and Muon round in places that depend on the split, so they are held less tightly."""
    ways: dict[str, tuple[dict[str, Any], float]] = {
        "averaged": ({"ema": 0.9}, 1e-6),
        "recomputed": ({"recompute": True}, 1e-6),
        "bf16": ({"precision": "bf16"}, 1e-4),
        "muon": ({"optimizer": {"kind": "muon"}}, 1e-4),
    }
    runs = {way: {**TEN, **settings} for way, (settings, _) in ways.items()}
    launched(2, *({"folder": str(tmp_path / "two" / way), **run} for way, run in runs.items()))
    for way, run in runs.items():
        alone(folder=str(tmp_path / "one" / way), **run)
        assert_same_losses(tmp_path / "one" / way, tmp_path / "two" / way, ways[way][1])
        again = halfway(tmp_path / "two" / way, tmp_path / "again" / way)
        alone(folder=str(again), **run)
        assert_same_losses(tmp_path / "one" / way, again, ways[way][1])


@pytest.mark.slow
def test_copies_on_groups_of_processes_have_the_losses_of_one(one: Path, tmp_path: Path) -> None:
    """Two copies of two processes each; two processes with a copy each then go on."""
    launched(4, {"folder": str(tmp_path / "four"), "shards": 2, **TEN})
    assert_same_losses(one, tmp_path / "four")
    folder = halfway(tmp_path / "four", tmp_path / "run")
    launched(2, {"folder": str(folder), "shards": 1, **TEN})
    assert_same_losses(one, folder)


def test_shards_need_processes(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="shards is 2, but one process trains"):
        alone(folder=str(tmp_path), shards=2, **TEN)


@pytest.mark.slow
def test_muon_on_slices_is_muon_on_whole_matrices_bit_for_bit() -> None:
    """Slices of unequal size, or none, among them."""
    result = torchrun(3, "muon")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    result = torchrun(2, {"folder": str(tmp_path / "run"), "fails_on": 1, **TEN})
    assert result.returncode != 0
    assert "the disk of this process is gone" in result.stderr
    assert time.monotonic() - started < 240  # and not after TIMEOUT, nor never
    assert len(column(tmp_path / "run")) == 2


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds torchrun's processes in /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, two: Path, tmp_path: Path) -> None:
    """With as many processes: Ctrl-C lets all of them save the same step; after a kill the last checkpoint is used."""
    folder, settings = tmp_path / "run", {**TEN, "checkpoint_every": 2}
    with started(2, {"folder": str(folder), "delay": 0.3, **settings}) as process:
        while len(read_metrics(folder / "metrics.jsonl")) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        if name == "SIGKILL":
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(200) != 0
    done = len(column(folder))
    assert done < 10
    if name == "SIGINT":
        assert (folder / "checkpoints" / f"{done:08d}" / "checkpoint.json").exists()
    launched(2, {"folder": str(folder), **settings})
    assert column(folder) == column(two)


def children(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
