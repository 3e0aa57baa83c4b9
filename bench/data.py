"""The data pipeline on a labelled corpus: speed and memory by stage, and how often it is right.

python bench/data.py CORPUS WORK --small CORPUS [--peer PYTHON] [--only speed,whole,peer]

CORPUS is what bench/make_corpus.py made. Speed: the stages over a smaller corpus, with one worker and with two, a
process a stage: documents and megabytes a second by processor time and by the clock, peak memory. Whole: all of it
once, and then by tier what was kept, the classifier's F1, recall and precision on planted duplicates and leaks, how
well pages and broken encodings come back. Peer: the same filters and MinHash as plain datatrove runs them
(bench/data_peer.py with an interpreter that has spaCy). Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phial.data.decontaminate import DecontaminateConfig, decontaminate_stage
from phial.data.dedup import DedupConfig, dedup_stage
from phial.data.filters import CleanConfig, clean_steps
from phial.data.pipeline import Machines, Phase, run_stage
from phial.data.quality_steps import QualityConfig
from phial.data.sources import BadRecords, SourceConfig, Sources, find_files
from phial.data.stage import StageReader

STAGES = ["01-sources", "02-clean", "03-dedup", "04-quality", "05-decontaminate"]
TASKS = 8
_PR_SET_CHILD_SUBREAPER = 36


def run_one(stage: str, corpus: Path, run: Path, workers: int) -> None:
    """One stage in this process and its workers."""
    folder, place = run / stage, STAGES.index(stage)
    named = json.loads((corpus / "corpus.json").read_text())["sources"]
    sources = [SourceConfig(name=name, paths=(name,), licence=entry["licence"]) for name, entry in named.items()]
    reader: Any = StageReader(run / STAGES[place - 1]) if place else None
    phases: list[Any] = []
    if stage == "01-sources":
        reader = Sources(sources, find_files(sources, corpus))
        phases = [Phase("read", [BadRecords()], TASKS)]
    elif stage == "02-clean":
        phases = [Phase("filter", clean_steps(CleanConfig()), TASKS)]
    elif stage == "03-dedup":
        phases = dedup_stage(DedupConfig(), folder / "work", TASKS, list(named))
    elif stage == "04-quality":
        phases = [Phase("score", [QualityConfig().step()], TASKS)]
    else:
        benchmarks = [{"name": "planted", "files": [str(corpus / "benchmarks/items.jsonl")]}]
        config = DecontaminateConfig.model_validate({"benchmarks": benchmarks})
        phases = decontaminate_stage(config, folder / "work", TASKS)
    run_stage(folder, stage[3:], phases, reader, inputs={}, config={}, machines=Machines("local", workers))


def measured(command: list[str]) -> dict[str, float]:
    """Runs a command; its seconds by the clock and of processors, and its largest process in MB.

    Workers come from a server process that outlives the command, so this process takes over what the command leaves.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.monotonic()
    process = subprocess.Popen(command)
    wall = cpu = peak = 0.0
    with contextlib.suppress(ChildProcessError):
        while True:
            number, status, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
            peak = max(peak, usage.ru_maxrss * 1024 / 1e6)
            if number == process.pid:
                wall = time.monotonic() - start
                if status:
                    raise SystemExit(f"{' '.join(command)} failed")
    return {"wall": wall, "cpu": cpu, "peak_mb": peak}


def stages(corpus: Path, run: Path, workers: int) -> dict[str, Any]:
    """All stages, each in a process of its own; figures and counts by stage."""
    found: dict[str, Any] = {}
    idle = measured([sys.executable, __file__, "--child", "nothing", str(corpus), str(run), "1"])  # what imports take
    n_bytes = sum(entry["bytes"] for entry in json.loads((corpus / "corpus.json").read_text())["sources"].values())
    for stage in STAGES:
        took = measured([sys.executable, __file__, "--child", stage, str(corpus), str(run), str(workers)])
        record = json.loads((run / stage / "stage.json").read_text())
        found[stage] = took | {"start_cpu": idle["cpu"], "start_mb": idle["peak_mb"], "bytes_in": n_bytes}
        found[stage] |= {key: record[key] for key in ("documents_in", "kept", "output_sha256", "dropped")}
        n_bytes = sum(entry["bytes_kept"] for entry in record["by_source"].values())
        print(stage, workers, {k: round(v, 1) for k, v in took.items()}, file=sys.stderr, flush=True)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        stage, corpus, run, workers = sys.argv[2:6]
        if stage != "nothing":
            run_one(stage, Path(corpus), Path(run), int(workers))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--small", type=Path, help="a corpus of a tenth of the size, for speed")
    parser.add_argument("--peer", help="an interpreter with datatrove and spaCy")
    parser.add_argument("--only", default="speed,whole,peer")
    options = parser.parse_args()
    wanted = options.only.split(",")
    results: dict[str, Any] = {}
    if "speed" in wanted:
        for workers in (1, 2):
            results[f"workers {workers}"] = stages(options.small, options.work / f"small-{workers}", workers)
    if "peer" in wanted and options.peer:
        import data_peer

        results["peer"] = data_peer.compare(options.work / "small-1", options.work / "peer", options.peer)
    if "whole" in wanted:
        import data_right

        results["whole"] = stages(options.corpus, options.work / "whole", 2)
        results["right"] = data_right.evaluate(options.corpus, options.work / "whole")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
