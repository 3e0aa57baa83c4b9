"""Optimisers and schedules: who owns which weights, the factor at exact steps, Muon's step, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tests.train.test_loop import TINY
from torch import nn

from phial.errors import PhialError
from phial.model.transformer import Transformer
from phial.train.optim import OptimizerConfig, ScheduleConfig, lr_factor, make_optimizers, parameter_groups

UNTIED = replace(TINY, tie_embeddings=False)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [  # of 10 steps
        (ScheduleConfig(warmup=2, decay=4), [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (ScheduleConfig(warmup=0.2, decay=0.4, floor=0.2), [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        (ScheduleConfig(warmup=0.04, decay=0), [1] * 10),  # less than half a step of warmup is none
        (ScheduleConfig(kind="linear", warmup=2), [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (ScheduleConfig(kind="linear", warmup=0, floor=0.5), [1 - n / 20 for n in range(10)]),
        (ScheduleConfig(kind="constant", warmup=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        (ScheduleConfig(warmup=2.5, decay=1), [0.4, 0.8, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_factors_at_exact_steps(schedule: ScheduleConfig, expected: list[float]) -> None:
    assert [lr_factor(schedule, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-12)


def test_a_cosine_is_one_after_the_warmup_halfway_down_in_the_middle_and_ends_at_the_floor() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup=20, floor=0.1)
    factors = [lr_factor(schedule, step, 120) for step in (19, 20, 45, 70, 95, 120)]
    quarter = (1 + 0.5**0.5) / 2
    expected = [1, 1, 0.1 + 0.9 * quarter, 0.55, 0.1 + 0.9 * (1 - quarter), 0.1]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["wsd", "linear", "cosine", "constant"])
def test_more_warmup_than_steps_is_refused(kind: str) -> None:
    with pytest.raises(PhialError, match="20 steps of warmup"):
        lr_factor(ScheduleConfig(kind=kind, warmup=20), 0, 10)  # type: ignore[arg-type]
    with pytest.raises(PhialError, match="3 steps of warmup and 8 of decay are more than all 10"):
        lr_factor(ScheduleConfig(warmup=3, decay=8), 0, 10)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ScheduleConfig, {"kind": "cosine", "decay": 0.2}),
        (ScheduleConfig, {"kind": "constant", "floor": 0.1}),
        (OptimizerConfig, {"momentum": 0.9}),
    ],
)
def test_what_would_not_be_used_is_refused(config: type, values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**values)


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_one_owner_and_only_matrices_of_layers_are_decayed(kind: str, architecture: str) -> None:
    model = Transformer(replace(UNTIED, architecture=architecture))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, OptimizerConfig(kind=kind, lr=0.01))  # type: ignore[arg-type]
    owned = [(o, group, names[id(p)]) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(name for *_, name in owned) == sorted(names.values())
    for optimizer, group, name in owned:
        hidden = "_proj" in name
        assert group["weight_decay"] == (0.1 if hidden or name == "lm_head.weight" else 0), name
        assert (type(optimizer).__name__ == "Muon") is (hidden and kind == "muon"), name
        assert group["peak_lr"] == 0.01


def test_a_tied_embedding_is_one_parameter_without_decay() -> None:
    groups = parameter_groups(Transformer(TINY), OptimizerConfig())
    assert [g["weight_decay"] for g in groups if g["role"] == "embedding"] == [0]
    assert not [g for g in groups if g["role"] == "output"]


def test_muons_step_turns_every_direction_alike_and_has_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32, bias=False))
    (muon,) = make_optimizers(model, OptimizerConfig(kind="muon", lr=0.01, weight_decay=0.0))
    before, weight = model[0].weight.detach().clone(), model[0].weight
    scales = torch.logspace(0, -1.5, 48)  # a gradient whose directions differ thirtyfold
    weight.grad = torch.randn(32, 48) * scales
    muon.step()
    step = (weight - before).detach()
    singular = torch.linalg.svdvals(step) / (0.2 * 48**0.5 * 0.01)
    assert singular.min() > 0.5 and singular.max() < 1.3
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_a_torch_without_muon_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(PhialError, match="has no Muon") as caught:
        make_optimizers(Transformer(TINY), OptimizerConfig(kind="muon"))
    assert "adamw" in str(caught.value.hint)
