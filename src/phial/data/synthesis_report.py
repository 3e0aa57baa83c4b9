"""What a synthesis leaves: files of documents, under their names only when complete; costs and drops counted."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from phial.language_model import Reply

_LEVEL = 3  # of zstd; a fixed level and no content size keep the bytes the same everywhere
_FILES = {"kept": "kept/00000.jsonl.zst", "dropped": "dropped/00000.jsonl.zst"}


class Tally:
    """Counts and costs, by kind. Tokens and seconds are the journal's: those of all runs that it took, together."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: dict[str, float] = defaultdict(float)
        self.kept = 0

    def add(self, kind: str, reason: str, reply: Reply, seconds: float, size: int) -> None:
        """Count one answer; `size` in bytes, `reason` "" where it was kept."""
        sums = self._sums[kind]
        sums["requests"] += 1
        sums["tokens_in"] += reply.prompt_tokens
        sums["tokens_out"] += reply.completion_tokens
        self._seconds[kind] += seconds
        if reason:
            self._dropped[kind][reason] += 1
            return
        self.kept += 1
        sums["kept"] += 1
        sums["bytes_kept"] += size

    def report(
        self, config: dict[str, Any], teacher: str, decontaminated: bool, near_duplicate: float
    ) -> dict[str, Any]:
        """What stage.json says, but for the digest of the output."""
        total = sum(self._sums.values(), Counter[str]())
        dropped = dict(sorted(sum(self._dropped.values(), Counter[str]()).items()))
        counts = {"kept": self.kept, "dropped": dropped}
        by_source = {self._source: {"in": total["requests"], **counts, "bytes_kept": total["bytes_kept"]}}
        return {
            "name": "synthesize",
            "documents_in": total["requests"],
            **counts,
            "by_source": by_source,
            "by_kind": {kind: self._of_kind(kind) for kind in sorted(self._sums)},
            "seconds": round(sum(self._seconds.values()), 3),
            "tokens": {"in": total["tokens_in"], "out": total["tokens_out"]},
            "price": _price(config, total),
            "teacher": teacher,
            "decontaminated": decontaminated,
            "near_duplicate": near_duplicate,
            "config": config,
        }

    def _of_kind(self, kind: str) -> dict[str, Any]:
        sums = self._sums[kind]
        return {
            "requests": sums["requests"],
            "kept": sums["kept"],
            "acceptance": round(sums["kept"] / sums["requests"], 4),
            "dropped": dict(sorted(self._dropped[kind].items())),
            "tokens_in": sums["tokens_in"],
            "tokens_out": sums["tokens_out"],
            "seconds": round(self._seconds[kind], 3),
        }


def _price(config: dict[str, Any], total: Counter[str]) -> float | None:
    """What the tokens cost, in the currency of the prices; None where a price is not given."""
    if config["price_in"] is None or config["price_out"] is None:
        return None
    return float(total["tokens_in"] * config["price_in"] + total["tokens_out"] * config["price_out"]) / 1e6


class OutputFiles:
    """Two files of documents, kept and dropped, under temporary names until `finish`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        import zstandard

        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._stack = stack
        for name, file in _FILES.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            raw: BinaryIO = stack.enter_context(_partial(path).open("wb"))
            writer = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False)
            self._writers[name] = stack.enter_context(writer)

    def add(self, document: dict[str, Any], reason: str) -> None:
        """Write a document as one line, to the kept ones where the reason is empty."""
        line = json.dumps(document, sort_keys=True, ensure_ascii=False) + "\n"
        self._writers["dropped" if reason else "kept"].write(line.encode("utf-8", "backslashreplace"))

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Give the files their names and write stage.json; returns what it says."""
        self._stack.close()
        digest = hashlib.sha256()
        for file in _FILES.values():
            path = self._folder / file
            digest.update(_partial(path).read_bytes())
            os.replace(_partial(path), path)
        report = report | {"output_sha256": digest.hexdigest()}
        path = self._folder / "stage.json"
        _partial(path).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        os.replace(_partial(path), path)
        return report


@contextmanager
def write_output(folder: Path) -> Iterator[OutputFiles]:
    """The files of documents in a folder, closed at the end; without `finish` they leave no finished name."""
    with ExitStack() as stack:
        yield OutputFiles(folder, stack)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
