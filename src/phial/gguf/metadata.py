"""ModelConfig to the metadata and the RoPE tensors of a GGUF file; ModelConfig.from_gguf reads them back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, ModelConfig


def gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    """The `<architecture>.*` keys of a GGUF file. The factor lists are tensors: rope_tensors()."""
    values: dict[str, Any] = {
        "vocab_size": config.n_vocab,
        "context_length": config.n_ctx_train,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_ff,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_head_kv,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.rope_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.head_dim * config.n_head != config.n_embd:
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.architecture == "phi3":
        values["rope.scaling.original_context_length"] = config.rope_original_context
    if config.architecture == "phi3" or config.sliding_window:
        values["attention.sliding_window"] = config.sliding_window or 0  # 0, lest a reader infer one
    if not config.causal:
        values["attention.causal"] = False
    if config.rope_long_factors is not None:
        values["rope.scaling.attn_factor"] = config.rope_attn_factor
    if config.rope_scale != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scale}
    general = {"general.architecture": config.architecture, "general.type": "model", "general.name": config.name}
    return general | {f"{config.architecture}.{key}": value for key, value in values.items()}


def rope_tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The RoPE factor lists as the tensors a GGUF file holds."""
    lists = {
        ROPE_LONG: config.rope_long_factors,
        ROPE_SHORT: config.rope_short_factors,
        ROPE_FREQS: config.rope_freq_factors,
    }
    return {name: np.array(factors, np.float32) for name, factors in lists.items() if factors is not None}
