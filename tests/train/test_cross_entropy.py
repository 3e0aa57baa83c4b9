"""Chunked cross-entropy against PyTorch's over all logits: values, gradients, what surrounds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.train.counting import TINY, LargestTensor
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from phial.model.transformer import Transformer
from phial.train import cross_entropy
from phial.train.cross_entropy import IGNORED, linear_cross_entropy
from phial.train.objective import NextToken

Loss = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    logits = functional.linear(hidden, weight).float()
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    squares = logits.logsumexp(-1)[targets != IGNORED].square().sum()
    return nll + z_loss * squares, squares.detach()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_FEWEST", 1)
    monkeypatch.setitem(cross_entropy._CHUNK, "cpu", 7 * 50)  # 7 rows of the 24 here: the last chunk is shorter


def _given() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 12, 16, generator=random).requires_grad_()
    weight = torch.randn(50, 16, generator=random).requires_grad_()
    targets = torch.randint(50, (2, 12), generator=random)
    targets[0, 3:11] = IGNORED  # a chunk without any target among them
    return hidden, weight, targets


def _results(loss: Loss, z_loss: float, bf16: bool) -> list[Tensor]:
    hidden, weight, targets = _given()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, squares = loss(hidden, weight, targets, z_loss)
    return [total, squares, *torch.autograd.grad(total * 0.3, (hidden, weight))]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("bf16", [False, True])
def test_values_and_gradients_are_those_over_all_logits(z_loss: float, bf16: bool) -> None:
    tolerance = {"atol": 0.02, "rtol": 0.02} if bf16 else {"atol": 1e-6, "rtol": 1e-5}
    for ours, theirs in zip(_results(linear_cross_entropy, z_loss, bf16), _results(plain, z_loss, bf16), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_changes_nothing_for_the_other(frozen: int) -> None:
    expected = _results(linear_cross_entropy, 0.01, False)
    given = _given()
    given[frozen].requires_grad_(False)
    total, _ = linear_cross_entropy(*given, 0.01)
    (gradient,) = torch.autograd.grad(total * 0.3, given[1 - frozen])
    assert torch.equal(gradient, expected[3 - frozen])


def test_targets_that_are_all_ignored_give_zero_and_no_nan() -> None:
    hidden, weight, targets = _given()
    total, squares = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED), 0.1)
    assert total == 0 == squares
    for gradient in torch.autograd.grad(total, (hidden, weight)):
        assert (gradient == 0).all()


def test_confident_logits_neither_overflow_nor_lose_the_loss() -> None:
    weight = torch.eye(50)
    hidden = 1000 * weight[None, :3]
    total, _ = linear_cross_entropy(hidden, weight, torch.tensor([[0, 1, 7]]))  # two certain and right, one wrong
    assert total == 1000


def test_evaluation_makes_no_gradients_and_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = _given()
    expected = linear_cross_entropy(hidden, weight, targets)[0].detach()
    monkeypatch.setattr(torch, "mul", None)  # of the gradients' half
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets)[0], expected)


def test_never_are_all_logits_there() -> None:
    hidden, weight, targets = _given()
    targets = targets.clamp(min=0)  # all count, so that their logits would be more than the weights are
    with LargestTensor() as made:
        linear_cross_entropy(hidden, weight, targets, 0.1)[0].backward()
    assert made.largest == weight.numel() < targets.numel() * len(weight)


def _model_gradients(wrap: Callable[[nn.Module], nn.Module], z_loss: float = 0.001) -> list[Tensor]:
    torch.manual_seed(0)
    model = Transformer(TINY)
    tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    loss = NextToken(z_loss)(wrap(model), {"tokens": tokens, "targets": tokens.roll(-1, 1)})
    loss.total.backward()  # type: ignore[no-untyped-call]
    return [loss.sums["loss"], loss.sums["z"], *(p.grad for p in model.parameters() if p.grad is not None)]


class _Recomputed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, **options: object) -> object:
        return checkpoint(self.model, tokens, use_reentrant=False, **options)


@pytest.mark.parametrize("how", ["recomputed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_tied_weights_recomputation_and_compilation(how: str) -> None:
    wraps = {"recomputed": _Recomputed, "compiled": lambda model: torch.compile(model)}
    for ours, expected in zip(_model_gradients(wraps[how]), _model_gradients(lambda m: m), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_tied_model_has_the_gradients_of_logits_and_cross_entropy() -> None:
    ours = _model_gradients(lambda m: m, z_loss=0.001)
    torch.manual_seed(0)
    model = Transformer(TINY)
    tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    nll = functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten(), reduction="sum")
    (nll + 0.001 * logits.logsumexp(-1).square().sum()).backward()
    for a, p in zip(ours[2:], model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(a, p.grad, atol=1e-5, rtol=1e-4)
