"""What a run leaves and shows of each step: a row, a bar, a picture; the first of the processes does it alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from phial.train.flops import flops_per_token, peak_flops
from phial.train.metrics import METRICS, Metrics, Row
from phial.train.objective import Batch
from phial.train.pictures import Pictures
from phial.train.processes import Processes
from phial.train.progress import Progress
from phial.train.state import TrainState

if TYPE_CHECKING:
    from phial.train.loop import LoopConfig


class Log:
    """To be entered; then add() takes the row of each step. quiet: metrics only."""

    def __init__(
        self, folder: Path, state: TrainState, config: LoopConfig, processes: Processes, *, quiet: bool
    ) -> None:
        self.folder, self.state, self.config, self.processes = folder, state, config, processes
        self.last: Row = {}
        self._new = False
        self._metrics: Metrics | None = None
        shown = not quiet and processes.rank == 0
        self._progress = Progress(config.steps, state.step, config.log_every) if shown else None
        self._pictures = Pictures(folder) if shown else None
        self._stack = ExitStack()

    def __enter__(self) -> Log:
        if self.processes.rank == 0:
            self._metrics = self._stack.enter_context(Metrics(self.folder / METRICS, self.state.step))
            self.last = self._metrics.last
        if self._progress is not None:
            if self.state.step:
                print(f"{self.folder}: {self.state.step} steps are done", file=sys.stderr)
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stack.close()
        if self._pictures is not None and kind is None and self._new:
            self._pictures.draw()

    def add(self, row: Row, pieces: Sequence[Batch]) -> None:
        """A step over those micro-batches is done."""
        self.last, self._new = row, True
        if self._metrics is not None:
            self._metrics.add(row)
        if self._progress is not None:
            if self._progress.flops_share is None:
                self._progress.flops_share = self._flops_share(pieces)
            self._progress.show(row)
        if self._pictures is not None:
            self._pictures.step()

    def _flops_share(self, pieces: Sequence[Batch]) -> float:
        """MFU at one token per second; 0 where it is not known."""
        model = self.state.model
        peak = peak_flops(next(model.parameters()).device, self.config.precision)
        if peak is None or not pieces or "tokens" not in pieces[0]:
            return 0.0
        return flops_per_token(model, pieces[0]["tokens"].shape[-1]) / (peak * self.processes.world)
