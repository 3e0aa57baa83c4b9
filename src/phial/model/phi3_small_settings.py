"""phi-3-small's config.json, in the keys of the published checkpoint, to Phi3SmallConfig and back.

The published class knows no head width of its own and no partial rotation, and takes the dummy ids from its tokenizer;
the key dummy_token_indices is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phial.config import ModelConfig, longrope_attn_factor
from phial.errors import FormatError
from phial.hf.folder import CONFIG
from phial.hf.settings import Settings, shortest
from phial.model.phi3_small import DUMMY_IDS, PHI_3_SMALL_8K, Phi3SmallConfig
from phial.model.sparse import BlockPattern

CLASS = "Phi3SmallForCausalLM"
# Keys of features not implemented, with the value that is.
_ONLY: dict[str, object] = {
    "blocksparse_homo_head_pattern": False, "hidden_act": "gegelu", "mup_use_scaling": True,
    "reorder_and_upcast_attn": False, "rope_position_scale": 1.0, "tie_word_embeddings": True,
}  # fmt: skip
# Of training, of one kernel, and of a computed ff_intermediate_size.
_INFORMATION = (
    "attention_dropout_prob", "embedding_dropout_prob", "ffn_dropout_prob", "blocksparse_triton_kernel_block_size",
    "gegelu_pad_to_256", "pad_sequence_to_multiple_of_64",
)  # fmt: skip
_MULTIPLIERS = {
    "embedding_multiplier": "mup_embedding_multiplier",
    "attention_multiplier": "mup_attn_multiplier",
    "width_multiplier": "mup_width_multiplier",
    "gegelu_limit": "gegelu_limit",
}
_PATTERN = {
    "block": "blocksparse_block_size",
    "local_blocks": "blocksparse_num_local_blocks",
    "stride": "blocksparse_vert_stride",
}


def read_small_config(values: Mapping[str, Any], name: str = "") -> Phi3SmallConfig:
    """The configuration a config.json describes.

    Raises:
        FormatError: a missing or unsupported value, factor lists of wrong length.
        ArgumentError: parts that do not fit each other.
    """
    keys = Settings(values, CONFIG, _ONLY)
    n_embd, n_head, n_vocab = (keys.integer(k) for k in ("hidden_size", "num_attention_heads", "vocab_size"))
    head_dim, context = n_embd // max(n_head, 1), keys.integer("max_position_embeddings")
    shape = ModelConfig(
        architecture="phi3",
        n_vocab=n_vocab,
        n_embd=n_embd,
        n_layer=keys.integer("num_hidden_layers"),
        n_head=n_head,
        n_head_kv=keys.integer("num_key_value_heads"),
        head_dim=head_dim,
        n_ff=keys.integer("ff_intermediate_size"),
        n_ctx_train=context,
        rms_norm_eps=keys.number("layer_norm_epsilon"),
        rope_theta=keys.number("rope_embedding_base"),
        rope_dim=head_dim,
        rope_interleaved=False,
        qkv_bias=True,
        tie_embeddings=True,
        name=name,
        **_longrope(keys, context),
    )
    published = DUMMY_IDS if n_vocab == PHI_3_SMALL_8K.shape.n_vocab else ()
    dummy_ids = keys.get("dummy_token_indices", list(published))
    if not isinstance(dummy_ids, list) or not all(type(i) is int for i in dummy_ids):
        raise FormatError(f"{CONFIG}: dummy_token_indices is no list of ids: {dummy_ids!r:.80}")
    config = Phi3SmallConfig(
        shape,
        BlockPattern(n_head, **{field: keys.integer(key) for field, key in _PATTERN.items()}),
        dense_every=keys.integer("dense_attention_every_n_layers"),
        dummy_ids=tuple(dummy_ids),
        **{field: keys.number(key) for field, key in _MULTIPLIERS.items()},
    )
    keys.asked.update(_INFORMATION)
    keys.refuse_the_rest()
    return config


def _longrope(keys: Settings, context: int) -> dict[str, Any]:
    """The factor lists of the 128k model. Its two attention factors, one for each list, must be equal."""
    values = keys.get("rope_scaling", {})
    if not values:
        return {}
    if not isinstance(values, dict):
        raise FormatError(f"{CONFIG}: rope_scaling is no object: {values!r:.80}")
    rope = Settings(values, f"{CONFIG}: rope_scaling")
    if (kind := rope.get("type")) not in ("su", "longrope"):
        raise FormatError(f"{rope.where}: type {kind!r} is not supported for {CLASS}")
    original = rope.integer("original_max_position_embeddings")
    computed = longrope_attn_factor(context, original)
    short, long = rope.number("short_mscale", computed), rope.number("long_mscale", computed)
    if short != long:
        raise FormatError(f"{rope.where}: short_mscale {short:g} and long_mscale {long:g} differ: not supported")
    lists = {f"rope_{name}_factors": rope.numbers(f"{name}_factor") for name in ("short", "long")}
    rope.refuse_the_rest()
    return {**lists, "rope_original_context": original, "rope_attn_factor": long}


def write_small_config(config: Phi3SmallConfig, dtype: str) -> dict[str, Any]:
    """config.json without the token ids. dtype: torch's name. FormatError for a shape the keys cannot express."""
    shape = config.shape
    if not shape.n_embd // shape.n_head == shape.head_dim == shape.rope_dim:
        widths = f"{shape.head_dim} wide of which {shape.rope_dim} rotate, beside a width of {shape.n_embd}"
        raise FormatError(f"a {CLASS} folder cannot express {shape.n_head} heads {widths}")
    stretched = shape.rope_long_factors is None and shape.rope_attn_factor != 1
    if shape.rope_freq_factors is not None or shape.rope_scale != 1 or shape.rope_interleaved or stretched:
        raise FormatError(f"a {CLASS} folder can express LongRoPE's factors alone, no other scaling")
    return {
        "architectures": [CLASS],
        "model_type": "phi3small",
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "ff_intermediate_size": shape.n_ff,
        "ff_dim_multiplier": None,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "max_position_embeddings": shape.n_ctx_train,
        "layer_norm_epsilon": shortest(shape.rms_norm_eps),
        "rope_embedding_base": shortest(shape.rope_theta),
        "rope_scaling": _rope_scaling(shape),
        "dense_attention_every_n_layers": config.dense_every,
        "blocksparse_triton_kernel_block_size": config.pattern.block,
        "dummy_token_indices": list(config.dummy_ids),
        "torch_dtype": dtype,
        **{key: getattr(config.pattern, field) for field, key in _PATTERN.items()},
        **{key: getattr(config, field) for field, key in _MULTIPLIERS.items()},
        **_ONLY,
    }


def _rope_scaling(shape: ModelConfig) -> dict[str, Any] | None:
    if shape.rope_short_factors is None or shape.rope_long_factors is None:
        return None
    return {
        "type": "longrope",
        "original_max_position_embeddings": shape.rope_original_context,
        "short_factor": [shortest(x) for x in shape.rope_short_factors],
        "long_factor": [shortest(x) for x in shape.rope_long_factors],
        "short_mscale": shape.rope_attn_factor,
        "long_mscale": shape.rope_attn_factor,
    }
