"""The same function over many jobs, in this process or several; results in the order of the jobs, whoever ran them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from phial.errors import ArgumentError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str) -> list[Result]:
    """Results of function(job), in order. Processes are spawned: a fork would copy the tokenizer's threads badly.

    Raises:
        ArgumentError: fewer than one worker. Whatever a job raises; jobs not yet begun are then left out.
    """
    if workers < 1:
        raise ArgumentError(f"workers is {workers}", "use 1 or more")
    with _bar(label, len(jobs)) as advance:
        if workers == 1 or len(jobs) < 2:
            return [advance(function(job)) for job in jobs]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            futures = [pool.submit(function, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    advance(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[Result], Result]]:
    """A function that moves the bar on stderr by one and gives its argument back; no bar where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda result: result
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)

        def advance(result: Result) -> Result:
            progress.advance(task)
            return result

        yield advance
