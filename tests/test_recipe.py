"""Recipes: a small one from text to an answer, what is redone when something changes, and those that come along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from phial.cli import console
from phial.cli.app import app
from phial.errors import PhialError
from phial.gguf.container import read_gguf
from phial.recipe.make import make
from phial.recipe.recipe import resolve

SMALL = """
name = "small"

[texts.word_problems]
count = 300
held_out = 5

[data]
tasks = 2
[data.clean]
html = "never"
heuristics = []
[[data.sources]]
name = "fables"
paths = ["fables.jsonl"]
licence = "CC0-1.0"

[vocabulary]
size = 400

[mix]
validation = 0.05
phases = [
    { name = "general", sources = [{ source = "fables" }] },
    { name = "best", sources = [{ source = "word-problems" }] },
]

[pretrain]
sequence = 64
batch_tokens = 512
micro_batch = 8
model = { n_embd = 32, n_layer = 2, n_head = 2, n_ff = 64, tie_embeddings = true }
loop = { checkpoint_every = 5, optimizer = { lr = 0.02 } }

[samples]
prompts = ["Question: Ada has"]
max_tokens = 8
"""
STAGES = ["texts", "data", "vocabulary", "mix", "pretrain", "gguf", "samples"]


def _fables() -> str:
    """Forty documents that no rule takes for duplicates."""
    animals = "fox crow wolf lamb lion mouse hare stork frog goat heron eagle".split()
    rows = []
    for number in range(40):
        one, other = animals[number % 12], animals[(number * 5 + 1) % 12]
        lines = [f"The {one} met the {animals[(number * 7 + k) % 12]} on day {number * k + k}." for k in range(6)]
        rows.append(json.dumps({"text": " ".join([f"A {one} and a {other} lived by a river.", *lines])}))
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe beside its source, carried out into `out`."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "fables.jsonl").write_text(_fables())
    (folder / "small.toml").write_text(SMALL)
    make(resolve(folder / "small.toml", folder / "out"), lambda _: None)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, for a test to change."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def _again(folder: Path, recipe: str = SMALL) -> list[str]:
    """Carry out a recipe there; the stages that were run."""
    (folder / "small.toml").write_text(recipe)
    said: list[str] = []
    stages = make(resolve(folder / "small.toml", folder / "out"), said.append)
    assert list(stages) == STAGES
    return [line.removesuffix(" ...") for line in said if line.endswith(" ...")]


def test_a_recipe_makes_a_model_and_says_of_what(made: Path) -> None:
    stages = json.loads((made / "out" / "manifest.json").read_text())["stages"]
    assert list(stages) == sorted(STAGES)
    metrics = stages["pretrain"]["metrics"]
    assert [phase["name"] for phase in metrics["phases"]] == ["general", "best"]
    assert metrics["metrics"]["validation/word-problems/perplexity"] < 200  # a guess has 400
    assert stages["samples"]["metrics"]["problems"] == 5
    assert stages["gguf"]["inputs"] == stages["pretrain"]["outputs"]
    with read_gguf(made / "out" / "small-q8_0.gguf") as file:
        assert file.metadata["general.name"] == "small"
    held_out = [json.loads(line) for line in (made / "out" / "texts" / "word-problems-held-out.jsonl").open()]
    assert len(held_out) == 5
    assert not any(row["prompt"] in (made / "out" / "texts" / "word-problems.jsonl").read_text() for row in held_out)


@pytest.mark.parametrize(
    ("was", "now", "redone"),
    [
        ("", "", []),
        ("max_tokens = 8", "max_tokens = 9", ["samples"]),
        ("[samples]", '[gguf]\ntype = "Q4_0"\n[samples]', ["gguf", "samples"]),
        ("validation = 0.05", "validation = 0.06\nseed = 1", ["mix", "pretrain"]),
    ],
)
def test_only_what_changed_is_redone(copy: Path, was: str, now: str, redone: list[str]) -> None:
    if "pretrain" in redone:
        with pytest.raises(PhialError, match="the run in .* has") as refused:
            _again(copy, SMALL.replace(was, now))
        assert "remove" in refused.value.hint  # hours of training are never thrown away unasked
        shutil.rmtree(copy / "out" / "pretrain")
        assert _again(copy, SMALL.replace(was, now)) == ["pretrain", "gguf", "samples"]
    else:
        assert _again(copy, SMALL.replace(was, now)) == redone


def test_a_stage_whose_files_changed_is_redone(copy: Path) -> None:
    with (copy / "out" / "small-q8_0.gguf").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    (copy / "out" / "samples.json").unlink()
    assert _again(copy) == ["gguf", "samples"]


def test_a_stopped_recipe_goes_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "out" / "pretrain" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(copy / "out" / "pretrain" / "model")
    newest = sorted((copy / "out" / "pretrain" / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    assert _again(copy) == ["pretrain"]
    assert (copy / "out" / "pretrain" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("count = 300", "count = 300\ncounts = 3", "texts.word_problems.counts: is not known"),
        ("size = 400", "size = 400\n[gguf]\ntype = 'Q7'", "type 'Q7' is no recipe"),
        ("html = ", "htm = ", r"\[data\]: clean.htm: is not known"),
        ("sequence = 64", "sequence = 60", r"\[pretrain\]: .*no multiple of sequence"),
        ("sequence = 64", "sequence = 64\ntokenizer = 'x'", "has tokenizer, which the recipe fills in"),
        ("n_head = 2", "n_head = 3", "n_embd 32 is no multiple of n_head 3"),
        ("[vocabulary]\nsize = 400", "", "the vocabulary is either"),
        ("validation = 0.05", "validation = 2", r"\[mix\]: validation"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(tmp_path: Path, was: str, now: str, message: str) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace(was, now))
    with pytest.raises(PhialError, match=message):
        resolve(tmp_path / "small.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "low", "high"), [("tiny", 1.0e6, 1.3e6), ("pocket", 4.0e7, 4.5e7), ("mini", 3.82e9, 3.83e9)]
)
def test_the_recipes_that_come_along_are_right(
    repository: Path, capsys: pytest.CaptureFixture[str], name: str, low: float, high: float
) -> None:
    assert console.run(app, ["make", str(repository / "recipes" / f"{name}.toml"), "--check", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert name in told["name"] and low < told["parameters"] < high


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tiny_recipe_solves_problems_that_it_never_saw(repository: Path, tmp_path: Path) -> None:
    stages = make(resolve(repository / "recipes" / "tiny.toml", tmp_path), print)
    metrics = stages["pretrain"]["metrics"]["metrics"]
    assert metrics["validation/word-problems/perplexity"] < 2
    assert metrics["validation/python-docs/perplexity"] < 200  # a guess has 2,048
    answered = stages["samples"]["metrics"]
    assert answered["problems"] == 200 and answered["right"] >= 100
