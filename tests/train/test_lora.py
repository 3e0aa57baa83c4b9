"""Adapters: what they add, that nothing else moves, and that what is written is what PEFT and the engine read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.tiny_models import write_tiny
from tests.train.counting import Phases, tiny_model
from tests.train.test_resume import assert_same_run, tensors
from tests.train.test_sft import CHATS

from phial import Llama
from phial.config_file import checked
from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.formats import GGMLType
from phial.train.adapter_files import read_adapter, write_adapter
from phial.train.cross_entropy import linear_cross_entropy
from phial.train.loop import LoopConfig, train
from phial.train.lora import LoraConfig, adapted, add_lora, merge
from phial.train.objective import NextToken
from phial.train.optim import OptimizerConfig, make_optimizers
from phial.train.sft import SftConfig, sft
from phial.train.start import open_start

CONFIG = LoraConfig(rank=3, alpha=7.0)  # neither 1 nor 2 as a scale
TOKENS = torch.tensor([[1, 5, 9, 3, 60, 2]])
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS)
    return found


def _fill(model: torch.nn.Module) -> None:
    """Adapters as after some training, of the size of the weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in adapted(model).values():
            module.lora_B.weight.normal_(std=0.05)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.set_num_threads(1)
    made = tiny_model()
    add_lora(made, CONFIG)
    return made


def test_a_model_begins_as_it_was_and_only_adapters_learn(model: torch.nn.Module) -> None:
    assert torch.equal(_logits(model), _logits(tiny_model()))
    assert len(adapted(model)) == 2 * len(MATRICES)
    for name, p in model.named_parameters():
        assert p.requires_grad == (".lora_" in name), name
    again = tiny_model()
    add_lora(again, CONFIG)
    for name, module in adapted(again).items():
        assert torch.equal(module.lora_A.weight, adapted(model)[name].lora_A.weight)
    add_lora(other := tiny_model(), CONFIG, seed=1)
    assert not torch.equal(*(adapted(m)["model.layers.0.mlp.up_proj"].lora_A.weight for m in (model, other)))


def test_what_is_written_adds_alpha_over_rank_times_b_a(model: torch.nn.Module, tmp_path: Path) -> None:
    """The formula of the paper, from the file, in float64, on a model that knows no adapters."""
    _fill(model)
    write_adapter(model, CONFIG, tmp_path / "adapter", "tiny")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    plain = tiny_model()
    weights = dict(plain.named_parameters())
    for name in sorted({key.rpartition(".lora_")[0] for key in stored}):
        product = stored[f"{name}.lora_B.weight"].astype(np.float64) @ stored[f"{name}.lora_A.weight"]
        weight = weights[name.removeprefix("base_model.model.") + ".weight"]
        weight.data += torch.from_numpy(settings["lora_alpha"] / settings["r"] * product).float()
    torch.testing.assert_close(_logits(model), _logits(plain), atol=2e-6, rtol=1e-5)
    assert (_logits(model) - _logits(tiny_model())).abs().max() > 0.01
    assert settings["target_modules"] == sorted(MATRICES)
    merge(model)
    assert not adapted(model)
    torch.testing.assert_close(_logits(model), _logits(plain), atol=2e-6, rtol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    dropped, plain = tiny_model(), tiny_model()
    for made, dropout in ((dropped, 0.5), (plain, 0.0)):
        add_lora(made, CONFIG.model_copy(update={"dropout": dropout}))
        _fill(made)
    assert torch.equal(_logits(dropped), _logits(plain))
    assert not torch.equal(dropped.train()(TOKENS), dropped(TOKENS))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_leaves_the_base_alone(model: torch.nn.Module, tmp_path: Path, recompute: bool) -> None:
    _run(model, tmp_path, steps=2, recompute=recompute)
    for name, p in tiny_model().named_parameters():
        found = dict(model.named_parameters())
        assert torch.equal(p, found.get(name, found.get(name.replace(".weight", ".base_layer.weight"))))
    assert all(module.lora_B.weight.abs().max() > 0 for module in adapted(model).values())


def _run(model: torch.nn.Module, folder: Path, **settings: Any) -> None:
    config = LoopConfig.model_validate({"steps": 6, "checkpoint_every": 3, "ema": 0.9, **settings})
    train(model, Phases(), NextToken(), config, folder, quiet=True, about={"lora": CONFIG.model_dump()})


def _adapted_model(dropout: float = 0.1) -> torch.nn.Module:
    made = tiny_model()
    add_lora(made, CONFIG.model_copy(update={"dropout": dropout}))
    return made


def test_a_stopped_run_goes_on_exactly_and_keeps_adapters_alone(tmp_path: Path) -> None:
    whole, halved = _adapted_model(), _adapted_model()
    _run(whole, tmp_path / "whole")
    (tmp_path / "halved").mkdir()
    with pytest.raises(KeyboardInterrupt):
        _run_stopped(halved, tmp_path / "halved", after=3)
    resumed = _adapted_model()
    _run(resumed, tmp_path / "halved")
    assert_same_run(tmp_path / "whole", tmp_path / "halved")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    kept = [name for name, value in tensors(tmp_path / "whole").items() if torch.is_tensor(value) and value.ndim]
    assert kept and all(".lora_" in name for name in kept)
    assert any("/average/" in name for name in kept)


def _run_stopped(model: torch.nn.Module, folder: Path, after: int) -> None:
    """A run that is interrupted while the data of a step are made."""
    import os
    import signal

    class Stopping(Phases):
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Any:
            if step == after:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().micro_batches(step, rank, world)

    config = LoopConfig.model_validate({"steps": 6, "checkpoint_every": 3, "ema": 0.9})
    train(model, Stopping(), NextToken(), config, folder, quiet=True, about={"lora": CONFIG.model_dump()})


def test_a_run_does_not_go_on_upon_another_base(tmp_path: Path) -> None:
    _run(_adapted_model(), tmp_path, steps=3)
    other = _adapted_model()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    with pytest.raises(PhialError, match="has frozen = "):
        _run(other, tmp_path, steps=3)


def test_a_frozen_output_matrix_costs_no_gradient() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(5, 8), torch.randn(11, 8), torch.tensor([1, 0, 10, -100, 3])
    found = []
    for frozen in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        total, _ = linear_cross_entropy(h, w, targets)
        assert (total.grad_fn.saved_tensors[1] is None) == frozen
        total.backward()
        assert (w.grad is None) == frozen
        found.append(h.grad)
    assert torch.equal(*found)


def test_adapters_go_on_from_a_folder_and_only_from_their_own(model: torch.nn.Module, tmp_path: Path) -> None:
    _fill(model)
    write_adapter(model, CONFIG, tmp_path / "a", "tiny")
    again = _adapted_model(0.0)
    read_adapter(again, CONFIG, tmp_path / "a")
    assert torch.equal(_logits(again), _logits(model))
    with pytest.raises(FormatError, match=r"has lora_alpha = 7, the run 8"):
        read_adapter(again, CONFIG.model_copy(update={"alpha": 8.0}), tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    was = config.read_text("utf-8")
    config.write_text(was.replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'), "utf-8")
    with pytest.raises(FormatError, match="has fan_in_fan_out = True"):
        read_adapter(again, CONFIG, tmp_path / "a")
    config.write_text(was, "utf-8")
    fewer = LoraConfig(rank=3, alpha=7.0, targets=("q_proj",))
    add_lora(narrow := tiny_model(), fewer)
    with pytest.raises(FormatError, match="only the adapter has base_model.model.model.layers.0"):
        read_adapter(narrow, fewer, tmp_path / "a")
    with pytest.raises(FormatError, match="has no adapter_config.json"):
        read_adapter(again, CONFIG, tmp_path)


def test_a_rank_above_that_of_every_target_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match="rank is 100000, and no adapted matrix has more than"):
        add_lora(model, LoraConfig(rank=100_000))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets_that_no_layer_has_are_named(model: torch.nn.Module) -> None:
    with pytest.raises(PhialError, match="no layer has a matrix 'lm_head'") as caught:
        add_lora(tiny_model(), LoraConfig(targets=("q_proj", "lm_head")))
    assert "down_proj" in str(caught.value.hint)
    with pytest.raises(PhialError, match="adapters already"):
        add_lora(model, CONFIG)


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_sft_writes_an_adapter_that_the_engine_runs(architecture: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file = write_tiny(tmp_path / "tiny.gguf", architecture, GGMLType.F32)
    lora = {"rank": 4, "alpha": 20.0, "merge": True}
    settings = {"sequence": 96, "batch": 2, "epochs": 3, "lora": lora, "loop": {"optimizer": {"lr": 0.05}}}
    config = checked(SftConfig, settings, "test.toml")
    start = open_start(file, lora=config.lora)
    made = sft(config, start, CHATS, {}, tmp_path / "run", lambda text: None)
    ids = start.template.encode(CHATS[1].messages, start.tokenizer)
    merged = open_start(tmp_path / "run")
    with torch.no_grad():
        ours = merged.model(torch.tensor([ids]))[0, -1].numpy()
        before = open_start(file).model(torch.tensor([ids]))[0, -1].numpy()
    llm = Llama(str(file), n_ctx=128, logits_all=True, lora_path=made["adapter"], verbose=False)
    llm.eval(ids)
    theirs = np.array(llm.scores[len(ids) - 1])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999
    assert np.corrcoef(ours, before)[0, 1] < 0.99
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(ours - before).max()


def test_a_run_that_made_an_adapter_says_how_to_go_on_from_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    with pytest.raises(PhialError, match="has made an adapter, not a model") as caught:
        open_start(tmp_path / "run")
    assert "lora.adapter" in str(caught.value.hint)


def test_a_width_to_tune_at_is_refused_where_weights_are_frozen(model: torch.nn.Module) -> None:
    with pytest.raises(PhialError, match="base_width is given and weights are frozen"):
        make_optimizers(model, OptimizerConfig(base_width=16))


def test_rates_are_gentle_and_an_adapters_are_higher() -> None:
    assert SftConfig().loop.optimizer.lr == 2e-5
    assert checked(SftConfig, {"lora": {}}, "t").loop.optimizer.lr == 2e-4
    mine = checked(SftConfig, {"lora": {}, "loop": {"optimizer": {"lr": 1.0}, "clip": 2.0}}, "t").loop
    assert (mine.optimizer.lr, mine.optimizer.weight_decay, mine.clip, mine.schedule.kind) == (1.0, 0.0, 2.0, "cosine")
