"""LongRoPE from model to files: needles, windows, fitness, and the extended model in transformers and the engine."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.gguf.hf_folders import make_folder
from transformers import AutoModelForCausalLM

from phial.config import longrope_attn_factor
from phial.config_file import read_config
from phial.engine.engine import Engine
from phial.errors import ArgumentError, PhialError
from phial.gguf.convert import hf_to_gguf
from phial.model.checkpoint import load
from phial.train.longrope.extend import LongropeConfig, Result, extend
from phial.train.longrope.measure import found_share, mean_loss, measure, needle_batches, report_lengths, text_batches
from phial.train.longrope.model import as_phi3, longrope_config
from phial.train.longrope.needles import IGNORED, QUESTION, least_length, needle_rows, plant
from phial.train.longrope.search import SearchConfig
from phial.train.longrope.texts import pieces, split_windows
from phial.train.longrope.tuning import MixedWindows, TuneConfig
from phial.train.loop import LoopConfig

QUICK = LongropeConfig(
    search=SearchConfig(population=6, parents=3, mutations=2, crossovers=2, iterations=2),
    search_windows=2,
    report_windows=2,
    report_needles=0,
)
TUNED = QUICK.model_copy(update={"tune": TuneConfig(rows=2, short_share=0.5, loop=LoopConfig(steps=2))})
TARGET = 1024  # of a model of 256


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longrope") / "llama"
    make_folder(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, 1500).tolist() for _ in range(8)]


def encode(text: str) -> list[int]:
    return list(text.encode())


def extended(llama: Path, documents: list[list[int]], folder: Path, config: LongropeConfig = QUICK) -> Result:
    return extend(llama, documents, encode, TARGET, config, folder)


# Needles and windows


def test_a_needle_stands_at_its_depth_and_its_answer_at_the_end() -> None:
    filler = np.full(600, ord("x"))
    for depth, where in ((0.0, 0), (1.0, 400 + 1 - 59 - len(QUESTION) - 6 - 59 + 59)):
        row, n_answer = plant(filler, 400, "12345", depth, encode)
        text = bytes(row.tolist()).decode()
        assert len(row) == 401
        assert text.endswith(f"{QUESTION} 12345") and n_answer == len(" 12345")
        assert text.count("12345") == 3
        assert text.index("\nThe pass key is 12345. Remember it.") == pytest.approx(where, abs=3)


def test_depths_are_even_keys_differ_and_only_answers_are_targets() -> None:
    tokens, targets = needle_rows([np.full(600, ord("x"))], 400, 5, encode, seed=3)
    starts = [bytes(row.tolist()).decode().index("\nThe pass key") for row in tokens]
    assert np.ptp(np.diff(starts)) <= 1 and starts[0] == 0
    answers = {bytes(t[t != IGNORED].tolist()).decode() for t in targets}
    assert len(answers) == 5 and all(len(a) == 6 and a[1:].isdigit() for a in answers)
    asked = targets[:, 1:-1] != IGNORED
    np.testing.assert_array_equal(targets[:, 1:-1][asked], tokens[:, 2:][asked])


def test_a_length_without_room_and_a_short_filler_are_errors() -> None:
    least = least_length(encode)
    assert len(plant(np.zeros(600, np.int64), least, "12345", 0.5, encode)[0]) == least + 1
    with pytest.raises(ArgumentError, match="takes"):
        plant(np.zeros(600, np.int64), least - 1, "12345", 0.5, encode)
    with pytest.raises(ArgumentError, match="cannot fill"):
        plant(np.zeros(100, np.int64), 400, "12345", 0.5, encode)


def test_windows_lie_within_documents_and_no_token_is_in_two() -> None:
    documents = [range(1000 * i, 1000 * i + 350) for i in range(6)]
    texts = split_windows(documents, 99, search=3, report=4, tune=2, seed=0)
    rows = np.concatenate([texts.search, texts.report, texts.tune])
    assert rows.shape == (18, 100) and len(np.unique(rows)) == 1800
    assert (np.diff(rows, axis=1) == 1).all()
    with pytest.raises(PhialError, match="18 windows of 100 tokens, not 20; the longest text has 350"):
        split_windows(documents, 99, search=10, report=10, tune=0, seed=0)


def test_pieces_predict_the_same_tokens() -> None:
    windows = np.arange(2 * 129).reshape(2, 129)
    for length in (32, 64, 128):
        assert sorted(pieces(windows, length)[:, 1:].flatten()) == sorted(windows[:, 1:].flatten())
    assert pieces(windows, 100).shape == (2, 101)


# Models


def test_a_llama_is_the_same_network_as_a_phi3(llama: Path) -> None:
    model = load(llama)
    tokens = torch.arange(0, 200)[None]
    with torch.no_grad():
        expected = model(tokens)
        fused = as_phi3(model)
        assert fused.config.architecture == "phi3" and fused.config.rope_original_context == 256
        torch.testing.assert_close(fused(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("qwen2", "biases"), ("phi3 window", "sliding window"), ("phi3", "already"), ("llama 3", "already")],
)
def test_models_that_cannot_be_extended_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "m", kind)
    with pytest.raises(PhialError, match=message):
        as_phi3(load(tmp_path / "m"))


def test_losses_and_shares_are_those_of_transformers(llama: Path, documents: list[list[int]]) -> None:
    windows = np.array(documents)[:, :129]
    theirs = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        rows = torch.from_numpy(windows)
        expected = torch.nn.functional.cross_entropy(theirs(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        needles = needle_batches(windows, 128, 4, lambda text: encode(text)[-8:], seed=0)
        logits = theirs(torch.cat([batch["tokens"] for batch in needles])).logits
    model = as_phi3(load(llama))
    assert mean_loss(model, text_batches(windows)) == pytest.approx(float(expected), rel=1e-4)
    greedy = {**needles[0], "targets": torch.where(needles[0]["targets"] == IGNORED, IGNORED, logits.argmax(-1))}
    assert found_share(model, [greedy]) == 1.0
    wrong = greedy["targets"].clone()
    wrong[0, -1] = (wrong[0, -1] + 1) % 256
    assert found_share(model, [{**greedy, "targets": wrong}]) == 0.75


def test_each_length_is_measured_with_its_own_factors(llama: Path, documents: list[list[int]]) -> None:
    model = as_phi3(load(llama))
    base = model.config
    windows = np.array(documents)[:2, :1025]
    ones, twos = (1.0,) * 8, (2.0,) * 8
    plain, mixed, wide = (
        measure(model, longrope_config(base, 1024, a, b), windows, [256, 1024], 0, encode)
        for a, b in ((ones, ones), (ones, twos), (twos, twos))
    )
    assert [row["loss"] for row in mixed] == [plain[0]["loss"], wide[1]["loss"]]
    assert plain[0]["loss"] != wide[0]["loss"] and plain[1]["loss"] != wide[1]["loss"]
    known = measure(model, longrope_config(base, 1024, ones, ones), windows, [64, 256], 2, encode)
    assert known[0]["found"] is None and known[1]["found"] == 0  # no needle fits into 64 tokens
    assert report_lengths(256, 1024) == [256, 512, 1024] and report_lengths(256, 700) == [256, 512, 700]


def test_mixed_windows_hold_both_lengths_in_the_share_asked_for() -> None:
    windows = np.arange(4 * 1025).reshape(4, 1025)
    config = TuneConfig(rows=3, short_share=0.5, tokens_at_once=1024)
    data = MixedWindows(windows, 512, 128, config, encode, seed=0)
    batches = data.micro_batches(7)
    long = sum(b["tokens"].numel() for b in batches if b["tokens"].shape[1] == 512)
    short = sum(b["tokens"].numel() for b in batches if b["tokens"].shape[1] == 128)
    assert long == short == 3 * 512
    assert all(b["tokens"].numel() <= 1024 and (b["targets"] - b["tokens"] == 1).all() for b in batches)
    again = data.micro_batches(7)
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(batches, again, strict=True))
    halves = [b["tokens"] for rank in (0, 1) for b in data.micro_batches(7, rank, 2)]
    assert sorted(torch.cat([t.flatten() for t in halves])) == sorted(
        torch.cat([b["tokens"].flatten() for b in batches])
    )


# The whole


@pytest.fixture(scope="module")
def made(llama: Path, documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("longrope") / "run"
    return extended(llama, documents, folder, TUNED), folder


def test_the_result_has_two_lists_and_is_measured_at_every_length(made: tuple[Result, Path]) -> None:
    result, folder = made
    config = result.config
    assert config.architecture == "phi3" and config.n_ctx_train == TARGET and config.rope_original_context == 256
    assert config.rope_attn_factor == longrope_attn_factor(TARGET, 256)
    long, short = config.rope_long_factors, config.rope_short_factors
    assert long is not None and short is not None and max(long) <= 5 and max(short) <= 3
    for factors in (long, short):
        assert all(a <= b for a, b in zip(factors, factors[1:], strict=False))
    ways = {row["way"] for row in result.rows}
    assert ways == {"none", "pi", "ntk", "yarn", "found"} and len(result.rows) == 15
    assert all(math.isfinite(row["loss"]) for row in result.rows)
    stages = {path.name for path in folder.iterdir() if path.is_dir()}
    assert stages == {"1-search-512", "1-tune-512", "2-search-1024", "2-tune-1024", "short-search", "model"}


def test_the_searched_list_is_no_worse_than_yarn_on_its_fitness(made: tuple[Result, Path]) -> None:
    found = json.loads((made[1] / "2-search-1024" / "found.json").read_text())
    assert found["score"] <= found["seeds"]["yarn"]


@pytest.mark.parametrize("n", [100, 256, 257, 600])
def test_phial_transformers_and_the_engine_agree_below_and_above_the_original_context(
    n: int, made: tuple[Result, Path], tmp_path: Path
) -> None:
    folder = made[1] / "model"
    tokens = [(7 * i * i + 3) % 256 for i in range(n)]
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == "Phi3ForCausalLM"
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0]
        ours = load(folder)(torch.tensor([tokens]))[0]
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-3)
    hf_to_gguf(folder, tmp_path / "model.gguf", "f32")
    with Engine.open(tmp_path / "model.gguf", prepared=False, n_threads=1) as engine, engine.session(n) as session:
        logits = session.eval(tokens, all_logits=True)
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-2)  # the cache is float16


def test_a_finished_run_is_read_and_a_killed_one_ends_as_if_it_had_not_been(
    made: tuple[Result, Path], llama: Path, documents: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = made
    again = shutil.copytree(folder, tmp_path / "again")
    for name in ("after.json", "short-search/found.json", "2-search-1024/found.json"):
        (again / name).unlink()
    scores = (again / "2-search-1024" / "scores.jsonl").read_text().splitlines(keepends=True)
    (again / "2-search-1024" / "scores.jsonl").write_text("".join(scores[:4]))
    shutil.rmtree(again / "2-tune-1024")
    assert replace(extended(llama, documents, again, TUNED), folder=result.folder) == result
    monkeypatch.setattr("phial.train.longrope.extend.search", None)
    monkeypatch.setattr("phial.train.longrope.extend.train", None)
    assert extended(llama, documents, folder, TUNED) == result  # from its files alone


def test_another_plan_in_the_same_folder_and_impossible_targets_are_errors(
    llama: Path, documents: list[list[int]], tmp_path: Path
) -> None:
    extended(llama, documents, tmp_path, QUICK.model_copy(update={"short_ceiling": None}))
    with pytest.raises(PhialError, match="another run: config"):
        extended(llama, documents, tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PhialError, match="damaged"):
        extended(llama, documents, tmp_path)
    for target, lengths in ((256, None), (1024, (512,)), (1024, (512, 256, 1024))):
        config = QUICK.model_copy(update={"lengths": lengths})
        with pytest.raises(ArgumentError, match="context is 256"):
            extend(llama, documents, encode, target, config, tmp_path / "other")


def test_the_documented_configuration_holds_the_defaults(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "long-context.md").read_text("utf-8")
    (tmp_path / "longrope.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    read = read_config(tmp_path / "longrope.toml", LongropeConfig)
    assert read == LongropeConfig(tune=TuneConfig(short_share=0.5))
