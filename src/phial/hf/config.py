"""config.json to ModelConfig, and back (phi3-spec §1.3, LongRoPE §4.2), for Phi-3, Llama and Qwen2.

RoPE is read in the layouts of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters) and written in the
former, which both read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from phial.config import ROPE_FREQS, ModelConfig, longrope_attn_factor
from phial.errors import FormatError
from phial.hf.settings import Settings, shortest

CLASSES = {"Phi3ForCausalLM": "phi3", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


def read_hf_config(values: Mapping[str, Any], name: str = "") -> ModelConfig:
    """The configuration a config.json describes. llama comes out as GGUF stores it, interleaved.

    Raises:
        FormatError: unknown architecture, a missing, contradictory or unsupported value, factor lists of wrong length.
    """
    architecture = _architecture(values)
    keys = Settings(values, "config.json")
    n_embd, n_head = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", n_embd // max(n_head, 1))
    context, n_layer = keys.integer("max_position_embeddings"), keys.integer("num_hidden_layers")
    config = ModelConfig(
        architecture=architecture,
        n_vocab=keys.integer("vocab_size"),
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=keys.integer("num_key_value_heads", n_head),
        head_dim=head_dim,
        n_ff=keys.integer("intermediate_size"),
        n_ctx_train=context,
        rms_norm_eps=keys.number("rms_norm_eps"),
        rope_interleaved=architecture == "llama",
        sliding_window=_window(keys, architecture, n_layer),
        qkv_bias=architecture == "qwen2",
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        causal=keys.flag("is_causal", True),
        name=name,
        **_rope(keys, architecture, context, head_dim),
    )
    keys.refuse_the_rest()
    return config


def _architecture(values: Mapping[str, Any]) -> str:
    classes = values.get("architectures")
    named = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    if not isinstance(named, str) or named not in CLASSES:
        raise FormatError(f"config.json: architectures is {classes!r}", f"known are {', '.join(CLASSES)}")
    return CLASSES[named]


def _window(keys: Settings, architecture: str, n_layer: int) -> int | None:
    """The sliding window of all layers, None for none. Qwen2 can give it to the upper layers only: an error."""
    window = keys.integer("sliding_window", 0) or None
    if architecture == "qwen2":
        if not keys.flag("use_sliding_window", False):
            window = None
        lowest = keys.integer("max_window_layers", n_layer)
        if window is not None and lowest >= n_layer:
            window = None
        elif window is not None and lowest > 0:
            raise FormatError(f"config.json: max_window_layers = {lowest}: a window in some layers is not supported")
    kinds, expected = keys.get("layer_types", []), "sliding_attention" if window else "full_attention"
    if not isinstance(kinds, list) or any(kind != expected for kind in kinds):
        raise FormatError(f"config.json: layer_types {kinds!r:.80} beside a window of {window}")
    return window


def _rope(keys: Settings, architecture: str, context: int, head_dim: int) -> dict[str, Any]:
    """The RoPE fields of ModelConfig."""
    old, new = keys.get("rope_scaling", {}), keys.get("rope_parameters", {})
    if not isinstance(old, dict) or not isinstance(new, dict) or (old and new):
        raise FormatError("config.json: rope_scaling and rope_parameters are no objects, or contradict each other")
    rope = Settings({**old, **new}, "config.json: rope_scaling" if old else "config.json: rope_parameters")
    theta = rope.number("rope_theta", keys.number("rope_theta", 10000.0))
    partial = rope.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    kinds = {str(kind) for kind in (rope.get("rope_type", None), rope.get("type", None)) if kind is not None}
    original = keys.integer("original_max_position_embeddings", 0) if architecture == "phi3" else 0
    fields: dict[str, Any] = {"rope_theta": theta, "rope_dim": int(head_dim * partial)}
    kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else str(kinds)
    if architecture == "phi3" and kind in ("su", "longrope", "yarn"):  # three names of one thing, §1.3
        original = original or rope.integer("original_max_position_embeddings", 4096)
        fields |= _longrope(rope, context, original)
    elif architecture != "phi3" and kind == "linear":
        fields["rope_scale"] = rope.number("factor")
    elif architecture != "phi3" and kind == "llama3":
        fields["rope_freq_factors"] = _llama3(rope, theta, fields["rope_dim"])
    elif kind != "default":
        raise FormatError(f"{rope.where}: type {kind!r} is not supported for {architecture}")
    if architecture == "phi3":
        fields["rope_original_context"] = original or rope.integer("original_max_position_embeddings", 4096)
    if architecture != "phi3" and partial != 1:
        raise FormatError(f"{rope.where}: partial_rotary_factor {partial:g} is not supported for {architecture}")
    rope.refuse_the_rest()
    return fields


def _longrope(rope: Settings, context: int, original: int) -> dict[str, Any]:
    stretch = rope.number("factor", context / original if original else 0.0)
    computed = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    rope.get("original_max_position_embeddings", original)  # the one outside counts, as in transformers
    return {
        "rope_short_factors": rope.numbers("short_factor"),
        "rope_long_factors": rope.numbers("long_factor"),
        "rope_attn_factor": rope.number("attention_factor", computed),
    }


def _llama3(rope: Settings, theta: float, dim: int) -> tuple[float, ...]:
    """Divisors of the frequencies: none for short waves, `factor` for waves beyond the original context."""
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not 0 < low < high or factor < 1:
        raise FormatError(f"{rope.where}: factor {factor:g}, low_freq_factor {low:g}, high_freq_factor {high:g}")
    return _llama3_divisors(theta, dim, factor, low, high, rope.integer("original_max_position_embeddings"))


def _llama3_divisors(
    theta: float, dim: int, factor: float, low: float, high: float, original: int
) -> tuple[float, ...]:
    turns = original * theta ** (-np.arange(0, dim, 2) / dim) / (2 * math.pi)  # within the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple(float(x) for x in (1 / ((1 - smooth) / factor + smooth)).astype(np.float32))


def write_hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json without the token ids. dtype: torch's name. FormatError for RoPE scaling it has no words for."""
    values: dict[str, Any] = {
        "architectures": [next(name for name, kind in CLASSES.items() if kind == config.architecture)],
        "model_type": config.architecture,
        "vocab_size": config.n_vocab,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head_kv,
        "hidden_act": "silu",
        "max_position_embeddings": config.n_ctx_train,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": shortest(config.rope_theta),
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
    }
    if not config.causal:
        values["is_causal"] = False  # transformers honours it from version 5 on
    if config.rope_interleaved and config.architecture != "llama":
        raise FormatError(f"a {config.architecture} folder cannot express rotation of neighbouring pairs")
    if config.architecture == "phi3":
        values["original_max_position_embeddings"] = config.rope_original_context
        values["sliding_window"] = config.sliding_window
    elif config.architecture == "qwen2":
        window = config.sliding_window
        values |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 0}
    elif config.sliding_window is not None:
        raise FormatError(f"a Llama folder cannot express a sliding window of {config.sliding_window}")
    if config.qkv_bias and config.architecture != "qwen2":
        raise FormatError(f"a {config.architecture} folder cannot express biases on Q, K and V alone")
    if config.head_dim * config.n_head != config.n_embd:
        values["head_dim"] = config.head_dim
    if config.rope_dim != config.head_dim:
        if config.architecture != "phi3":
            raise FormatError(f"a {config.architecture} folder cannot express {config.rope_dim} rotated dimensions")
        values["partial_rotary_factor"] = config.rope_dim / config.head_dim
    return values


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    if config.rope_long_factors is not None and config.rope_short_factors is not None:
        lists = {"long_factor": config.rope_long_factors, "short_factor": config.rope_short_factors}
        scaling: dict[str, Any] = {"type": "longrope"}
        scaling |= {name: [shortest(x) for x in factors] for name, factors in lists.items()}
        implied = longrope_attn_factor(config.n_ctx_train, config.rope_original_context)
        if not math.isclose(config.rope_attn_factor, implied, rel_tol=1e-6):
            scaling["attention_factor"] = shortest(config.rope_attn_factor)
        return scaling
    if config.rope_attn_factor != 1:
        raise FormatError(f"an attention factor of {config.rope_attn_factor:g} without factor lists has no config key")
    if config.rope_freq_factors is not None:
        return _as_llama3(config, config.rope_freq_factors)
    return {"type": "linear", "factor": shortest(config.rope_scale)} if config.rope_scale != 1 else None


def _as_llama3(config: ModelConfig, factors: tuple[float, ...]) -> dict[str, Any]:
    """The published Llama 3 settings these divisors come from. FormatError where it is none of them."""
    for original in (8192, config.n_ctx_train):
        divisors = _llama3_divisors(config.rope_theta, config.rope_dim, max(factors), 1.0, 4.0, original)
        if np.allclose(divisors, factors, rtol=1e-4):
            waves = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": shortest(max(factors)), **waves}
    raise FormatError(f"{ROPE_FREQS} are not those of a Llama 3 configuration", "they cannot be written as config.json")
