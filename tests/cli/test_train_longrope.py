"""phial train longrope: from a folder and texts to a model, its pictures and its table; a second call goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.gguf.hf_folders import make_folder

CONFIG = """
search_windows = 2
report_windows = 2
report_needles = 2

[search]
population = 4
parents = 2
mutations = 1
crossovers = 1
iterations = 1

[tune]
rows = 1
short_share = 0.5

[tune.loop]
steps = 1
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longrope")
    make_folder(folder / "model", "llama")
    random = np.random.default_rng(0)
    words = ["small", "model", "knight", "answer", "1234", "question", "again", "é", "textbook", "\n"]
    for i in range(3):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{i}.txt").write_text(" ".join(random.choice(words, 1200)), "utf-8")
    (folder / "longrope.toml").write_text(CONFIG)
    return folder


def test_a_model_is_extended_and_the_same_command_reads_what_is_done(invoke, inputs: Path) -> None:
    command = ["train", "longrope", str(inputs / "model"), "--target", "300", "--texts", str(inputs / "texts")]
    command += ["--config", str(inputs / "longrope.toml"), "--output", str(inputs / "run")]
    first = invoke(*command)
    assert first.status == 0, first.err
    rows = [line.split() for line in first.out.splitlines()]
    assert [row[0] for row in rows] == ["way", "none", "pi", "ntk", "yarn", "found"]
    assert all(len(row) == 5 for row in rows[1:])  # perplexity and passkeys at 256 and 300 tokens
    for name in ("model/config.json", "model.gguf", "factors.png", "lengths.png", "report.json"):
        assert (inputs / "run" / name).stat().st_size > 200
    again = invoke(*command, "--json")
    report = json.loads(again.out)
    assert report["target"] == 300 and report["original"] == 256 and len(report["long"]) == 8
    assert f"{report['rows'][-1]['perplexity']:.2f}" == rows[-1][2]
    text, gguf = inputs / "texts" / "0.txt", inputs / "run" / "model.gguf"
    answer = invoke("perplexity", str(text), "-m", str(gguf), "-c", "290")
    assert answer.status == 0 and "perplexity" in answer.out


def test_mistakes_are_two_lines(invoke, inputs: Path, tmp_path: Path) -> None:
    texts = ["--texts", str(inputs / "texts"), "--output", str(tmp_path / "run")]
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[search]\npopulations = 4\n")
    for arguments, said in (
        (["nothing", "--target", "300"], "is no folder"),
        ([str(inputs / "model"), "--target", "200"], "context is 256"),
        ([str(inputs / "model"), "--target", "100000"], "windows of 100001 tokens"),
        ([str(inputs / "model"), "--target", "300", "--config", str(wrong)], "search.populations"),
    ):
        failed = invoke("train", "longrope", *arguments, *texts)
        assert failed.status == 2 and said in failed.err and len(failed.err.strip().splitlines()) == 2
