"""How far a run is, for a person, on stderr: a bar where that is a terminal, else a line now and then."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import ExitStack
from typing import Any

from phial.train.metrics import Row

_SPAN = 20  # steps that a figure is the mean of


class Progress:
    """Shows loss, tokens per second, MFU and the time left, means of the last steps. To be entered.

    Args:
        done: steps of `steps` that are done already.
        every: without a terminal a line each so many steps, and for each evaluation.

    Attributes:
        flops_share: MFU at one token per second, 0 where it is not known; to be set before the first step is shown.
    """

    def __init__(self, steps: int, done: int, every: int) -> None:
        self.steps, self.every = steps, every
        self.done = done
        self.flops_share: float | None = None
        self._recent: deque[Row] = deque(maxlen=_SPAN)
        self._bar: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = self._stack.enter_context(Bars(*columns, console=Console(stderr=True)))
            self._task = self._bar.add_task("", total=self.steps, completed=self.done)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def show(self, row: Row) -> None:
        """A step is done."""
        self._recent.append(row)
        self.done = row["step"]
        validation = _validation(row)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=self._text())
            if validation:
                self._bar.console.print(f"step {self.done}: {validation}", markup=False, highlight=False)
        elif validation or self.done % self.every == 0 or self.done == self.steps:
            line = f"step {self.done}/{self.steps}: {self._text()}" + (f"; {validation}" if validation else "")
            print(line, file=sys.stderr, flush=True)

    def _text(self) -> str:
        """The means over the last steps."""
        seconds = sum(row["seconds"] for row in self._recent) / len(self._recent)
        rate = sum(row["tokens_per_second"] * row["seconds"] for row in self._recent) / len(self._recent) / seconds
        parts = [f"loss {sum(row['loss'] for row in self._recent) / len(self._recent):.3f}"]
        parts += [f"{rate:,.0f} tokens/s"] if rate else []
        parts += [f"MFU {100 * rate * self.flops_share:.0f} %"] if self.flops_share and rate else []
        left = (self.steps - self.done) * seconds
        return ", ".join([*parts, f"{_duration(left)} left"] if left else parts)


def _validation(row: Row) -> str:
    """What an evaluation found, or "" where there was none."""
    found = {name: value for name, value in row.items() if name.startswith("validation")}
    losses = {name.removesuffix("/loss"): value for name, value in found.items() if name.endswith("/loss")} or found
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
