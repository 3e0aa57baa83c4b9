"""Data as a function of the step: what resumes at step n needs nothing but n, whatever read ahead before."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from phial.train.objective import Batch


class Batches(Protocol):
    """The data of a run."""

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
        """Process `rank`'s share of a step's batch, in pieces that are run one after the other.

        The same for the same step, always; all ranks together have the whole batch once.
        """
        ...


class _Steps(Dataset[Sequence[Batch]]):
    def __init__(self, data: Batches, rank: int, world: int) -> None:
        self._data, self._rank, self._world = data, rank, world

    def __getitem__(self, step: int) -> Sequence[Batch]:
        return self._data.micro_batches(step, self._rank, self._world)


def read_ahead(
    data: Batches, steps: range, *, workers: int = 0, rank: int = 0, world: int = 1
) -> Generator[Sequence[Batch], None, None]:
    """The micro-batches of each step in order, made by `workers` processes beside this one; 0: by this one.

    To be closed: then the processes end.
    """
    loader = DataLoader(
        _Steps(data, rank, world),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_leave_signals,
    )
    yield from loader


def _leave_signals(worker: int) -> None:
    """Ctrl-C is for the process that trains, which still wants a step of data; SIGTERM ends a worker as ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
