"""What a weight is called in a Hugging Face folder and in a GGUF file, and the row order that differs between them.

Phi-3 keeps QKV and gate-up fused in both. Llama's Q and K rows are permuted: a GGUF file rotates adjacent pairs
(2i, 2i+1), Hugging Face the halves (i, i + head_dim/2).
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from phial.config import ModelConfig

Rows = TypeVar("Rows")  # numpy's arrays and PyTorch's tensors: one function serves both

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)\.(?P<kind>weight|bias)")
# Buffers that old checkpoints carry; they are computed from the configuration.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def hf_name(name: str, architecture: str) -> str:
    """The Hugging Face name of a weight of ModelConfig.tensor_shapes()."""
    match = _GGUF_NAME.fullmatch(name)
    assert match is not None, name
    if match["layer"] is None:
        return f"{_GLOBAL[match['stem']]}.{match['kind']}"
    stem = _LAYER[match["stem"]]
    if architecture == "phi3" and stem == "mlp.up_proj":  # holds the gate's rows too
        stem = "mlp.gate_up_proj"
    return f"model.layers.{match['layer']}.{stem}.{match['kind']}"


def is_computed(name: str) -> bool:
    """Whether a tensor of a checkpoint is no weight but a table that the configuration determines."""
    return _COMPUTED.fullmatch(name) is not None


def to_gguf_rows(name: str, config: ModelConfig, values: Rows) -> Rows:
    """Rows of a weight in GGUF order: half-rotated pairs become neighbours where the file's model is interleaved.

    name: its GGUF name. values: (rows, ...), a numpy array or a PyTorch tensor; returned as it is or rearranged.
    """
    heads = _permuted_heads(name, config)
    if heads == 0:
        return values
    rows: Any = values
    arranged: Rows = rows.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)
    return arranged


def to_hf_rows(name: str, config: ModelConfig, values: Rows) -> Rows:
    """The inverse of to_gguf_rows."""
    heads = _permuted_heads(name, config)
    if heads == 0:
        return values
    rows: Any = values
    arranged: Rows = rows.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
    return arranged


def _permuted_heads(name: str, config: ModelConfig) -> int:
    """How many heads' rows are permuted; 0 for a weight that keeps its order."""
    if not config.rope_interleaved:
        return 0
    stem = name.rsplit(".", 2)[-2]
    return {"attn_q": config.n_head, "attn_k": config.n_head_kv}.get(stem, 0)
