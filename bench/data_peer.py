"""Plain datatrove beside phial.data: the same filters and thresholds, the same MinHash, the same documents, one core.

Run as a program it is the peer's side, with an interpreter that has datatrove[processing] and spaCy:

python bench/data_peer.py theirs PART DOCUMENTS.jsonl FOLDER

compare() makes the documents from a finished run of bench/data.py and runs both sides, by turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PARTS = ("pages", "encoding", "heuristics", "minhash")


def documents(path: Path) -> list[Any]:
    from datatrove.data import Document

    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines() if line)
    return [Document(row["text"], row["id"], metadata={"source": row["source"]}) for row in rows]


def theirs(part: str, folder: Path) -> list[Callable[[Any], Iterator[Any]]]:
    """datatrove's steps as its own examples use them."""
    from datatrove.pipeline import filters
    from datatrove.pipeline.dedup import minhash

    if part == "pages":
        from datatrove.pipeline.extractors import Trafilatura

        return [Trafilatura(favour_precision=True, timeout=10).run]
    if part == "encoding":
        from datatrove.pipeline.formatters import FTFYFormatter

        return [FTFYFormatter().run]
    if part == "heuristics":
        c4 = filters.C4QualityFilter(filter_no_terminal_punct=False)
        steps = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter(), c4, filters.FineWebQualityFilter()]
        return [step.run for step in steps]
    config = minhash.MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=6)
    signatures, buckets, gone = folder / "signatures", folder / "buckets", folder / "gone"

    def whole(data: Any) -> Iterator[Any]:
        kept = list(data)
        minhash.MinhashDedupSignature(str(signatures), config).run(iter(kept), 0, 1)
        for bucket in range(20):
            minhash.MinhashDedupBuckets(str(signatures), str(buckets), config=config).run(None, bucket, 20)
        minhash.MinhashDedupCluster(str(buckets), str(gone), config=config).run(None, 0, 1)
        yield from minhash.MinhashDedupFilter(str(gone)).run(iter(kept), 0, 1)

    return [whole]


def ours(part: str, folder: Path) -> list[Callable[[Any], Iterator[Any]]]:
    """The same of phial.data."""
    from phial.data.dedup import DedupConfig, dedup_stage
    from phial.data.filters import CleanConfig as Config
    from phial.data.filters import RepairEncoding, clean_steps

    if part == "pages":
        from phial.data.html import HtmlToText

        return [HtmlToText("always", 10**9).run]
    if part == "encoding":
        return [RepairEncoding(True, 1.0).run]
    if part == "heuristics":
        config = Config(html="never", languages=(), personal=(), secrets="keep", profanity=1, gopher_letters="tokens")
        steps = [step for step in clean_steps(config) if type(step).__name__ not in ("RepairEncoding", "Language")]
        return [step.run for step in steps]

    def whole(data: Any) -> Iterator[Any]:
        kept = list(data)
        names = sorted({one.metadata["source"] for one in kept})
        phases = dedup_stage(DedupConfig(), folder / "work", 1, names)
        for phase in phases:
            for rank in range(phase.tasks):
                left = list(phase.steps[0].run(iter(kept) if phase.reads else None, rank, phase.tasks))
        yield from left

    return [whole]


def run(side: str, part: str, path: Path, folder: Path) -> dict[str, float]:
    """Seconds of processor time from documents in memory to documents in memory; loading of models is not counted."""
    from loguru import logger

    logger.remove()
    folder.mkdir(parents=True, exist_ok=True)
    warm, found = documents(path)[:3], documents(path)
    steps = (theirs if side == "theirs" else ours)(part, folder)
    if part != "minhash":
        _through(steps, warm)
    start = sum(os.times()[:4])  # children too: datatrove takes pages apart in another process
    left = _through(steps, found)
    return {"cpu": sum(os.times()[:4]) - start, "documents": len(found), "left": left}


def _through(steps: list[Callable[[Any], Iterator[Any]]], data: list[Any]) -> int:
    stream: Any = iter(data)
    for step in steps:
        stream = step(stream)
    return sum(1 for _ in stream)


def _choose(source: Path, most: int, wanted: Callable[[Any], bool], path: Path) -> int:
    """Write the documents of a stage that are wanted, up to `most` bytes of text; how many bytes those are."""
    from phial.data.document import read_documents

    taken = 0
    with open(path, "w", encoding="utf-8") as out:
        for file in sorted((source / "kept").glob("*.zst")):
            for one in read_documents(file):
                if taken < most and wanted(one):
                    taken += len(one.text.encode("utf-8", "replace"))
                    row = {"text": one.text, "id": one.id, "source": one.metadata["source"]}
                    out.write(json.dumps(row) + "\n")
    return taken


def compare(finished: Path, work: Path, interpreter: str, turns: int = 2) -> dict[str, Any]:
    """Both sides over the same documents of a finished run, by turns; the faster turn of each counts."""
    work.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, tuple[str, int, Callable[[Any], bool]]] = {
        "pages": ("01-sources", 6_000_000, lambda one: bool(one.metadata.get("html"))),
        "encoding": ("01-sources", 6_000_000, lambda one: not one.metadata.get("html")),
        "heuristics": ("01-sources", 4_000_000, lambda one: not one.metadata.get("html")),
        "minhash": ("02-clean", 3_000_000, lambda one: True),
    }
    results: dict[str, Any] = {}
    for part, (stage, most, wanted) in chosen.items():
        path = work / f"{part}.jsonl"
        n_bytes = _choose(finished / stage, most, wanted, path)
        best: dict[str, Any] = {"bytes": n_bytes}
        for turn in range(turns):
            for side, python in (("theirs", interpreter), ("ours", sys.executable)):
                command = [python, __file__, side, part, str(path), str(work / f"{part}-{side}-{turn}")]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                if side not in best or found["cpu"] < best[side]["cpu"]:
                    best[side] = found
        results[part] = best
        print(part, best, file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
