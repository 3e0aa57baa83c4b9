"""RMSNorm's own backward pass against autograd's through the formula."""

from __future__ import annotations

import pytest
import torch

from phial.model.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x, by_out = (torch.randn(3, 5, 48).to(dtype).requires_grad_() for _ in range(2))
    y = x.float()
    expected = norm.weight * (y / (y.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()).to(dtype)
    tolerance = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(norm(x), expected, **tolerance)
    ours, theirs = (torch.autograd.grad(out, (x, norm.weight), by_out) for out in (norm(x), expected))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and b.float().std() > 0.5
        torch.testing.assert_close(a, b, **tolerance)


def test_autocast_changes_the_type_and_rounds_once() -> None:
    norm, x = RMSNorm(48, 1e-5), torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert torch.equal(out, norm(x).bfloat16())
