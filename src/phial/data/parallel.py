"""The same function over many jobs, in this process or several; results in the order of the jobs, whoever ran them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from phial.data.progress import bar
from phial.errors import ArgumentError

Job = TypeVar("Job")
Result = TypeVar("Result")
Item = TypeVar("Item")


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str) -> list[Result]:
    """Results of function(job), in order. Processes are spawned: a fork would copy the tokenizer's threads badly.

    Raises:
        ArgumentError: fewer than one worker. Whatever a job raises; jobs not yet begun are then left out.
    """
    if workers < 1:
        raise ArgumentError(f"workers is {workers}", "use 1 or more")
    with bar(label, len(jobs)) as show:
        if workers == 1 or len(jobs) < 2:
            return list(_shown(map(function, jobs), show))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            futures = [pool.submit(function, job) for job in jobs]
            try:
                for future in _shown(as_completed(futures), show):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]


def _shown(done: Iterable[Item], show: Callable[[int], None] | None) -> Iterator[Item]:
    """The same, each counted as it comes."""
    for number, item in enumerate(done, 1):
        if show is not None:
            show(number)
        yield item
