"""RMSNorm (arXiv 1910.07467) with the passes over memory that it needs and no more, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, back to the type of x, and only then times the weight (Phi-3's order).

    Under autocast the result is in autocast's type at once: each matrix that reads it would round it for itself.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if torch.compiler.is_compiling():
            return _plain(x, self.weight, self.eps, dtype)
        out: Tensor = _RMSNorm.apply(x, self.weight, self.eps, dtype)  # type: ignore[no-untyped-call]
        return out


def _plain(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
    """The formula, for compilers to fuse."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    out: Tensor = weight * y.to(x.dtype)
    return out if dtype is None else out.to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
        y = x.float()
        mean_square = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(y.shape[-1])
        scale: Tensor = mean_square.add_(eps).rsqrt_()
        normal = (y * scale).to(x.dtype)
        ctx.save_for_backward(normal, weight, scale)
        out = normal * weight
        return out if dtype is None else out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """With n = x * scale: dx = scale * (w*dy - n * mean(n * w*dy)), dw = sum over rows of n * dy."""
        normal, weight, scale = ctx.saved_tensors
        by_out, n = by_out.float(), normal.float()
        product = n * by_out
        by_weight = product.flatten(0, -2).sum(0)
        mean = (product @ weight.float()).div_(n.shape[-1])
        by_x = (by_out * weight).addcmul_(n, mean[..., None], value=-1).mul_(scale)
        return by_x.to(normal.dtype), by_weight.to(weight.dtype), None, None
