"""Ray and Slurm write the files that this machine alone writes; Slurm is not sent the same tasks twice."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.data.test_pipeline import stage
from tests.data.test_resume import outputs, write_corpus

from phial.data.run import run_all
from phial.errors import PhialError

SBATCH = """#!/bin/bash
echo sent >> {folder}/sent
for script; do :; done
[ -e {folder}/busy ] || if grep -q launch_pickled "$script"; then
  for task in 0 1 2 3; do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 PYTHONPATH={root} bash "$script" >> {folder}/log 2>&1
  done
fi
echo Submitted batch job 17
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""
SQUEUE = """#!/bin/bash
[ ! -e {folder}/busy ] || echo 17 cpu numbers
"""
SCONTROL = """#!/bin/bash
echo localhost
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs with Slurm's names that run tasks at once, unless the file `busy` is there."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        root = Path(__file__).parents[2]
        (folder / name).write_text(text.replace("{folder}", str(folder)).replace("{root}", f"{root}:{root}/src"))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_writes_the_same_files_and_is_sent_its_tasks_once(tmp_path: Path, cluster: Path) -> None:
    (cluster / "busy").touch()
    for said in ("4 of 4 tasks are with Slurm", "the tasks of job 17 are with Slurm"):
        with pytest.raises(PhialError, match=said):
            stage(tmp_path / "s", executor="slurm", workers=2)
        assert len((cluster / "sent").read_text().split()) == 2  # the tasks, and the sum of their statistics
    (cluster / "busy").unlink()
    result = stage(tmp_path / "s", executor="slurm", workers=2)
    assert result["output_sha256"] == stage(tmp_path / "local")["output_sha256"]


def test_a_machine_without_slurm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhialError, match="Slurm is not installed"):
        stage(tmp_path / "s", executor="slurm")


@pytest.mark.slow
def test_a_whole_run_on_ray_writes_the_same_files(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    config = write_corpus(tmp_path, documents=60, words=200)
    local = run_all(config, tmp_path / "local")
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": f"{root}:{root}/src"}})
    try:
        remote = run_all(config, tmp_path / "ray", workers=2, executor="ray")
    finally:
        ray.shutdown()
    assert [result["output_sha256"] for result in remote[:5]] == [result["output_sha256"] for result in local[:5]]
    assert remote[5] == local[5]
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
