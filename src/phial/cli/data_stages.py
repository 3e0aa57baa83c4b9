"""What the commands of `phial data` share: the check for the extra, and the table of a stage's counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phial.cli import console
from phial.cli.extras import require
from phial.errors import ArgumentError


def require_data() -> None:
    """Raises PhialError where the libraries of the data extra are not installed."""
    require("data", "prepare data")


def named_files(told: str) -> tuple[str, str]:
    """The two parts of --benchmark NAME=FILES. Raises ArgumentError."""
    name, _, files = told.partition("=")
    if not name or not files:
        raise ArgumentError(f"--benchmark {told}", "give NAME=FILES, such as gsm8k=bench/gsm8k/*.jsonl")
    return name, files


def show_stages(stages: Sequence[dict[str, Any]]) -> None:
    """A row a stage: documents in, kept, and the reasons most were dropped for."""
    rows = []
    for stage in stages:
        reasons = sorted(stage["dropped"].items(), key=lambda item: (-item[1], item[0]))
        most = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:3])
        rows.append([stage["name"], f"{stage['documents_in']:,}", f"{stage['kept']:,}", most])
    console.write_table(["stage", "in", "kept", "dropped for"], rows, right=["in", "kept"])
