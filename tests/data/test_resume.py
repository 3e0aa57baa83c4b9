"""A run killed in any stage and run again ends with the files of one left alone; peak memory has a bound."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phial.data.run import run_all
from phial.data.vocabulary import write_vocabulary

STAGES = ["01-sources", "02-clean", "03-dedup", "04-quality", "05-decontaminate", "06-mix"]
CONFIG = """
tasks = 4
[[sources]]
name = "made up"
paths = ["rows.jsonl"]
licence = "CC0-1.0"
[clean]
languages = []
[[decontaminate.benchmarks]]
name = "riddles"
files = ["riddles.txt"]
[mix]
tokenizer = "vocabulary"
validation = 0.1
shard_tokens = 2048
[[mix.phases]]
name = "one"
sources = [{ source = "made up" }]
"""
RIDDLE = "Which bird of the marsh builds its nest on floating reeds and carries the young upon its back?"
BOUND = 32 << 20  # bytes


def write_corpus(folder: Path, documents: int, words: int) -> Path:
    """Sentences of a small vocabulary: readable enough for the filters, some of them twice."""
    draw = random.Random(5)
    vocabulary = "the water of a mountain and its river with every small stone that has been in the old valley".split()
    vocabulary += ["".join(draw.choices("aeioulmnrst", k=draw.randint(3, 9))) for _ in range(3000)]
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(documents):
            if i % 10 != 3:
                chosen = draw.choices(vocabulary, [40] * 19 + [1] * 3000, k=words)
                lines = [" ".join(chosen[at : at + 12]).capitalize() + "." for at in range(0, words, 12)]
            text = "\n".join(lines if i != 8 else [*lines, RIDDLE])
            file.write(json.dumps({"text": text}) + "\n")
    write_vocabulary([" ".join(vocabulary)], 300, folder / "vocabulary")
    (folder / "riddles.txt").write_text(RIDDLE + "\n")
    (folder / "corpus.toml").write_text(CONFIG)
    return folder / "corpus.toml"


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file of kept and dropped documents, and of the token shards."""
    files = [
        *folder.rglob("*.zst"),
        *(p for name in ("one", "validation") for p in (folder / "06-mix" / name).iterdir()),
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def killed_in(stage: str, config: Path, folder: Path) -> None:
    """Run in a process of its own, killed as soon as this stage has written a file of documents or of tokens."""
    code = "import sys; from pathlib import Path; from phial.data.run import run_all; run_all(*map(Path, sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(config), str(folder)], start_new_session=True)
    try:
        written = [(folder / stage / "logs", "completions/*"), (folder / stage / "one", "*.tokens*")]
        while process.poll() is None and not any(any(place.rglob(names)) for place, names in written):
            time.sleep(0.001)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_killed_in_any_stage_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, documents=60, words=200)
    whole = run_all(config, tmp_path / "whole")
    assert whole[2]["dropped"]["duplicate: exact"] == 6 and whole[3]["kept"] == 54, whole
    assert whole[4]["dropped"] == {"contaminated: riddles": 1}
    for stage in STAGES:
        folder = tmp_path / f"killed in {stage}"
        killed_in(stage, config, folder)
        end = "plan.json" if stage == "06-mix" else "stage.json"
        assert not (folder / stage / end).exists(), "the kill came too late to show anything"
        again = run_all(config, folder)
        assert [result["output_sha256"] for result in again[:5]] == [result["output_sha256"] for result in whole[:5]]
        assert again[5] == whole[5]
        assert outputs(folder) == outputs(tmp_path / "whole")


def peak_growth(code: str, *arguments: str) -> int:
    """Bytes by which the peak of resident memory grows while `code` runs `work`, after its imports."""
    program = (
        "import resource, sys\nsys.path.insert(0, sys.argv.pop(1))\n" + code + "\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "before = peak(); work(); print(peak() - before)"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", program, root, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_reading_and_writing_take_less_memory_than_the_corpus_has_bytes(tmp_path: Path) -> None:
    write_corpus(tmp_path, documents=1500, words=5000)
    assert (tmp_path / "rows.jsonl").stat().st_size > BOUND
    code = """
from pathlib import Path
from phial.data.pipeline import Phase, run_stage
from phial.data.sources import BadRecords, SourceConfig, Sources, find_files
from datatrove.executor import LocalPipelineExecutor
def work():
    base = Path(sys.argv[1])
    sources = [SourceConfig(name="a", paths=("rows.jsonl",), licence="CC0-1.0")]
    reader = Sources(sources, find_files(sources, base))
    result = run_stage(base / "s", "sources", [Phase("read", [BadRecords()], 2)], reader, inputs={}, config={})
    assert result["kept"] == 1500
"""
    assert peak_growth(code, str(tmp_path)) < BOUND
