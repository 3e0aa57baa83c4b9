"""How far a long job is, on stderr: a bar where that is a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from phial.cli import console

Show = Callable[[int, str], None]  # called with how much is done and what to say of it
_LINES = 10


@contextlib.contextmanager
def progress(first: str, total: int, *, counted: bool = True, each: bool = False) -> Iterator[Show]:
    """Yield what shows that `done` of `total` is done.

    Args:
        first: what to say until the first call.
        counted: on a terminal show both numbers; else the percentage.
        each: without a terminal write a line for each call, not only for every tenth of the job.
    """
    if not sys.stderr.isatty():
        said = 0

        def line(done: int, text: str) -> None:
            nonlocal said
            if each or done * _LINES // max(total, 1) > said:
                said = done * _LINES // max(total, 1)
                console.note(text if counted else f"{100 * done // max(total, 1):3} % {text}")

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = MofNCompleteColumn() if counted else TaskProgressColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(first, total=total)
        yield lambda done, text: bars.update(task, completed=done, description=console.one_line(text))
