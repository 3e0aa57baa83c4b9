"""Small random transformers models, written as GGUF the way llama.cpp's converter lays them out.

Each function returns the file and the transformers model holding exactly the values the file holds (after quantising,
where a quantised type is asked for), so that logits of both may be compared. Tokenizer: that of tests/tiny_models.
Weights are drawn so that logits, attention and rotations are of order one: an error in any of them shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.tiny_models import metadata as tokenizer_and_more
from tests.tiny_models import vocabulary
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from phial.gguf.blocks import GGMLType, dequantize, quantize
from phial.gguf.container import write_gguf

torch.set_num_threads(1)
Tiny = tuple[Path, PreTrainedModel]

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tiny_phi3(
    folder: Path,
    *,
    type: GGMLType = GGMLType.F32,
    window: int | None = None,
    long_rope: bool = False,
    factors: tuple[Sequence[float], Sequence[float]] | None = None,
    partial_rotary: float = 1.0,
    context: int = 256,
    original_context: int = 64,
    seed: int = 0,
    **shape: Any,
) -> Tiny:
    """Phi-3: fused QKV and gate-up, sliding window, LongRoPE beyond original_context. shape: see _shape().

    factors: the short and the long LongRoPE factors; None for two made-up lists.
    """
    sizes = _shape(**shape)
    pairs = int(sizes["hidden_size"] // sizes["num_attention_heads"] * partial_rotary) // 2
    keys: dict[str, Any] = {"phi3.attention.sliding_window": window or 0, "phi3.rope.dimension_count": 2 * pairs}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": partial_rotary}
    extra = {}
    if long_rope:
        made_up = np.linspace(1.0, 1.5, pairs), np.linspace(1.1, 6.0, pairs)
        short, long = (np.array(values, float) for values in factors or made_up)
        rope |= {"rope_type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist()}
        extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    else:
        original_context = context
    keys["phi3.rope.scaling.original_context_length"] = original_context
    config = Phi3Config(
        **sizes,
        max_position_embeddings=context,
        original_max_position_embeddings=original_context,
        rope_parameters=rope,
        sliding_window=window,
    )
    return _write(folder, "phi3", Phi3ForCausalLM, config, type, keys, extra, seed)


def tiny_llama(
    folder: Path,
    *,
    type: GGMLType = GGMLType.F32,
    rope: str = "default",
    head_dim: int | None = None,
    context: int = 256,
    seed: int = 0,
    **shape: Any,
) -> Tiny:
    """Llama. rope: "default", "linear" (factor 4) or "llama3". head_dim: None for hidden size over heads."""
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0}
    keys: dict[str, Any] = {}
    if rope == "linear":
        parameters["factor"] = 4.0
        keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    elif rope == "llama3":
        parameters |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        parameters["original_max_position_embeddings"] = 64
    sizes = _shape(**shape)
    width = head_dim or sizes["hidden_size"] // sizes["num_attention_heads"]
    keys |= {"llama.rope.dimension_count": width, "llama.attention.key_length": width}
    keys["llama.attention.value_length"] = width
    config = LlamaConfig(**sizes, head_dim=width, max_position_embeddings=context, rope_parameters=parameters)
    extra = {}
    if rope == "llama3":
        plain = 10000.0 ** (-np.arange(0, width, 2) / width)
        extra["rope_freqs.weight"] = plain / LlamaForCausalLM(config).model.rotary_emb.inv_freq.numpy()
    return _write(folder, "llama", LlamaForCausalLM, config, type, keys, extra, seed)


def tiny_qwen2(folder: Path, *, type: GGMLType = GGMLType.F32, context: int = 256, seed: int = 0, **shape: Any) -> Tiny:
    """Qwen2: biases on Q, K and V, theta one million."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen2Config(**_shape(**shape), max_position_embeddings=context, rope_parameters=rope)
    return _write(folder, "qwen2", Qwen2ForCausalLM, config, type, {"qwen2.rope.freq_base": 1e6}, {}, seed)


def _shape(
    n_embd: int = 64, n_ff: int = 96, n_head: int = 4, n_head_kv: int = 2, n_layer: int = 2, tie: bool = False
) -> dict[str, Any]:
    """The sizes all families share; K-quantised types need n_embd and n_ff to be multiples of 256."""
    return {
        "vocab_size": len(vocabulary()[0]),
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "num_hidden_layers": n_layer,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": tie,
        "rms_norm_eps": 1e-5,
    }


def _write(
    folder: Path,
    architecture: str,
    model_class: Any,
    config: PretrainedConfig,
    type: GGMLType,
    keys: dict[str, Any],
    extra: dict[str, np.ndarray],
    seed: int,
) -> Tiny:
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    _randomise(model, seed)
    tensors = []
    for name, array in extra.items():
        values = np.asarray(array, np.float32)
        tensors.append((name, values.shape, GGMLType.F32, quantize(values, GGMLType.F32)))
    for name, parameter in model.named_parameters():  # a tied lm_head is not listed
        permuted = architecture == "llama" and ("q_proj" in name or "k_proj" in name)
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        values = parameter.detach().numpy()
        rows = _interleaving(len(values), heads) if permuted else np.arange(len(values))
        kind = type if values.ndim == 2 else GGMLType.F32
        data = quantize(values[rows], kind)
        back = np.empty_like(values)
        back[rows] = dequantize(data, kind, values.shape)
        parameter.data = torch.from_numpy(back)
        tensors.append((_gguf_name(name), values.shape, kind, data))
    path = folder / f"tiny-{architecture}.gguf"
    write_gguf(path, _metadata(architecture, config) | keys, tensors)
    return path, model


def _metadata(architecture: str, config: PretrainedConfig) -> dict[str, Any]:
    a, kept = architecture, tokenizer_and_more(architecture)
    return {
        **{key: value for key, value in kept.items() if not key.startswith(f"{a}.")},
        f"{a}.context_length": config.max_position_embeddings,
        f"{a}.embedding_length": config.hidden_size,
        f"{a}.feed_forward_length": config.intermediate_size,
        f"{a}.block_count": config.num_hidden_layers,
        f"{a}.attention.head_count": config.num_attention_heads,
        f"{a}.attention.head_count_kv": config.num_key_value_heads,
        f"{a}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{a}.rope.freq_base": 10000.0,
        f"{a}.vocab_size": config.vocab_size,
    }


def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:  # so that a product of order one comes out; an embedding that is only looked up is one
            parameter.data = noise if "embed" in name and not tied else noise / parameter.shape[1] ** 0.5
        else:
            parameter.data = 0.3 * noise + (0.0 if "bias" in name else 1.0)


def _interleaving(rows: int, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix in llama.cpp's order: of each head i and i + half become neighbours."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"
