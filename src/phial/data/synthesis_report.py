"""What a synthesis leaves: files of documents, under their names only when complete; costs and drops counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from phial.data.document import SUFFIX, Document, DocumentFile
from phial.data.stage import STAGE, Counted, summary
from phial.language_model import Reply
from phial.manifest import write_json


class Tally:
    """Counts and costs, by kind. Tokens and seconds are the journal's: those of all runs that it took, together."""

    def __init__(self) -> None:
        self._dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: dict[str, float] = defaultdict(float)
        self.kept = 0

    def add(self, kind: str, reason: str, reply: Reply, seconds: float) -> None:
        """Count one answer; `reason` is "" where it was kept."""
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

    def report(
        self, config: dict[str, Any], teacher: str, decontaminated: bool, near_duplicate: float
    ) -> dict[str, Any]:
        """What stage.json says beside what every stage's says."""
        total = sum(self._sums.values(), Counter[str]())
        return {
            "name": "synthesize",
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
    """The documents kept and dropped, as a stage's folder has them; under temporary names until `finish`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {name: DocumentFile(folder / name / ("00000" + SUFFIX)) for name in ("kept", "dropped")}
        self._counts = {name: Counted() for name in self._files}

    def add(self, document: Document, reason: str) -> None:
        """Write a document, to the dropped ones where there is a reason."""
        name = "dropped" if reason else "kept"
        self._files[name].write(document)
        self._counts[name].add(document, reason)

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Give the files their names and write stage.json, last; returns what it says."""
        stage = self._folder / STAGE
        stage.unlink(missing_ok=True)  # of a run before; a kill from here on leaves no mixed stage
        for name, file in self._files.items():
            file.close()
            self._counts[name].write(self._folder / "counts" / f"{name}-00000.json")
        report = report | summary(self._folder)
        write_json(stage, report)
        return report
