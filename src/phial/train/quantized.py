"""Frozen matrices that stay in their blocks (QLoRA, arXiv 2305.14314), so that adapters learn against what is run.

A matrix is decoded strip by strip where it is multiplied, on the way forward and again on the way back, and never kept:
memory is that of the blocks. gguf/blocks.py defines what the bytes are worth, and the values here are the same bit for
bit. Embeddings and the output matrix are dequantised once: a row is looked up in the one, and losses want the other
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from phial.gguf.formats import BLOCK_SIZES, FORMATS, BlockFormat, GGMLType

_STRIP = 1 << 21  # values of a matrix that are decoded at once: 8 MiB
_PASS = 1 << 18  # values that the decoder's temporaries hold, so that they stay in a core's cache
_PLAIN = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose matrix is held as a GGUF file holds it.

    Args:
        blocks: (rows, bytes of a row), uint8. bias: (rows,), a frozen parameter.
    """

    blocks: Tensor

    def __init__(self, kind: GGMLType, blocks: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        elements, size = BLOCK_SIZES[kind]
        self.kind, self.out_features, self.in_features = kind, blocks.shape[0], blocks.shape[1] // size * elements
        self.register_buffer("blocks", blocks, persistent=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _product(x, self.blocks, self.kind)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def dequantized(layer: nn.Linear | QuantizedLinear) -> nn.Linear:
    """The same layer in float32, frozen; one that is plain as it is."""
    if isinstance(layer, nn.Linear):
        return layer
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(decode(layer.blocks, layer.kind), requires_grad=False)
    plain.bias = layer.bias  # type: ignore[assignment]
    return plain


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its strips would break a graph in many places
def _product(x: Tensor, blocks: Tensor, kind: GGMLType) -> Tensor:
    y: Tensor = _Product.apply(x, blocks, kind)  # type: ignore[no-untyped-call]
    return y


class _Product(torch.autograd.Function):
    """x W^T, W being decoded in strips of rows, each time it is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, kind: GGMLType) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.kind = kind
        flat = x.reshape(-1, x.shape[-1])
        y = flat.new_empty(len(flat), len(blocks))
        for rows, matrix in _strips(blocks, kind, x.dtype):
            y[:, rows] = flat @ matrix.T
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor, None, None]:
        (blocks,) = ctx.saved_tensors
        flat = by_y.reshape(-1, by_y.shape[-1])
        by_x: Tensor | None = None
        for rows, matrix in _strips(blocks, ctx.kind, by_y.dtype):
            product = (flat[:, rows] @ matrix).float()
            by_x = product if by_x is None else by_x.add_(product)
        assert by_x is not None
        return by_x.to(by_y.dtype).view(*by_y.shape[:-1], -1), None, None


def _strips(blocks: Tensor, kind: GGMLType, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The matrix from top to bottom, as slices of rows with their values."""
    elements, size = BLOCK_SIZES[kind]
    n = max(1, _STRIP // (blocks.shape[1] // size * elements))
    for first in range(0, len(blocks), n):
        rows = slice(first, min(first + n, len(blocks)))
        yield rows, decode(blocks[rows], kind).to(dtype)


def decode(blocks: Tensor, kind: GGMLType) -> Tensor:
    """(rows, bytes of a row) uint8 -> (rows, columns) float32, equal to gguf.blocks.dequantize()."""
    if kind in _PLAIN:
        return blocks.contiguous().view(_PLAIN[kind]).float()
    form = FORMATS[kind]
    flat = blocks.contiguous().view(-1, form.block.itemsize)
    out = torch.empty(len(flat), form.groups, form.elements // form.groups, device=blocks.device)
    n = _PASS // form.elements
    for first in range(0, len(flat), n):
        _decode(form, flat[first : first + n], out[first : first + n])
    return out.view(len(blocks), -1)


def _decode(form: BlockFormat, blocks: Tensor, out: Tensor) -> None:
    """Blocks (n, bytes) into out (n, groups, elements of a group): code * scale + offset, in ggml's order."""
    scale, offset = _half(form, blocks, "d"), _half(form, blocks, "m") if form.is_affine else None
    if form.scales:
        codes = form.scales.unpack(_field(form, blocks, "scales").cpu().numpy())
        of_scale, of_offset = (None if c is None else torch.from_numpy(c).to(blocks.device).float() for c in codes)
        assert of_scale is not None
        scale = scale * of_scale
        if offset is not None and of_offset is not None:
            offset = -(offset * of_offset)
    out.copy_(_codes(form, blocks).view(out.shape))
    out.mul_(scale[:, :, None])
    if offset is not None:
        out.add_(offset[:, :, None])


def _codes(form: BlockFormat, blocks: Tensor) -> Tensor:
    """(n, elements) signed codes."""
    if form.low[0] == 8:
        return _field(form, blocks, "qs").view(torch.int8)
    codes = _spread(_field(form, blocks, "qs"), *form.low)
    if form.high:
        codes |= _spread(_field(form, blocks, "qh"), *form.high) << form.low[0]
    return codes.view(torch.int8) - form.bias if form.bias else codes


def _spread(packed: Tensor, bits: int, run: int) -> Tensor:
    """gguf.formats.spread() of bytes that stay bytes: (n, bytes) -> (n, fields)."""
    chunks, mask = packed.view(len(packed), -1, 1, run), (1 << bits) - 1
    return torch.cat([chunks >> shift & mask for shift in range(0, 8, bits)], 2).flatten(1)


def _field(form: BlockFormat, blocks: Tensor, name: str) -> Tensor:
    fields = form.block.fields
    assert fields is not None
    kind, at = fields[name][:2]
    return blocks[:, at : at + kind.itemsize].contiguous()


def _half(form: BlockFormat, blocks: Tensor, name: str) -> Tensor:
    """A float16 of every block as float32, (n, 1)."""
    return _field(form, blocks, name).view(torch.float16).float()
