"""Runs the coverage-guided fuzzer for a fixed budget, from a corpus of correct and hostile files."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gguf import craft, hostile

SECONDS = 45


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the package atheris is not installed")
def test_the_fuzzer_finds_nothing_within_its_budget(repository: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = [craft.valid(2), craft.valid(3), *(case.content for case in hostile.CASES)]
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)
    limits = [f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=1"]
    target = repository / "tests" / "fuzz" / "fuzz_gguf.py"
    ran = subprocess.run(
        [sys.executable, str(target), str(corpus), f"-artifact_prefix={tmp_path}/", *limits],
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", ran.stderr)  # no "cov:" would mean that nothing was instrumented
    assert done and int(done[1]) > 1000 and int(done[2]) > 300, ran.stderr[-2000:]
