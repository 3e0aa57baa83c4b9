"""Chunked log-probabilities against PyTorch's over all logits: values, gradients, and what is never held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.train.counting import TINY, LargestTensor
from torch import Tensor
from torch.nn import functional

from phial.model.transformer import Transformer
from phial.train import cross_entropy
from phial.train.cross_entropy import IGNORED
from phial.train.log_probs import linear_log_probs

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    log_p = functional.linear(hidden, weight).float().log_softmax(-1)
    return log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets != IGNORED)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_FEWEST", 1)
    monkeypatch.setitem(cross_entropy._CHUNK, "cpu", 5 * 50)  # 5 rows of the 16 that count: the last chunk is shorter


def _given() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 12, 16, generator=random), torch.randn(50, 16, generator=random)
    targets = torch.randint(50, (2, 12), generator=random)
    targets[0, 3:11] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def _results(log_probs: LogProbs, bf16: bool, frozen: bool = False) -> list[Tensor]:
    """Log-probabilities and gradients of a function of them that weighs each otherwise."""
    hidden, weight, targets = _given()
    weight.requires_grad_(not frozen)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = log_probs(hidden, weight, targets)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    loss = torch.sigmoid((found * weights).sum()) + (found * weights.square()).sum()
    return [found, *torch.autograd.grad(loss, (hidden,) if frozen else (hidden, weight))]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_values_and_gradients_are_those_over_all_logits(bf16: bool, frozen: bool) -> None:
    tolerance = {"atol": 0.03, "rtol": 0.02} if bf16 else {"atol": 1e-6, "rtol": 1e-6}
    theirs = _results(plain, bf16, frozen)
    for ours, expected in zip(_results(linear_log_probs, bf16, frozen), theirs, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, **tolerance)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_finite_differences(frozen: bool) -> None:
    """In float64 but for the log-probabilities, hence the wide step."""
    hidden, weight, targets = (t.detach() for t in _given())
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_(not frozen)
    inputs = (hidden,) if frozen else (hidden, weight)
    assert torch.autograd.gradcheck(
        lambda *given: linear_log_probs(given[0], given[-1] if len(given) > 1 else weight, targets).sum(-1),
        inputs, eps=1e-2, atol=5e-3, nondet_tol=1e-6,
    )  # fmt: skip


def test_without_any_target_there_is_no_gradient_and_no_nan() -> None:
    hidden, weight, targets = _given()
    found = linear_log_probs(hidden, weight, torch.full_like(targets, IGNORED))
    assert (found == 0).all()
    for gradient in torch.autograd.grad(found.sum(), (hidden, weight)):
        assert (gradient == 0).all()


def test_never_are_all_logits_there() -> None:
    hidden, weight, targets = _given()
    targets = targets.clamp(min=0)  # all count, so that their logits would be more than the weights are
    with LargestTensor() as made:
        linear_log_probs(hidden, weight, targets).sum().backward()
    assert made.largest == weight.numel() < 24 * len(weight)


def test_a_tied_model_has_the_gradients_of_logits() -> None:
    tokens = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[0, :7] = IGNORED
    gradients = []
    for log_probs in (linear_log_probs, plain):
        torch.manual_seed(0)
        model = Transformer(TINY)
        model(tokens, head=lambda x, w, f=log_probs: f(x, w, targets).sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
