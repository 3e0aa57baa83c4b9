"""Preference tuning: it begins at the reference exactly, goes on bit for bit, and is stopped where it goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny
from tests.train.test_preference import PAIRS, pair

from phial.cli import console
from phial.cli.app import app
from phial.config_file import checked
from phial.errors import PhialError
from phial.gguf.formats import GGMLType
from phial.train.chats import Chat
from phial.train.dpo import DpoConfig, dpo, encoded_pairs
from phial.train.dpo_guards import GuardConfig, Guards
from phial.train.greedy import greedy_answers
from phial.train.metrics import read_metrics
from phial.train.pair_batches import PairBatches
from phial.train.preference import Seen
from phial.train.sft import SftConfig, sft
from phial.train.start import open_start

HELD = [pair("once?", "the time", "a"), pair("in?", "he", "she in the end")]


def _config(**changes: Any) -> DpoConfig:
    table = {"sequence": 96, "row": 64, "batch": 2, "loop": {"optimizer": {"lr": 1e-4}, "checkpoint_every": 1}}
    return checked(DpoConfig, table | changes, "test.toml")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("dpo") / "tiny.gguf", "phi3", GGMLType.F32)


def _quiet(text: str) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "precision"),
    [({}, "fp32"), ({}, "bf16"), ({"lora": {"rank": 4}}, "fp32"), ({"length_normalised": True, "beta": 2.0}, "bf16")],
)
def test_a_run_begins_at_the_reference_exactly(
    changes: dict[str, Any], precision: str, file: Path, tmp_path: Path
) -> None:
    config = _config(**changes, epochs=0.5, loop={"precision": precision})
    result = dpo(config, open_start(file, lora=config.lora), PAIRS, HELD, tmp_path, _quiet)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    for found in (row, {name.removeprefix("validation/"): value for name, value in result["before"].items()}):
        assert found["loss"] == pytest.approx(math.log(2), abs=1e-7)
        assert "repetition/sampled" in found or found is row
        for name in ("rewards/margin", "rewards/chosen", "rewards/accuracy", "ratio/rejected", "kl"):
            assert found[name] == 0.0, name
    assert result["after"]["validation/loss"] != result["before"]["validation/loss"]
    assert (tmp_path / "preferences.png").is_file()


def test_a_run_learns_what_is_preferred(file: Path, tmp_path: Path) -> None:
    config = _config(epochs=10, beta=0.5, sft_weight=0.1, loop={"optimizer": {"lr": 3e-4}})
    chats = [Chat([{"role": "user", "content": "he"}, {"role": "assistant", "content": "in the time"}], "c, row 1")]
    result = dpo(config, open_start(file), PAIRS, PAIRS[:2], tmp_path, _quiet, chats=chats)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["rewards/accuracy"] == 1 and rows[-1]["rewards/margin"] > 1 > 0.5 > rows[-1]["loss"]
    assert result["after"]["validation/rewards/accuracy"] == 1 and result["after"]["validation/rewards/margin"] > 1
    assert min(row["kl"] for row in rows[1:]) > 0
    assert rows[-1]["sft"] < rows[0]["sft"] and rows[-1]["chats"] < max(row["chats"] for row in rows)
    model = open_start(tmp_path / "model")  # what was written is what was trained
    again = dpo(_config(), model, PAIRS[:2], [], tmp_path / "again", _quiet)
    assert again["after"]["log_probs/chosen"] == pytest.approx(
        (result["after"]["validation/log_probs/chosen"]), abs=1e-4
    )


class _Stop(Exception):
    pass


def test_a_stopped_run_goes_on_bit_for_bit_and_its_reference_is_not_computed_again(file: Path, tmp_path: Path) -> None:
    config, original = _config(epochs=3), PairBatches.micro_batches

    def run(name: str, pairs: Any = PAIRS) -> dict[str, Any]:
        return dpo(config, open_start(file), pairs, HELD, tmp_path / name, _quiet)

    whole = run("whole")
    calls: list[int] = []

    def stopping(at: int) -> Any:
        def micro_batches(self: PairBatches, step: int, rank: int = 0, world: int = 1) -> Any:
            calls.append(step)
            if len(calls) == at:
                raise _Stop
            return original(self, step, rank, world)

        return micro_batches

    # first while the second step's reference is computed; then, after it, the held-out pairs' and their loss, at step 3
    for at in (2, 7, 99):
        calls.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(PairBatches, "micro_batches", stopping(at))
            if at < 99:
                with pytest.raises(_Stop):
                    run("stopped")
            else:
                again = run("stopped")
        if at == 2:
            known = np.load(tmp_path / "stopped/reference.npy")
            assert np.isfinite(known).any() and np.isnan(known).any()
    assert calls[0] == 0 and calls[1:4] == [3, 4, 5]  # held-out pairs are measured, then training goes on
    assert again["after"]["loss"] == whole["after"]["loss"] and again["before"] == whole["before"]
    files = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]
    with pytest.raises(PhialError, match="has data = "):
        run("stopped", PAIRS[:3])
    (tmp_path / "begun").mkdir()
    for name in ("reference.npy", "reference.json"):  # a run that was killed before its first step
        shutil.copyfile(tmp_path / "stopped" / name, tmp_path / "begun" / name)
    with pytest.raises(PhialError, match=r"reference.npy is of another data"):
        run("begun", PAIRS[:3])


def test_a_reference_that_was_damaged_is_refused(file: Path, tmp_path: Path) -> None:
    def run() -> dict[str, Any]:
        return dpo(_config(epochs=0.5), open_start(file), PAIRS, [], tmp_path, _quiet)

    run()
    stored = tmp_path / "reference.npy"
    whole = stored.read_bytes()
    header = len(whole) - np.load(stored).nbytes
    zeros = whole[:header] + bytes(len(whole) - header)
    for damaged in (b"", b"PK\3\4" + whole[4:], whole[:-9], whole + b"0", zeros, whole[:-1] + b"\x3f"):
        stored.write_bytes(damaged)
        with pytest.raises(PhialError, match=r"reference.npy .*cannot be read|was altered|holds"):
            run()
    stored.unlink()
    run()
    assert stored.read_bytes() == whole


def test_a_folder_of_another_run_is_left_as_it_is(file: Path, tmp_path: Path) -> None:
    chats = [Chat([{"role": "user", "content": "he"}, {"role": "assistant", "content": "in"}], "c, row 1")]
    sft(checked(SftConfig, {"sequence": 64}, "sft.toml"), open_start(file), chats, {}, tmp_path, _quiet)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(PhialError, match="the run in .* has "):
        dpo(_config(), open_start(file), PAIRS, HELD, tmp_path, _quiet)
    assert sorted(tmp_path.iterdir()) == files


def _arguments(file: Path, folder: Path, run: str, epochs: int, batch: int) -> list[str]:
    """Of a command over PAIRS."""
    rows = [{"chosen": p.chosen, "rejected": p.rejected} for p in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    settings = (
        f"epochs = {epochs}\nbatch = {batch}\nrow = 64\n[loop]\ncheckpoint_every = 1\n[loop.optimizer]\nlr = 1e-4\n"
    )
    (folder / "dpo.toml").write_text(settings, "utf-8")
    pairs, config = str(folder / "pairs.jsonl"), str(folder / "dpo.toml")
    held = ["--validation", pairs]
    return ["-m", "phial", "train", "dpo", str(file), pairs, *held, "-c", config, "-o", str(folder / run)]


@pytest.mark.slow
def test_two_processes_compute_the_reference_and_the_losses_of_one(file: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for launcher, run in (([sys.executable], "one"), (torchrun, "two")):
        arguments = _arguments(file, tmp_path, run, epochs=3, batch=3)  # pairs are in two epochs of one step
        done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (np.load(tmp_path / run / "reference.npy") for run in ("one", "two"))
    assert np.isfinite(one).all() and two == pytest.approx(one, abs=1e-5)
    ours, theirs = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert len(ours) == 4 and theirs[0]["rewards/margin"] == 0
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/margin", "grad_norm", "count", "length/chosen"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name
    assert theirs[-1]["validation/loss"] == pytest.approx(ours[-1]["validation/loss"], rel=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(file: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; then the same command to its end."""

    def command(run: str) -> list[str]:
        return [sys.executable, *_arguments(file, tmp_path, run, epochs=20, batch=2)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    for after in (3, 11):
        process = subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while len(read_metrics(tmp_path / "killed/metrics.jsonl")) < after:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True)
    found = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert found[0] == found[1]
    times = {"seconds", "tokens_per_second"}
    logs = [
        [{k: v for k, v in row.items() if k not in times} for row in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_a_collapse_stops_the_run_with_examples_and_a_checkpoint(file: Path, tmp_path: Path) -> None:
    guards = {"window": 4, "collapse": 0.5, "length": 0, "repetition": 0}
    wild = {"optimizer": {"lr": 0.02}, "schedule": {"kind": "constant", "warmup": 0}, "clip": None}
    config = _config(epochs=10, guards=guards, loop=wild)
    with pytest.raises(PhialError, match=r"chosen answers collapse: [\d.]+ nats a token") as error:
        dpo(config, open_start(file), PAIRS, [], tmp_path, _quiet)
    lines = error.value.message.splitlines()
    assert len(lines) == 4 and "pairs.jsonl, row" in lines[1] and "chosen: '" in lines[1]
    stopped = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert 2 <= stopped < 20 and not (tmp_path / "model").exists()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"{stopped:08}"]
    said: list[str] = []
    warned = config.model_copy(update={"guards": GuardConfig(**guards, action="warn")})
    dpo(warned, open_start(file), PAIRS, [], tmp_path, said.append)  # the same run, which may go on
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 20 and (tmp_path / "model").is_dir()
    assert sum("chosen answers collapse" in text for text in said) == 1
    with pytest.raises(PhialError, match=r"step 20: chosen answers collapse"):  # complete, and not to be trusted
        dpo(config, open_start(file), PAIRS, [], tmp_path, _quiet)


def _row(step: int, **values: float) -> dict[str, Any]:
    """A healthy step: the margin grows, mostly from the rejected side; preferred answers go over to the chosen ones."""
    names = {"ratio/chosen": -0.05, "length/chosen": 80.0, "length/rejected": 120.0, "length/preferred": 100.0}
    names |= {"repetition/chosen": 0.02, "repetition/rejected": 0.2, "repetition/preferred": 0.11}
    return {"step": step, "count": 16, **names, **{name.replace("_", "/", 1): value for name, value in values.items()}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"length_preferred": 80.0, "repetition_preferred": 0.02}, ""),
        ({"length_preferred": 118.0}, ""),
        ({"length_preferred": 121.0}, "rewards follow length: the answers they prefer have 121 tokens, the chosen"),
        ({"length_preferred": 66.0}, "rewards follow length"),
        ({"repetition_preferred": 0.2}, ""),
        ({"repetition_preferred": 0.22}, "rewards follow repetition: 22% of the answers they prefer is repeated"),
        ({"ratio_chosen": -0.49}, ""),
        ({"ratio_chosen": -0.51}, "chosen answers collapse: 0.51 nats a token"),
    ],
)
def test_guards_judge_a_whole_window_and_leave_a_healthy_run_alone(
    values: dict[str, float], said: str, tmp_path: Path
) -> None:
    guards = Guards(GuardConfig(), lambda number, chosen: f"pair {number} {chosen}", tmp_path)
    guards.see(Seen(torch.tensor([7, 8]), torch.tensor([[-1.0, 0], [-2, 0]]), torch.tensor([[0, 1.0], [0, -1]])))
    for step in range(1, 4):
        guards.check(_row(step, **values))  # 48 pairs are no window
    if not said:
        guards.check(_row(4, **values))
        return
    with pytest.raises(PhialError) as error:
        guards.check(_row(4, **values))
    first = "-2.00 nats a token: pair 8 True" if "collapse" in said else "margin -1.00: pair 7 False"
    assert said in error.value.message and error.value.message.splitlines()[1].strip() == first


@pytest.mark.parametrize(
    ("share", "said"), [(0.35, ""), (0.45, "the model repeats itself: 45% of what it writes, 10%")]
)
def test_a_model_that_begins_to_loop_is_caught_when_it_is_measured(share: float, said: str, tmp_path: Path) -> None:
    guards = Guards(GuardConfig(), lambda number, chosen: "", tmp_path)
    guards.before, guards.samples = 0.1, [("'he'", 0.0), ("'it it it'", 0.9)]
    guards.check(_row(1))
    row = _row(2) | {"validation/repetition/sampled": share}
    if not said:
        guards.check(row)
        return
    with pytest.raises(PhialError) as error:
        guards.check(row)
    assert said in error.value.message and error.value.message.splitlines()[1].strip() == "90%: 'it it it'"


def test_what_is_sampled_is_what_the_model_likes_best(file: Path) -> None:
    model, prompts = open_start(file).model, [[5, 6, 7], [8, 9, 10, 11, 12]]
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        wanted.append(ids[len(prompt) :])
    assert greedy_answers(model, prompts, 4, ()) == wanted
    cut = greedy_answers(model, prompts, 4, {wanted[0][2]})
    assert cut[0] == wanted[0][: wanted[0].index(wanted[0][2])]


def test_old_steps_leave_the_window_and_those_before_a_resume_belong_to_it(tmp_path: Path) -> None:
    def guards(window: int) -> Guards:
        return Guards(GuardConfig(window=window), lambda number, chosen: "", tmp_path)

    fresh = guards(16)
    with pytest.raises(PhialError):
        fresh.check(_row(1, ratio_chosen=-3.0))
    fresh.check(_row(2))
    rows = [_row(step, ratio_chosen=-3.0) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    guards(64).check(rows[2])  # 48 pairs
    with pytest.raises(PhialError):
        guards(64).check(_row(4, ratio_chosen=-3.0))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([pair("a", "he", "he")], "row 1: the two answers are the same"),
        ([pair("a", "in " * 100, "he")], r"row 1: chosen has \d+ tokens, sequence is 96"),
        ([pair("a", "he", "in " * 100)], r"row 1: rejected has \d+ tokens, sequence is 96"),
    ],
)
def test_a_pair_that_cannot_be_learnt_stops_the_run_or_is_named(pairs: Any, said: str, file: Path) -> None:
    start = open_start(file, weights=False)
    with pytest.raises(PhialError, match=said):
        encoded_pairs([*PAIRS, *pairs], start, _config())
    found = encoded_pairs([*PAIRS, *pairs], start, _config(unfit="leave out"))
    assert len(found.examples) == 4 and found.pairs == 5 and len(found.left_out) == 1
    with pytest.raises(PhialError, match="none of 1 pairs can be learnt; first pairs.jsonl, row 1"):
        encoded_pairs(pairs, start, _config(unfit="leave out"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing is for dpo"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"guards": {"window": 0}}, "guards.window"),
        ({"epochs": math.inf}, "epochs"),
        ({"epochs": 1e300}, "epochs"),
        ({"beta": math.inf}, "beta"),
        ({"loop": {"steps": 3}}, "steps follow from the epochs"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PhialError, match=said):
        _config(**changes)


def test_the_command_shows_pairs_and_tunes(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "once?", "chosen": "upon a time", "rejected": "he"}) + "\n", "utf-8")
    arguments = ["train", "dpo", str(file), str(pairs)]
    assert console.run(app, [*arguments, "--show-pairs"]) == 0
    shown = capsys.readouterr()
    begin = "<s><|user|> once?<|end|><|assistant|>"
    assert shown.out == f"{begin}⟦ upon a time<|end|>⟧\n\n{begin}⟦ he<|end|>⟧\n\n"
    assert "row 1, rejected" in shown.err and "all: 1 pairs" in shown.err
    run = tmp_path / "run"
    assert console.run(app, [*arguments, "--validation", str(pairs), "-o", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert "validation: 1 pairs are trained on too" in shown.err
    result = json.loads(shown.out)
    assert result["before"]["validation/loss"] == pytest.approx(math.log(2))
    assert Path(result["model"]).is_dir() and result["data"]["pairs"] == 1
    assert console.run(app, arguments) == console.MISUSE
