"""`phial perplexity` on a tiny model against the engine's own logits, and on SmolLM2 against llama.cpp's losses."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.toy_backend import N_VOCAB, ORIGINAL_CONTEXT, logits_of, toy_engine
from tests.tiny_models import write_tiny

from phial.cli.perplexity import EngineModel
from phial.engine.engine import Engine
from phial.eval.perplexity import evaluate, scoring
from phial.eval.windows import Windows, plan_windows

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = "".join(f"once upon a time there was a {word}, and it was {i}.\n" for i, word in enumerate(["hat", "dog"] * 12))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second model of the same vocabulary."""
    return str(write_tiny(tmp_path_factory.mktemp("other") / "other.gguf", seed=2))


def losses(engine: Engine, plan: Windows, ids: list[int]) -> np.ndarray:
    """Negative log-likelihoods of all scored tokens, each window read in one piece."""
    found = []
    for window in range(plan.count):
        tokens = plan.tokens(ids, window)
        with engine.session(plan.size) as session:
            logits = session.eval(tokens, all_logits=True).astype(np.float64)[plan.first : -1]
        top = logits.max(1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
        found.append(log_sum - logits[np.arange(len(logits)), tokens[plan.first + 1 :]])
    return np.concatenate(found)


def test_json_holds_the_perplexity_of_the_engines_logits_with_bos_first(invoke, tiny, text) -> None:
    with Engine.open(tiny) as engine:
        ids = engine.tokenizer.encode(TEXT)
        plan = plan_windows(len(ids), 64, bos=engine.tokenizer.bos_id)
        nll = losses(engine, plan, ids)
        assert engine.tokenizer.add_bos and plan.count > 3
    found = json.loads(invoke("perplexity", text, "-m", tiny, "--ctx", "64", "--json").out)
    assert (found["windows"], found["tokens"], found["n_ctx"]) == (plan.count, len(nll), 64)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nll.mean()), rel=1e-3)
    error = nll.std(ddof=1) / math.sqrt(len(nll))
    assert found["perplexity"]["error"] == pytest.approx(math.exp(nll.mean()) * error, rel=1e-3)


def test_the_result_is_on_stdout_and_each_windows_figure_on_stderr(invoke, tiny, text) -> None:
    done = invoke("perplexity", "-", "-m", tiny, "--ctx", "64", "--windows", "2", stdin=TEXT)
    assert [line.split()[0] for line in done.out.splitlines()] == ["MEASURE", "perplexity"]
    assert done.err.splitlines()[:2][1].startswith("window 2/2: perplexity ")
    assert done.out.split()[-2:] == done.err.splitlines()[1].split()[3::2]


def test_a_base_model_and_what_it_saved_give_the_same_divergence(invoke, tiny, other, text, tmp_path) -> None:
    usual = ["--ctx", "64", "--windows", "3"]
    saved = invoke("perplexity", text, "-m", other, *usual, "--save-base", "base")
    assert saved.status == 0 and not (tmp_path / "base.partial").exists()
    beside = json.loads(invoke("perplexity", text, "-m", tiny, *usual, "--kld", other, "--json").out)
    file = json.loads(invoke("perplexity", text, "-m", tiny, *usual, "--kld", "base", "--json").out)
    assert beside["kl"]["value"] > 0.01
    assert file["kl"]["value"] == pytest.approx(beside["kl"]["value"], abs=1e-5)
    assert file["base_perplexity"] == beside["base_perplexity"]
    assert file["same_top"] == beside["same_top"]
    itself = json.loads(invoke("perplexity", text, "-m", other, *usual, "--kld", other, "--json").out)
    assert (itself["kl"]["value"], itself["same_top"]["value"]) == (0, 1)
    table = invoke("perplexity", text, "-m", tiny, *usual, "--kld", "base").out
    assert f"KL mean {file['kl']['value']:.6f}" in " ".join(table.split())


def test_ctrl_c_keeps_the_windows_and_the_same_command_gives_the_same_bits(
    invoke, tiny, text, tmp_path, monkeypatch
) -> None:
    command = ["perplexity", text, "-m", tiny, "--ctx", "64", "--json"]
    whole = invoke(*command)
    read, calls = EngineModel.logits, []

    def stopped(self: EngineModel, tokens: Any, first: int) -> Iterator[Any]:
        calls.append(first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, tokens, first)

    for flags in (["--resume", "state"], ["--save-base", "base"]):
        calls.clear()
        monkeypatch.setattr(EngineModel, "logits", stopped)
        done = invoke(*command, *flags)
        assert (done.status, done.out) == (130, "")
        assert "stopped after 2 of" in done.err and "the same command goes on" in done.err
        monkeypatch.setattr(EngineModel, "logits", read)
        again = invoke(*command, *flags)
        assert again.out == whole.out
        assert "2 of" in again.err.splitlines()[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("store", "text.txt")) == [
        "base",
        "state",
    ]
    calls.clear()
    monkeypatch.setattr(EngineModel, "logits", stopped)
    assert "--resume FILE" in invoke(*command).err


def test_a_killed_run_goes_on(environment, tiny, tmp_path, phial) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 4, "utf-8")
    plain = ["perplexity", "long.txt", "-m", tiny, "--ctx", "32", "--json"]
    command = [*plain, "--save-base", "base"]
    process = subprocess.Popen(
        [sys.executable, "-m", "phial", *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("window 2/"):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    done = phial(*command)
    assert "going on from base.partial" in done.err and (tmp_path / "base").exists()
    assert done.out == phial(*plain).out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ctx", "100000"], "one window needs 100000"),
        (["--ctx", "2"], "too small"),
        (["--windows", "0"], "0 windows"),
        (["--stride", "-1"], "stride of -1"),
        (["--kld", "nothing.gguf"], "nothing.gguf"),
        (["--kld", "text.txt"], "text.txt"),
        (["--save-base", "b", "--resume", "r"], "exclude each other"),
        (["--save-base", "b", "--kld", "x"], "exclude each other"),
        (["--save-base", "text.txt"], "exists already"),
        (["--resume", "text.txt"], "text.txt"),
        (["--resume", "no/folder/state"], "no/folder"),
    ],
)
def test_what_cannot_be_done_is_refused_in_two_lines_and_leaves_nothing(
    invoke, tiny, text, tmp_path, flags, said
) -> None:
    done = invoke("perplexity", text, "-m", tiny, *flags)
    assert (done.status, done.out) == (2, "")
    assert said in done.err.splitlines()[0] and done.err.splitlines()[1].startswith("hint: ")
    assert Path(text).read_text("utf-8") == TEXT
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "text.txt"}


def test_a_base_that_does_not_fit_is_refused(invoke, tiny, text, tmp_path) -> None:
    command = ["perplexity", text, "-m", tiny, "--ctx", "64"]
    assert invoke(*command, "--windows", "2", "--save-base", "base").status == 0
    data = (tmp_path / "base").read_bytes()
    (tmp_path / "torn").write_bytes(data[:-1])
    (tmp_path / "damaged").write_bytes(data[:-100] + b"x" + data[-99:])
    (tmp_path / "changed.txt").write_text(TEXT + "!", "utf-8")
    assert "--windows 2" in invoke(*command, "--kld", "base").err
    assert "1 of 2 windows" in invoke(*command, "--windows", "2", "--kld", "torn").err
    assert "damaged in window 2" in invoke(*command, "--windows", "2", "--kld", "damaged").err
    assert "other windows" in invoke(*command[:-1], "32", "--windows", "2", "--kld", "base").err
    assert "another text" in invoke("perplexity", "changed.txt", *command[2:], "--windows", "2", "--kld", "base").err
    invoke(*command, "--windows", "2", "--resume", "state")
    assert "only scores" in invoke(*command, "--windows", "2", "--kld", "state").err


def test_a_base_model_of_another_vocabulary_is_refused(invoke, tiny, text, smollm2) -> None:
    done = invoke("perplexity", text, "-m", tiny, "--ctx", "64", "--kld", str(smollm2))
    assert (done.status, done.out) == (2, "") and "different vocabularies" in done.err


def test_a_text_that_is_no_utf8_is_refused_with_the_position(invoke, tiny, tmp_path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    assert "0xff at position 3" in invoke("perplexity", "bad.txt", "-m", tiny).err


@pytest.mark.parametrize("size", [ORIGINAL_CONTEXT, ORIGINAL_CONTEXT + 2, 40, 2 * ORIGINAL_CONTEXT + 4])
def test_a_window_past_the_original_length_has_the_factors_of_its_length_throughout(size: int, monkeypatch) -> None:
    monkeypatch.setattr("phial.cli.perplexity._ROWS", 4)
    tokens, first = [(7 * i) % N_VOCAB for i in range(size)], size // 2
    with toy_engine() as engine:
        rows = np.concatenate(list(EngineModel(engine).logits(tokens, first)))
    long = size - 1 > ORIGINAL_CONTEXT
    np.testing.assert_array_equal(rows, [logits_of(tokens[: i + 1], long) for i in range(first, size - 1)])


def test_smollm2_has_llama_cpps_loss_on_the_same_windows(smollm2: Path) -> None:
    with gzip.open(GOLDEN / "smollm2_perplexity.json.gz", "rt") as file:
        recorded = json.load(file)
    n, size = 4, recorded["window"]
    plan = Windows(size, size, 0, n, None)  # the recording scores all of a window
    with Engine.open(smollm2) as engine:
        *_, tally = evaluate(scoring(EngineModel(engine)), recorded["ids"], plan)
    assert tally.n_tokens == n * (size - 1)
    theirs = math.exp(sum(recorded["losses"][:n]) / tally.n_tokens)
    assert tally.perplexity.value == pytest.approx(theirs, rel=0.01)


def test_smollm2_second_halves_equal_a_reading_in_one_piece(invoke, smollm2: Path, tmp_path: Path) -> None:
    with gzip.open(GOLDEN / "subjection-of-women.txt.gz") as file:
        text = file.read()
    (tmp_path / "mill.txt").write_bytes(text)
    found = json.loads(invoke("perplexity", "mill.txt", "-m", str(smollm2), "--windows", "2", "--json").out)
    with Engine.open(smollm2) as engine:
        ids = engine.tokenizer.encode(text.decode())
        nll = losses(engine, plan_windows(len(ids), 512, most=2), ids)
    assert found["tokens"] == len(nll) == 510
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nll.mean()), rel=1e-3)
