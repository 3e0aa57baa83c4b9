"""A run that was killed and goes on is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import counting
from tests.train.counting import run

from phial.errors import PhialError
from phial.train import record
from phial.train.metrics import read_metrics

TIMES = {"seconds", "tokens_per_second"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run apart from the clock's."""
    found = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def tensors(folder: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint, by name."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    newest = max((folder / "checkpoints").glob("[0-9]*"))
    dcp_to_torch_save(newest, folder / "whole.pt")
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, (dict, list)):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(inner, f"{name}/{key}")
        else:
            flat[name] = value

    walk(torch.load(folder / "whole.pt", weights_only=False), newest.name)
    return flat


def assert_same_run(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    moments = [name for name in one if name.endswith("exp_avg")]
    assert moments and any("/average/" in name for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name], name


def started(folder: Path, after: int, **config: Any) -> subprocess.Popen[str]:
    """A run in a process of its own, once it has written so many rows."""
    command = [sys.executable, counting.__file__, str(folder), json.dumps(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(read_metrics(folder / "metrics.jsonl")) < after:
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.002)
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after ten steps; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    _stopped(folder, 10)
    return folder


class Dead(counting.Phases):
    """Data that end the process, as it were, before a step is done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Any:
        if step == self.step:
            raise ProcessLookupError
        return super().micro_batches(step, rank, world)


def _stopped(folder: Path, step: int, **config: Any) -> None:
    """A run that has just done `step` steps, as if it had been killed there."""
    with pytest.raises(ProcessLookupError):
        run(folder, data=Dead(step), **config)


def test_a_killed_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """In an epoch's middle, before or after the second phase begins, with accumulation, dropout and an average."""
    with started(tmp_path / "killed", after=random.randrange(4, 12), delay=0.05, workers=2) as process:
        time.sleep(random.random() * 0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    again = run(tmp_path / "killed", workers=0)
    assert_same_run(whole, tmp_path / "killed")
    for a, b in zip(run(whole).parameters(), again.parameters(), strict=True):  # which only loads the finished run
        assert torch.equal(a, b)


def test_muon_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """And AdamW beside it, for what is no matrix of a layer."""
    run(tmp_path / "whole", optimizer={"kind": "muon"})
    _stopped(tmp_path / "stopped", 10, optimizer={"kind": "muon"})
    run(tmp_path / "stopped", optimizer={"kind": "muon"})
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert any(name.endswith("/momentum_buffer") for name in tensors(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["shorter", "altered", "missing", "no summary"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    damage: str, whole: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "hurt")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000006", "00000009"]
    newest = folder / "checkpoints" / "00000009"
    file = newest / ("checkpoint.json" if damage == "no summary" else "__0_0.distcp")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "altered" else data[:-1] if damage == "shorter" else b"")
    if damage == "missing":
        file.unlink()
    run(folder)
    assert f"{newest}: {file.name} " in capsys.readouterr().err
    assert_same_run(whole, folder)


def test_a_damaged_checkpoint_does_not_count_among_those_that_stay(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "hurt")
    (folder / "checkpoints" / "00000009" / "checkpoint.json").unlink()
    with pytest.raises(ProcessLookupError):
        run(folder, data=Dead(7), checkpoint_every=1)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000006", "00000007"]


def test_checkpoints_that_are_all_damaged_are_an_error(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "hurt")
    for path in (folder / "checkpoints").iterdir():
        (path / "checkpoint.json").write_text("{}")
    with pytest.raises(PhialError, match="no checkpoint of .* is whole"):
        run(folder)


def test_a_run_goes_on_only_with_its_own_configuration(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "changed")
    with pytest.raises(PhialError, match=r"has loop\.optimizer\.lr = 0\.001, not 0\.002"):
        run(folder, optimizer={"lr": 2e-3})
    run(folder, log_every=3)  # on which no weight depends
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    assert len(starts) == 2 and all(start["versions"]["torch"] == torch.__version__ for start in starts)


def test_checkpoints_without_a_manifest_are_nobodys(stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "orphan")
    (folder / "manifest.json").unlink()
    with pytest.raises(PhialError, match="has checkpoints and no manifest"):
        run(folder)


@pytest.mark.parametrize("name", ["model/config.json", "adapter/adapter_config.json", "data.json", "metrics.jsonl"])
def test_what_no_run_has_written_is_not_written_over(name: str, tmp_path: Path) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(PhialError, match=f"has {name.partition('/')[0]} and no manifest"):
        run(tmp_path)
    assert mine.read_text() == "mine" and not (tmp_path / "manifest.json").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PATIENCE", 0.1)
    with record.locked(tmp_path), pytest.raises(PhialError, match="another run trains in"):
        run(tmp_path)


def test_a_finished_run_is_loaded_not_repeated(tmp_path: Path) -> None:
    model = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = run(tmp_path, data=object())  # which has no step to give
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_saves_its_step_and_goes_on(
    name: str, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(counting.Phases):
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Any:
            if step == 4:
                os.kill(os.getpid(), signal.Signals[name])
            return super().micro_batches(step, rank, world)

    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=Interrupted())
    err = capfd.readouterr().err
    assert f"{name}: the step is finished and saved" in err and "saved after step 4;" in err
    assert (tmp_path / "checkpoints" / "00000004" / "checkpoint.json").exists()
    assert signal.getsignal(signal.Signals[name]) is before
    run(tmp_path)
    assert_same_run(whole, tmp_path)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    class Twice(counting.Phases):
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Any:
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("went on")
            return super().micro_batches(step, rank, world)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=Twice())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(whole: Path, tmp_path: Path) -> None:
    """Which reaches the processes that read ahead as well."""
    with started(tmp_path, after=4, delay=0.2, workers=2) as process:
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read() if process.stderr else ""
    assert process.returncode == -signal.SIGINT  # as Python ends on KeyboardInterrupt
    assert f"saved after step {rows(tmp_path)[-1]['step']};" in err
    run(tmp_path)
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(seed: int, whole: Path, tmp_path: Path) -> None:
    """At random moments, among them those when a checkpoint is being written; other readers each time."""
    chance = random.Random(seed)
    for _ in range(4):
        workers = chance.randrange(3)
        with started(tmp_path, after=0, delay=0.02, workers=workers, checkpoint_every=1) as process:
            time.sleep(1.5 + 3 * chance.random())  # of which importing takes a part
            process.kill()
    run(tmp_path)
    assert_same_run(whole, tmp_path)
