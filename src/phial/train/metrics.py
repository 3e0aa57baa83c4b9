"""metrics.jsonl: one row a step, cut back to the step that a run resumes from."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

METRICS = "metrics.jsonl"


class Metrics:
    """The rows of a run, flushed one by one. Numbers that are none are written as null.

    Args:
        path: None: nothing is kept, for processes beside the first.
        step: rows after it are dropped, and a last line that was cut.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self.last: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is not None:
            self._open(path, step)

    def _open(self, path: Path, step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        os.replace(partial, path)
        if kept:
            self.last = kept[-1]
        self._file = open(path, "a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        self.last = row
        if self._file is None:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; none where there is no file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that was being written when the process was killed
            break
    return rows
