"""Pretraining: what a configuration comes to, and the way from shards to a model that phial runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_packed import Tokens

from phial import Llama
from phial.cli import console
from phial.cli.app import app
from phial.config_file import checked
from phial.data.shards import ShardWriter, write_index
from phial.data.vocabulary import write_vocabulary
from phial.errors import PhialError
from phial.gguf.open_tokenizer import open_tokenizer
from phial.recipe.pretraining import run_pretraining
from phial.train.optim import lr_factor
from phial.train.pretrain import PretrainConfig, batches, evaluation, loop_config, new_model, read_pretrain

SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_ff": 64}
WORDS = ["the cat sat on the mat", "a dog ran to the red house", "two birds sing all day long"]


def _config(**changes: Any) -> PretrainConfig:
    table = {
        "tokenizer": "vocabulary",
        "model": SHAPE,
        "phases": [{"name": "general", "data": "general"}, {"name": "best", "data": "best", "epochs": 2}],
        "sequence": 16,
        "batch_tokens": 64,
        "micro_batch": 2,
    }
    return checked(PretrainConfig, table | changes, "test.toml")


def test_the_rate_decays_over_the_last_phase() -> None:
    config = _config(loop={"schedule": {"warmup": 2}})
    data = batches(config, [Tokens([200]), Tokens([100])])
    assert data.steps == [4, 4]  # 13 windows of 16 tokens; twice 7
    loop = loop_config(config, data)
    factors = [lr_factor(loop.schedule, step, loop.steps) for step in range(loop.steps)]
    assert loop.steps == 8
    assert factors[1:5] == [1.0] * 4
    assert factors[5:] == [0.75, 0.5, 0.25]
    own = loop_config(_config(loop={"schedule": {"decay": 0.5}}), data)
    assert own.schedule.decay == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 60}, "batch_tokens 60 is no multiple of sequence 16"),
        ({"phases": [{"name": "a", "data": "a", "tokens": 5, "epochs": 1}]}, "both tokens and epochs"),
        ({"phases": [{"name": "a", "data": "a"}] * 2}, "phases need different names"),
        ({"loop": {"steps": 5}}, "steps follow from the phases"),
        ({"loop": {"stepz": 5}}, "loop.stepz: is not known"),
        ({"model": SHAPE | {"n_heads": 2}}, r"model\.n_heads: is not known"),
        ({"preset": "phi-3-mini-4k"}, "either a table"),
        ({"sequenz": 5}, "sequenz: is not known"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PhialError, match=message):
        _config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None, "preset": "phi-9"}, "preset is 'phi-9'"),
        ({"model": SHAPE | {"n_head": 5}}, "n_embd 32 is no multiple of n_head 5"),
        ({"model": SHAPE | {"n_ctx_train": 8}}, "sequence is 16, the model's context 8"),
        ({"model": SHAPE | {"architecture": "gpt"}}, "architecture 'gpt'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PhialError, match=message):
        new_model(_config(**changes), 300)


def test_more_epochs_than_the_cap_are_refused() -> None:
    phases = [{"name": "general", "data": "general", "tokens": 1000}]
    with pytest.raises(PhialError, match=r"wants 4\.77 epochs of general, the cap is 4"):
        batches(_config(phases=phases), [Tokens([200])])
    assert batches(_config(phases=phases, max_epochs=5), [Tokens([200])]).steps == [16]


def test_what_layers_add_starts_smaller() -> None:
    model = new_model(_config(model={**SHAPE, "n_embd": 128, "n_layer": 8}), 300)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert float(weight.detach().std()) == pytest.approx(std, rel=0.05), name
    again = new_model(_config(model={**SHAPE, "n_embd": 128, "n_layer": 8}), 300)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@torch.no_grad()
def test_validation_is_the_mean_over_the_tokens_of_each_source() -> None:
    model = new_model(_config(), 300)
    model.model.embed_tokens.weight *= 50  # so that tokens differ
    found = evaluation(_config(), {"long": Tokens([7, 10]), "short": Tokens([5])})(model)
    sums = {}
    for name, documents in {"long": [range(7), range(7, 17)], "short": [range(5)]}.items():
        nll = 0.0
        for document in documents:  # each alone
            tokens = torch.tensor([list(document)])
            nll += float(torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="sum"))
        count = sum(len(document) - 1 for document in documents)
        assert found[f"validation/{name}/loss"] == pytest.approx(nll / count, rel=1e-5)
        sums[name] = (nll, count)
    mean = sum(nll for nll, _ in sums.values()) / sum(count for _, count in sums.values())
    assert found["validation/loss"] == pytest.approx(mean, rel=1e-5)
    assert found["validation/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def _write_shards(folder: Path, texts: dict[str, list[str]], tokenizer: Path) -> None:
    """A shard a source."""
    opened = open_tokenizer(str(tokenizer))
    entries = []
    for place, (source, documents) in enumerate(texts.items()):
        writer = ShardWriter(folder, f"{place:05}", opened.tokenizer.n_vocab)
        for number, text in enumerate(documents):
            writer.add([*opened.tokenizer.encode(text, add_bos=False), opened.eos_id], number)
        entries.append(writer.close(source=source))
    write_index(folder, entries, opened.described)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary, two phases and a validation folder, and the file that says so."""
    folder = tmp_path_factory.mktemp("corpus")
    write_vocabulary(WORDS * 5, 288, folder / "vocabulary")
    _write_shards(folder / "general", {"web": WORDS[:2] * 20}, folder / "vocabulary")
    _write_shards(folder / "best", {"web": WORDS[:1] * 5, "made": WORDS[2:] * 20}, folder / "vocabulary")
    _write_shards(folder / "validation", {"web": WORDS[:2], "made": WORDS[2:], "none": []}, folder / "vocabulary")
    (folder / "pretrain.toml").write_text("""
        tokenizer = "vocabulary"
        validation = "validation"
        sequence = 32
        batch_tokens = 128
        micro_batch = 4
        max_epochs = 20
        model = { n_embd = 32, n_layer = 2, n_head = 2, n_ff = 64 }
        phases = [
            { name = "general", data = "general", epochs = 6 },
            { name = "best", data = "best", epochs = 12 },
        ]
        [loop.optimizer]
        lr = 0.01
    """)
    return folder


def test_from_shards_to_an_answer(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert console.run(app, ["train", "pretrain", str(corpus / "pretrain.toml"), "-o", str(run), "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["metrics"]["validation/made/perplexity"] < 4  # a guess has 288
    assert result["metrics"]["validation/web/perplexity"] < 8
    assert "6.00 epochs" in told.err and "none has no validation text" in told.err
    assert console.run(app, ["convert", result["model"], str(tmp_path / "made.gguf"), "--type", "q8_0"]) == 0
    llm = Llama(model_path=str(tmp_path / "made.gguf"), n_threads=1, verbose=False)
    assert llm("two birds", max_tokens=32, temperature=0)["choices"][0]["text"] == " sing all day long"


def test_shards_of_another_tokenizer_are_refused(corpus: Path, tmp_path: Path) -> None:
    write_vocabulary(WORDS * 5, 280, tmp_path / "vocabulary")
    config = read_pretrain(corpus / "pretrain.toml").model_copy(update={"tokenizer": tmp_path / "vocabulary"})
    with pytest.raises(PhialError, match="general was made with another tokenizer"):
        run_pretraining(config, tmp_path / "run", print)


def test_a_run_that_is_stopped_says_how_it_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("phial.recipe.pretraining.run_pretraining", stopped)
    status = console.run(app, ["train", "pretrain", str(corpus / "pretrain.toml"), "-o", str(tmp_path / "run")])
    assert status == console.INTERRUPTED
    assert f"the same command goes on from {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("phial.cli.extras.find_spec", lambda name: None if name == "torch" else object())
    assert console.run(app, ["train", "pretrain", str(corpus / "pretrain.toml"), "-o", "run"]) == console.MISUSE
    assert capsys.readouterr().err.splitlines()[0] == "error: torch is needed to train a model"


@pytest.mark.slow
def test_two_processes_make_the_model_that_one_makes(corpus: Path, tmp_path: Path) -> None:
    from phial.model.checkpoint import load

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for name, start in (("one", [sys.executable, "-m"]), ("two", torchrun)):
        command = [*start, "phial", "train", "pretrain", str(corpus / "pretrain.toml"), "-o", str(tmp_path / name)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["model"] == str(tmp_path / name / "model")  # said once
    one, two = (load(tmp_path / name / "model") for name in ("one", "two"))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3, msg=name)
