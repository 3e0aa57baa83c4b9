"""Running a stage on datatrove's executors: on this machine, on Ray or on Slurm, with the same files at the end.

The number of tasks belongs to the configuration and says how the corpus is cut; the number of workers only says how
many tasks run at a time. A stage whose record (inputs, configuration, versions) is that of its folder is not run again;
one that was killed goes on with the tasks that are not finished; one whose record differs starts anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datatrove.pipeline.base import PipelineStep

from phial.data import slurm
from phial.data.progress import bar
from phial.data.stage import STAGE, output_digest, summary, with_writers
from phial.errors import ArgumentError, PhialError
from phial.manifest import hash_file, write_json

Executor = Literal["local", "ray", "slurm"]
_RECORD = "record.json"  # of the run under way


class Phase(NamedTuple):
    """One datatrove pipeline of a stage: `tasks` tasks of these steps; what comes out is the stage's if it `writes`."""

    name: str
    steps: Sequence[PipelineStep]
    tasks: int
    reads: bool = True
    writes: bool = True


class Machines(NamedTuple):
    """Where tasks run, and how many at a time; nothing here changes what comes out."""

    executor: Executor = "local"
    workers: int = 1
    slurm: Mapping[str, Any] = {}  # time, partition, qos, ... of SlurmPipelineExecutor


HERE = Machines()


def run_stage(
    folder: Path,
    name: str,
    phases: Sequence[Phase],
    reader: PipelineStep,
    *,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    machines: Machines = HERE,
) -> dict[str, Any]:
    """Run the phases of a stage one after the other into `folder`; the contents of its stage.json.

    Args:
        reader: the first step of every phase that reads the corpus; cut by rank and number of tasks.
        inputs: name and digest of everything that goes in, so that a stage runs again when one changes.
        config: the stage's settings, as JSON.

    Raises:
        PhialError: a task failed (with its error), or Slurm has the tasks and they are not done yet.
    """
    record = _record(name, inputs, config)
    done = _finished(folder, record)
    if done is not None:
        return done
    if _read(folder / _RECORD) != record or (folder / STAGE).exists():  # of other inputs, or with altered files
        if folder.exists():
            _clear(folder)
        write_json(folder / _RECORD, record)
    start = time.monotonic()
    for phase in phases:
        steps = list(phase.steps)
        if phase.reads:
            steps = [reader, *steps]
        _execute(
            with_writers(steps, folder) if phase.writes else steps, phase, folder / "logs" / phase.name, name, machines
        )
    result = {"name": name, **summary(folder), "seconds": round(time.monotonic() - start, 3), "config": dict(config)}
    write_json(folder / STAGE, {**result, "record": record})
    return result


def _record(name: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: version(name) for name in ("phial", "datatrove")}
    return {"name": name, "inputs": dict(inputs), "config": json.loads(json.dumps(config)), "versions": versions}


def _finished(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    found = _read(folder / STAGE)
    if not isinstance(found, dict) or found.pop("record", None) != record:
        return None
    return found if output_digest(folder) == found["output_sha256"] else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _clear(folder: Path) -> None:
    """Remove a stage's own files; a folder that is anything else stays, and is an error."""
    ours = {"kept", "dropped", "counts", "logs", "work", STAGE, _RECORD}
    other = sorted(path.name for path in folder.iterdir() if path.name.removesuffix(".partial") not in ours)
    if other:
        raise PhialError(f"{folder} holds other things than a stage: {', '.join(other[:3])}", "choose another folder")
    shutil.rmtree(folder)


def _execute(steps: list[PipelineStep], phase: Phase, logs: Path, name: str, machines: Machines) -> None:
    executor = _executor(steps, phase.tasks, logs, name, machines)
    if machines.executor == "slurm":
        slurm.refuse_twice(logs, f"{name}, {phase.name}")
    with _progress(f"{name}: {phase.name}", phase.tasks, logs):
        try:
            executor.run()
        except PhialError:
            raise
        except KeyboardInterrupt:
            raise
        except Exception as error:
            raise PhialError(
                f"{name}, {phase.name}: {type(error).__name__}: {error}", f"the whole story is in {logs}"
            ) from error
    missing = [rank for rank in range(phase.tasks) if not executor.is_rank_completed(rank)]
    if missing and machines.executor == "slurm":
        slurm.remember(logs, str(executor.job_id))
        raise slurm.waiting(f"{name}, {phase.name}", f"{len(missing)} of {phase.tasks} tasks")
    if missing:
        raise PhialError(f"{name}, {phase.name}: tasks {missing[:5]} did not finish", f"see {logs}, then run it again")


def _executor(steps: list[PipelineStep], tasks: int, logs: Path, name: str, machines: Machines) -> Any:
    workers = max(1, min(machines.workers, tasks))
    if machines.executor == "local":
        from datatrove.executor import LocalPipelineExecutor

        return LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(logs))
    if machines.executor == "ray":
        try:
            from datatrove.executor import RayPipelineExecutor
        except ImportError as error:
            raise PhialError("Ray is not installed", "pip install ray") from error
        return RayPipelineExecutor(
            steps, tasks=tasks, workers=workers, mem_per_cpu_gb=1, cpus_per_task=1, logging_dir=str(logs)
        )
    if machines.executor == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        settings = {"time": "04:00:00", "partition": "cpu", "env_command": slurm.environment(), **machines.slurm}
        return SlurmPipelineExecutor(
            steps, tasks=tasks, workers=workers, logging_dir=str(logs), job_name=name, **settings
        )
    raise ArgumentError(f"executor is {machines.executor!r}", "use local, ray or slurm")


@contextmanager
def _progress(label: str, tasks: int, logs: Path) -> Iterator[None]:
    """A bar moved by the tasks that are finished, in whatever process."""
    with bar(label, tasks) as show:
        if show is None:
            yield
            return
        over = threading.Event()

        def count() -> None:
            show(len(list((logs / "completions").glob("*"))))

        def watch() -> None:
            while not over.wait(0.2):
                count()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            count()


def digest_of(files: Sequence[Path]) -> str:
    """sha256 over names, sizes and contents of files, in order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        hash_file(path, digest)
    return digest.hexdigest()
