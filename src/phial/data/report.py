"""The report of a run: one HTML page with what came in, what was dropped where and why, and what the rest looks like.

Counts come from the stages' own records (stage.json), distributions and examples from one pass over the documents; see
`report_counts` for its memory. The page is the same for the same run, stands alone, and shows documents as text only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phial.data import report_sections as sections
from phial.data.report_counts import count_run, files_of
from phial.data.report_page import page
from phial.data.stage import STAGE
from phial.errors import FormatError, PhialError

Tick = Callable[[int, int], None]


def write_report(run: Path, output: Path | None = None, tick: Tick = lambda done, of: None) -> Path:
    """Write the report of a run folder; its path, `run`/report.html where `output` is None.

    Args:
        tick: called with files read and files in all.

    Raises:
        PhialError: the folder holds no finished stage.
        FormatError: a stage's record or a file of documents is damaged.
    """
    stages = read_stages(run)
    readable = [folder for folder, _ in stages if (folder / "kept").is_dir()]
    in_all = files_of(readable)
    done = iter(range(1, in_all + 1))
    counts = count_run(readable, lambda: tick(next(done), in_all))
    records = [record for _, record in stages]
    made = [
        sections.overview(records, counts),
        sections.funnel(records),
        sections.by_source(records),
        sections.scores(counts),
        sections.thresholds(counts),
        sections.shapes(counts),
        sections.duplicates(records, counts),
        sections.contamination(records, counts),
        sections.phases(run),
        sections.dropped(records, counts),
    ]
    names = ", ".join(record["name"] for record in records)
    text = page(f"Data report: {run.resolve().name}", f"Stages: {names}", [section for section in made if section])
    output = output or run / "report.html"
    partial = output.with_name(output.name + ".partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, output)
    return output


def read_stages(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The finished stages of a run in their order, each with its record. Raises as `write_report` does."""
    if not run.is_dir():
        raise PhialError(f"there is no folder {run}", "name a run folder, as phial data run made it")
    found = [(path.parent, _record(path)) for path in _records(run)]
    if not found:
        raise PhialError(f"{run} holds no finished stage", "run phial data run first, or name the run folder itself")
    return found


def _records(run: Path) -> Iterator[Path]:
    """Of the stages that documents pass through; a mixture makes tokens of them."""
    yield from (path for path in sorted(run.glob(f"[0-9][0-9]-*/{STAGE}")) if not path.parent.name.endswith("-mix"))


def _record(path: Path) -> dict[str, Any]:
    hint = "remove the stage's folder and run it again"
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}", hint) from error
    if not isinstance(record, dict) or not {"name", "documents_in", "kept", "dropped", "by_source"} <= record.keys():
        raise FormatError(f"{path} is no record of a stage", hint)
    return record
