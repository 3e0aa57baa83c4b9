"""What a pull tells the person at the terminal: lines and one progress bar, on stderr only.

Where stderr is no terminal the bar is left out and the lines remain; a silent one writes nothing at all.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


class Progress:
    """Lines and bars on stderr, or nothing where `shown` is False."""

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown

    def say(self, line: str) -> None:
        """One line on stderr."""
        if self.shown:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar over `total` bytes; yields a function that takes the bytes done so far."""
        if not (self.shown and sys.stderr.isatty()):
            yield lambda done: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        title_column = TextColumn("{task.description}", markup=False)
        columns = (title_column, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)


def human(n_bytes: int) -> str:
    """A size for people: `98.4 MB`."""
    value, unit = float(n_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n_bytes} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
