"""A model made ready for RoPE factors: in Phi-3's architecture, whose files carry them, and with others set.

Of the architectures here only phi3 has `longrope` in config.json as transformers, and factor tensors in GGUF as
llama.cpp, read them. A Llama without extras is the same network with Q, K and V in one matrix and gate and up in
another, so it becomes a Phi-3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from phial.config import ModelConfig, longrope_attn_factor
from phial.errors import PhialError
from phial.model.transformer import Transformer
from phial.train.longrope.seeds import Factors


def as_phi3(model: nn.Module) -> Transformer:
    """The model with phi3's matrices and without factors; its context is the original one. A phi3 is returned itself.

    Raises:
        PhialError: an architecture with biases, a model with a sliding window, or one whose RoPE is scaled already.
    """
    if not isinstance(model, Transformer):
        raise PhialError(f"{type(model).__name__} cannot be extended", "only phi3 and llama models can")
    config = model.config
    if config.qkv_bias:
        raise PhialError(f"a {config.architecture} model with biases on Q, K and V has no place for factor lists")
    if config.sliding_window is not None:
        hint = 'with "sliding_window": null in its config.json it would see all'
        raise PhialError(f"the model sees no further than {config.sliding_window} tokens, its sliding window", hint)
    if config.rope_long_factors or config.rope_freq_factors or config.rope_scale != 1 or config.rope_interleaved:
        raise PhialError("the model's RoPE is scaled already", "extend the model it was made from")
    wanted = replace(config, architecture="phi3", rope_original_context=config.n_ctx_train)
    if config.architecture == "phi3":
        set_config(model, wanted)
        return model
    with torch.device("meta"):
        fused = Transformer(wanted)
    fused.load_state_dict(_fused(model.state_dict()), assign=True)
    return fused


def _fused(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Llama's weights by phi3's names."""
    joined = {
        "qkv_proj": tuple(f"{part}_proj" for part in ("q", "k", "v")),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    made: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for new, parts in joined.items():
            if f".{parts[0]}." in name:
                rows = [weights[name.replace(parts[0], part)] for part in parts]
                made[name.replace(parts[0], new)] = nn.Parameter(torch.cat(rows))
                break
            if any(f".{part}." in name for part in parts):
                break
        else:
            made[name] = weight
    return made


def longrope_config(
    base: ModelConfig, target: int, short: Factors, long: Factors, attn_factor: float | None = None
) -> ModelConfig:
    """A configuration stretched from base.rope_original_context to target; None: LongRoPE's attention factor."""
    factor = longrope_attn_factor(target, base.rope_original_context) if attn_factor is None else attn_factor
    return replace(base, n_ctx_train=target, rope_short_factors=short, rope_long_factors=long, rope_attn_factor=factor)


def set_config(model: Transformer, config: ModelConfig) -> None:
    """Let a model rotate by another configuration of the same shape."""
    model.config = model.model.config = config
    for layer in model.model.layers:
        layer.self_attn.config = config  # type: ignore[union-attr]
