"""Checkpoints: folders of torch.distributed.checkpoint files that are whole or do not count.

    checkpoints/00000200/__0_0.distcp, .metadata   the tensors, by parameter name
    checkpoints/00000200/checkpoint.json           the counters, and the sha256 of every other file

Written beside the training from a copy of the state, into NAME.partial, which is renamed once everything is on disk.
The newest whole one is resumed from, on any number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from phial.errors import PhialError
from phial.manifest import sha256_of, write_json
from phial.train.processes import Processes
from phial.train.state import TrainState, snapshot

SUMMARY = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run. close() waits for the one being written.

    Args:
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int, processes: Processes) -> None:
        self.folder, self.keep, self.processes = folder, keep, processes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self.newest: int | None = None

    def save(self, state: TrainState) -> None:
        """Begin to write the state; the training may go on at once. Waits for the one before, whose error it raises."""
        self.wait()
        counters = {name: getattr(state, name) for name in state.counters}
        self._writing = self._thread.submit(self._write, snapshot(state.tensors()), counters)

    def wait(self) -> None:
        """Until nothing is being written. Raises PhialError where it could not be."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except CheckpointException as error:  # its own text is a traceback of every process
            cause, _ = next(iter(error.failures.values()))
            raise self._unwritable(cause) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: BaseException) -> PhialError:
        return PhialError(f"no checkpoint can be written to {self.folder}: {error}", "free space there")

    def close(self) -> None:
        """wait(), and let the thread go."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, tensors: dict[str, Any], counters: dict[str, int]) -> None:
        final = self.folder / f"{counters['step']:08d}"
        partial = final.with_name(final.name + ".partial")
        if self.processes.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.processes.checkpoint_barrier()
        _quietly(save, tensors, partial, self.processes)
        if self.processes.rank == 0:
            write_json(partial / SUMMARY, {**counters, "files": {p.name: sha256_of(p) for p in _files(partial)}})
            for path in (partial / SUMMARY, partial):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _sync(self.folder)
            self._remove_others(counters["step"])
        self.processes.checkpoint_barrier()  # nobody ends before it has its name
        self.newest = counters["step"]

    def _remove_others(self, step: int) -> None:
        """All but the newest up to a step; later ones are damaged, or the run would have gone on from them."""
        kept = [path for path in _folders(self.folder) if int(path.name) <= step][-self.keep :]
        for path in _folders(self.folder):
            if path not in kept:
                shutil.rmtree(path)

    def restore(self, state: TrainState, start: Path | None = None) -> None:
        """Bring the state to the newest whole checkpoint; where there is none, to `start`. Damaged ones are named.

        Args:
            start: a checkpoint of another run; None: leave the state as it is.

        Raises PhialError where there are checkpoints and none is whole.
        """
        found = _folders(self.folder) or ([] if start is None else [start])
        for path in reversed(found):
            problem = damage(path) if self.processes.rank == 0 else ""
            if not any(self.processes.sums([bool(problem)])):
                return self._load(state, path)
            if problem:
                print(f"{path}: {problem}; it is not used", file=sys.stderr)
        if found:
            raise PhialError(
                f"no checkpoint of {found[0].parent} is whole", f"remove {found[0].parent} to start afresh"
            )

    def _load(self, state: TrainState, path: Path) -> None:
        summary = json.loads((path / SUMMARY).read_text("utf-8"))
        tensors = state.tensors()
        _quietly(load, tensors, path, self.processes)
        state.load(tensors, summary)
        self.newest = state.step


def damage(path: Path) -> str:
    """What is wrong with a checkpoint's folder, or "" where every byte is as it was written."""
    try:
        summary = json.loads((path / SUMMARY).read_text("utf-8"))
        expected = summary["files"]
        for name, digest in expected.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256_of(path / name) != digest:
                return f"{name} was altered or cut short"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SUMMARY} cannot be read ({error})"
    return ""


def _quietly(call: Any, tensors: dict[str, Any], path: Path, processes: Processes) -> None:
    """DCP's save or load, without the warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        alone = processes.world == 1
        call(tensors, checkpoint_id=path, process_group=processes.checkpoint_group, no_dist=alone)


def _folders(folder: Path) -> list[Path]:
    """Of checkpoints, the oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
