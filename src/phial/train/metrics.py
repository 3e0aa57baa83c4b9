"""metrics.jsonl: one row a step, cut back to the step that a run resumes from."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from phial.errors import PhialError

METRICS = "metrics.jsonl"
Row = dict[str, Any]


class Metrics:
    """The rows of a run, flushed one by one. Numbers that are none are written as null.

    Args:
        step: rows after it are dropped, and a last line that was cut.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        os.replace(partial, path)
        self.last: Row = kept[-1] if kept else {}
        self._file = open(path, "a", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Write a row."""
        self.last = row
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """The whole rows of a metrics file; none where there is no file.

    Raises PhialError for what is no row, but for a last line that was being written when the process was killed.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise PhialError(f"{path} is damaged in line {number}", "remove it, or that line") from error
        rows.append(row)
    return rows
