"""Model FLOPs utilisation (MFU): the share of a machine's matrix products that the model's own arithmetic fills.

Counted as in PaLM (arXiv 2204.02311, appendix B): 6 a token for each weight of a matrix product, forward and backward,
4 where it is frozen, and 12 L H Q T for attention over T tokens, as if no mask hid any. Recomputed layers, decoded
blocks and optimisers count for nothing.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from phial.config import ModelConfig
from phial.train.quantized import QuantizedLinear

# Dense bf16 FLOP/s of the makers' data sheets; the longest name that fits counts.
BF16_PEAKS = {
    "A100": 312e12, "A10": 125e12, "A30": 165e12, "A40": 149.7e12, "B200": 2250e12, "GH200": 989e12, "H100": 989e12,
    "H100 PCIe": 756e12, "H200": 989e12, "L4": 121e12, "L40S": 362e12, "RTX 3090": 71e12, "RTX 4090": 165e12,
}  # fmt: skip
_SIDE = 768


def flops_per_token(model: nn.Module, length: int) -> float:
    """Floating point operations that training takes for a token of rows of `length`.

    A matrix of embeddings that is only looked up is left out; a tied one is the output matrix as well.
    """
    config = getattr(model, "config", None)
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and not _looked_up(name, config)]
    flops = sum((6.0 if p.requires_grad else 4.0) * p.numel() for p in matrices)
    flops += sum(4.0 * m.out_features * m.in_features for m in model.modules() if isinstance(m, QuantizedLinear))
    if not isinstance(config, ModelConfig):
        return flops
    return flops + 12.0 * config.n_layer * config.n_head * config.head_dim * length


def _looked_up(name: str, config: object) -> bool:
    return name.endswith("embed_tokens.weight") and isinstance(config, ModelConfig) and not config.tie_embeddings


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that matrix products reach at best: of a known GPU in bf16 its data sheet's, of a CPU measured now.

    None where it is not known. The measurement takes some tenths of a second and shares the machine with whatever
    else runs, so a CPU's MFU is a rough figure.
    """
    if device.type == "cpu":
        return _measured(torch.bfloat16 if precision == "bf16" else torch.float32)
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    found = [known for known in BF16_PEAKS if all(word in name.split() for word in known.split())]
    return BF16_PEAKS[max(found, key=len)] if found else None


def _measured(dtype: torch.dtype) -> float:
    a = torch.ones(_SIDE, _SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(24):  # another process may take any one of them
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2.0 * _SIDE**3 / best
