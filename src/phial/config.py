"""ModelConfig: one frozen dataclass for every architecture phial runs (phi3, llama, qwen2), and presets.

Shapes follow the Phi-3 report and the published configs, RoPE LongRoPE (arXiv 2402.13753), metadata keys GGUF. Whatever
in a file would change the computation and is not implemented is an error, never ignored. Left out: phi-3-small (block-
sparse attention), mixtures of experts, vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from phial.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Shape = tuple[int, ...]
ARCHITECTURES = ("phi3", "llama", "qwen2")
ROPE_LONG, ROPE_SHORT, ROPE_FREQS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
ROPE_TENSORS = (ROPE_LONG, ROPE_SHORT, ROPE_FREQS)  # small float tensors that belong to the config, not to the weights

# Largest values accepted: several times beyond any model known, small enough that no product overflows 63 bits.
_LIMITS = {
    "n_vocab": 1 << 22,
    "n_embd": 1 << 17,
    "n_layer": 1024,
    "n_head": 2048,
    "n_head_kv": 2048,
    "head_dim": 4096,
    "n_ff": 1 << 20,
    "n_ctx_train": (1 << 31) - 1,
    "rope_dim": 4096,
    "rope_original_context": (1 << 31) - 1,
}


@dataclass(frozen=True)
class ModelConfig:
    """What a forward pass must know besides the weights. Raises FormatError naming the field and the numbers.

    Attributes:
        rope_dim: dimensions of each head that rotate; the rest pass through (partial rotary, phi-4-mini).
        rope_interleaved: pairs are (2i, 2i+1), as llama GGUF files store Q and K; False: (i, i + rope_dim/2).
        rope_original_context: context before LongRoPE; longer sequences use the long factors. 0: n_ctx_train.
        rope_attn_factor: multiplies cos and sin at every length.
        rope_freq_factors: Llama-3's per-frequency divisors (`rope_freqs`).
        rope_scale: linear scaling; positions are divided by it.
        sliding_window: keys a query sees, itself included; None: all. A window as long as the context becomes None.
        causal: whether a token sees only those before it; False, for embeddings: all of its text. The engine is causal.
        name: the model's own name, for people.
    """

    architecture: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ctx_train: int
    rms_norm_eps: float
    rope_theta: float
    rope_dim: int
    rope_interleaved: bool
    rope_short_factors: tuple[float, ...] | None = None
    rope_long_factors: tuple[float, ...] | None = None
    rope_original_context: int = 0
    rope_attn_factor: float = 1.0
    rope_freq_factors: tuple[float, ...] | None = None
    rope_scale: float = 1.0
    sliding_window: int | None = None
    qkv_bias: bool = False
    tie_embeddings: bool = False
    causal: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if self.rope_original_context == 0:
            object.__setattr__(self, "rope_original_context", self.n_ctx_train)
        _require(self.architecture in ARCHITECTURES, f"architecture {self.architecture!r} is none of {ARCHITECTURES}")
        for field, largest in _LIMITS.items():
            _check_integer(field, getattr(self, field), largest)
        _check_heads(self)
        _check_rope(self)
        _check_float("rms_norm_eps", self.rms_norm_eps, 0.1)
        if self.sliding_window is not None:
            _check_integer("sliding_window", self.sliding_window, (1 << 63) - 1)
            if self.sliding_window >= self.n_ctx_train:
                object.__setattr__(self, "sliding_window", None)
        both = not self.causal and self.sliding_window is not None
        _require(not both, f"a window of {self.sliding_window} where tokens see both ways is not supported")

    def inv_freq(self, long: bool) -> NDArray[np.float32]:
        """Angle per position of each rotated pair, (rope_dim/2,): 1 / (factor * theta^(2i/rope_dim))."""
        import numpy as np  # here, so that importing the module costs nothing

        frequencies = self.rope_theta ** (-np.arange(0, self.rope_dim, 2, dtype=np.float64) / self.rope_dim)
        for factors in (self.rope_long_factors if long else self.rope_short_factors, self.rope_freq_factors):
            if factors is not None:
                frequencies /= np.asarray(factors, np.float64)
        return cast("NDArray[np.float32]", (frequencies / self.rope_scale).astype(np.float32))

    def uses_long(self, n_tokens: int) -> bool:
        """Whether a sequence of n_tokens in all takes the long LongRoPE factors."""
        return self.rope_long_factors is not None and n_tokens > self.rope_original_context

    def tensor_shapes(self) -> dict[str, Shape]:
        """Every weight by GGUF name with its shape in numpy order (rows, columns); RoPE factors are not weights."""
        embedding = (self.n_vocab, self.n_embd)
        shapes: dict[str, Shape] = {"token_embd.weight": embedding, "output_norm.weight": (self.n_embd,)}
        if not self.tie_embeddings:
            shapes["output.weight"] = embedding
        layer = self._layer_shapes()
        shapes.update({f"blk.{i}.{name}": shape for i in range(self.n_layer) for name, shape in layer.items()})
        return shapes

    def _layer_shapes(self) -> dict[str, Shape]:
        n_q, n_kv, d, ff = self.n_head * self.head_dim, self.n_head_kv * self.head_dim, self.n_embd, self.n_ff
        shapes: dict[str, Shape] = {"attn_norm.weight": (d,)}
        if self.architecture == "phi3":  # fused: rows of Q, K, V, then of gate and up
            shapes.update({"attn_qkv.weight": (n_q + 2 * n_kv, d), "ffn_up.weight": (2 * ff, d)})
        else:
            rows = {"attn_q": n_q, "attn_k": n_kv, "attn_v": n_kv}
            shapes.update({f"{name}.weight": (n, d) for name, n in rows.items()})
            if self.qkv_bias:
                shapes.update({f"{name}.bias": (n,) for name, n in rows.items()})
            shapes.update({"ffn_gate.weight": (ff, d), "ffn_up.weight": (ff, d)})
        shapes.update({"attn_output.weight": (d, n_q), "ffn_norm.weight": (d,), "ffn_down.weight": (d, ff)})
        return shapes

    def n_params(self) -> int:
        """Number of parameters, a tied output matrix counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def kv_bytes_per_token(self, cache_type: str) -> int:
        """Bytes one token takes in the KV cache, all layers. cache_type: f16, bf16 or q8_0 (34 bytes for 32 values)."""
        per_head = {"f16": 2 * self.head_dim, "bf16": 2 * self.head_dim, "q8_0": 34 * -(-self.head_dim // 32)}
        if cache_type not in per_head:
            raise ArgumentError(f"unknown cache type {cache_type!r}", f"use one of: {', '.join(per_head)}")
        return 2 * self.n_layer * self.n_head_kv * per_head[cache_type]

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Shape],
        rope_tensors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> ModelConfig:
        """Read and check a model's metadata against the shapes of its tensors.

        metadata: all keys of the file. tensors: numpy-order shapes by name. rope_tensors: the content, float32, of
        those of ROPE_TENSORS the file holds (ValueError if one of them is listed in tensors only).
        Raises FormatError for anything missing, contradictory, absurd or not implemented.
        """
        rope_tensors = rope_tensors or {}
        if unread := [name for name in ROPE_TENSORS if name in tensors and name not in rope_tensors]:
            raise ValueError(f"the content of {unread} must be passed as rope_tensors")
        architecture = _architecture(metadata)
        keys = _Keys(metadata, architecture)
        sizes = _read_sizes(keys, metadata, tensors)
        config = cls(
            architecture=architecture,
            **sizes,
            rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            **_read_rope(keys, rope_tensors, sizes["head_dim"], sizes["n_ctx_train"]),
            rope_interleaved=architecture == "llama",
            sliding_window=_read_window(keys, sizes),
            qkv_bias=architecture == "qwen2" or (architecture == "llama" and "blk.0.attn_q.bias" in tensors),
            tie_embeddings="output.weight" not in tensors,
            causal=keys.flag("attention.causal", True),
            name=str(metadata.get("general.name", "")),
        )
        keys.refuse_the_rest(config)
        _check_tensors(config, tensors)
        return config


def longrope_attn_factor(context: int, original_context: int) -> float:
    """LongRoPE's factor on cos and sin for a model stretched from original_context to context tokens."""
    if context <= original_context or original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(context / original_context) / math.log(original_context))


def _require(holds: bool, message: str, hint: str = "") -> None:
    if not holds:
        raise FormatError(message, hint)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_integer(field: str, value: object, largest: int) -> None:
    _require(isinstance(value, int) and not isinstance(value, bool), f"{field} must be an integer, not {value!r}")
    _require(1 <= cast(int, value) <= largest, f"{field} is {value}; it must lie between 1 and {largest}")


def _check_float(field: str, value: object, largest: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _require(number, f"{field} must be a number, not {value!r}")
    _require(0 < cast(float, value) <= largest, f"{field} is {value}; it must be above 0 and at most {largest:g}")


def _check_heads(config: ModelConfig) -> None:
    _require(
        config.n_head % config.n_head_kv == 0,
        f"n_head is {config.n_head}, which is not a multiple of n_head_kv {config.n_head_kv}",
    )
    _require(config.head_dim % 2 == 0, f"head_dim is {config.head_dim}; it must be even for RoPE")


def _check_rope(config: ModelConfig) -> None:
    _check_float("rope_theta", config.rope_theta, 1e15)
    _check_float("rope_attn_factor", config.rope_attn_factor, 100)
    _check_float("rope_scale", config.rope_scale, 1e6)
    _require(
        config.rope_dim % 2 == 0 and config.rope_dim <= config.head_dim,
        f"rope_dim is {config.rope_dim}; it must be even and at most head_dim {config.head_dim}",
    )
    for field in ("rope_short_factors", "rope_long_factors", "rope_freq_factors"):
        factors = getattr(config, field)
        if factors is None:
            continue
        _require(
            len(factors) == config.rope_dim // 2,
            f"{field} holds {len(factors)} factors for {config.rope_dim // 2} rotated pairs",
        )
        for i, factor in enumerate(factors):
            _check_float(f"{field}[{i}]", factor, 1e9)
    _require(
        (config.rope_short_factors is None) == (config.rope_long_factors is None),
        "one of the short and long RoPE factors is missing",
        "reconvert the model: LongRoPE needs both lists",
    )


class _Keys:
    """The `<architecture>.*` metadata, which remembers what was asked for so that the rest can be judged."""

    # Keys that never change the computation, or whose meaning is checked elsewhere.
    INFORMATION = {"pooling_type", "rope.scaling.finetuned", "tensor_data_layout"}
    # Keys of features not implemented, with the values that switch them off.
    OFF: dict[str, tuple[object, ...]] = {
        "attention.clamp_kqv": (0,),
        "attention.max_alibi_bias": (0,),
        "attn_logit_softcapping": (0,),
        "embedding_scale": (0, 1),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "final_logit_softcapping": (0,),
        "logit_scale": (0, 1),
        "residual_scale": (0, 1),
        "rope.scaling.yarn_attn_factor": (1,),
        "rope.scaling.yarn_ext_factor": (-1, 0),
        "use_parallel_residual": (False,),
    }

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.prefix = f"{architecture}."
        self.values = {key[len(self.prefix) :]: v for key, v in metadata.items() if key.startswith(self.prefix)}
        self.asked: set[str] = set()

    def _get(self, name: str, default: Any) -> Any:
        self.asked.add(name)
        value = self.values.get(name, default)
        _require(value is not ..., f"metadata key {self.prefix}{name} is missing", "the file is no complete model")
        return value

    def integer(self, name: str, default: Any = ...) -> int:
        """An integer key, or a per-layer array of one repeated integer. FormatError if absent without a default."""
        value = self._get(name, default)
        if hasattr(value, "tolist"):
            distinct = set(value.tolist())
            _require(len(distinct) == 1, f"{self.prefix}{name} differs between layers ({_show(value)}): not supported")
            value = distinct.pop()
        if value is default:
            return cast(int, value)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        _require(is_integer, f"{self.prefix}{name} must be an integer, not {_show(value)}")
        return cast(int, value)

    def number(self, name: str, default: Any = ...) -> float:
        """A number key. FormatError if absent without a default, or not finite."""
        value = self._get(name, default)
        if value is default:
            return cast(float, value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(is_number and math.isfinite(value), f"{self.prefix}{name} must be a finite number, not {_show(value)}")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self._get(name, default)
        _require(isinstance(value, str), f"{self.prefix}{name} must be a string, not {_show(value)}")
        return cast(str, value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        _require(isinstance(value, bool), f"{self.prefix}{name} must be true or false, not {_show(value)}")
        return cast(bool, value)

    def refuse_the_rest(self, config: ModelConfig) -> None:
        """FormatError for a key nobody asked for, unless it is information or says that the feature is off."""
        off = self.OFF | {"attention.scale": (0,), "attention.value_length": (config.head_dim,)}
        for name in sorted(self.values.keys() - self.asked - self.INFORMATION):
            value = self.values[name]
            if name == "attention.scale" and isinstance(value, float):
                if math.isclose(value, config.head_dim**-0.5, rel_tol=1e-5):
                    continue
            _require(
                isinstance(value, (int, float)) and value in off.get(name, ()),
                f"metadata key {self.prefix}{name} = {_show(value)} is not supported",
                "it may change what the model computes; this model cannot be run",
            )


def _architecture(metadata: Mapping[str, Any]) -> str:
    architecture = metadata.get("general.architecture")
    _require(isinstance(architecture, str), f"general.architecture must be a string, not {_show(architecture)}")
    _require(
        architecture in ARCHITECTURES,
        f"architecture {architecture!r} is not supported",
        f"supported are {', '.join(ARCHITECTURES)}",
    )
    kind, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    is_model = isinstance(kind, str) and kind == "model"
    _require(is_model, f"general.type is {_show(kind)}, not 'model'", "this file is no complete model")
    is_whole = isinstance(parts, int) and parts in (0, 1)
    _require(is_whole, f"the file is one of {_show(parts)} parts", "join the parts into one GGUF file first")
    return cast(str, architecture)


def _read_sizes(keys: _Keys, metadata: Mapping[str, Any], tensors: Mapping[str, Shape]) -> dict[str, Any]:
    embedding = tensors.get("token_embd.weight")
    _require(embedding is not None, "tensor token_embd.weight is missing", "the file holds no model")
    _require(len(cast(Shape, embedding)) == 2, f"token_embd.weight has shape {embedding}; it must have two dimensions")
    n_vocab = cast(Shape, embedding)[0]
    tokens = metadata.get("tokenizer.ggml.tokens", range(n_vocab))
    _require(isinstance(tokens, (list, range)), f"tokenizer.ggml.tokens is no array of strings: {_show(tokens)}")
    named = {"tokenizer.ggml.tokens": len(tokens), f"{keys.prefix}vocab_size": keys.integer("vocab_size", n_vocab)}
    for key, count in named.items():
        _require(count == n_vocab, f"{key} counts {count} tokens, token_embd.weight has {n_vocab} rows")
    n_embd, n_head = keys.integer("embedding_length"), keys.integer("attention.head_count")
    _check_integer("attention.head_count", n_head, _LIMITS["n_head"])
    head_dim = keys.integer("attention.key_length", 0)
    if head_dim == 0:
        _require(n_embd % n_head == 0, f"embedding_length {n_embd} is not a multiple of attention.head_count {n_head}")
        head_dim = n_embd // n_head
    return {
        "n_vocab": n_vocab,
        "n_embd": n_embd,
        "n_layer": keys.integer("block_count"),
        "n_head": n_head,
        "n_head_kv": keys.integer("attention.head_count_kv", n_head),
        "head_dim": head_dim,
        "n_ff": keys.integer("feed_forward_length"),
        "n_ctx_train": keys.integer("context_length"),
    }


def _read_rope(
    keys: _Keys, rope_tensors: Mapping[str, NDArray[np.float32]], head_dim: int, context: int
) -> dict[str, Any]:
    """The RoPE fields. Defaults are GGUF's: theta 10000, all dimensions rotate, no scaling."""
    kind = keys.text("rope.scaling.type", "linear")  # a bare factor means linear scaling
    _require(kind in ("none", "linear", "longrope"), f"{keys.prefix}rope.scaling.type = {kind!r} is not supported")
    scale = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    _require(kind != "longrope" or scale == 1, f"rope.scaling.factor = {scale:g} beside longrope is not supported")
    factors = {name: tuple(float(f) for f in array.ravel()) for name, array in rope_tensors.items()}
    original = keys.integer("rope.scaling.original_context_length", 0)
    attn_factor = keys.number("rope.scaling.attn_factor", 0.0)
    if ROPE_LONG in factors:
        key = f"{keys.prefix}rope.scaling.original_context_length"
        _require(original > 0, f"{key} is missing beside {ROPE_LONG}", "reconvert the model")
        # Files converted before July 2024 have the factors but not this key; the formula gives what it would hold.
        attn_factor = attn_factor or longrope_attn_factor(context, original)
    return {
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_dim": keys.integer("rope.dimension_count", head_dim),
        "rope_short_factors": factors.get(ROPE_SHORT),
        "rope_long_factors": factors.get(ROPE_LONG),
        "rope_freq_factors": factors.get(ROPE_FREQS),
        "rope_original_context": original,
        "rope_attn_factor": attn_factor or 1.0,
        "rope_scale": 1.0 if kind == "none" else scale,
    }


def _read_window(keys: _Keys, sizes: Mapping[str, Any]) -> int | None:
    """The sliding window; 0 in the file means none.

    Phi-3-mini-4k and -medium-4k files converted before July 2024 lack the key, yet the models were trained with a
    window of 2047: inferred from 4096 tokens of context and 32 or 40 layers, as llama.cpp did (pull request 8627).
    """
    inferred = keys.prefix == "phi3." and sizes["n_ctx_train"] == 4096 and sizes["n_layer"] in (32, 40)
    return keys.integer("attention.sliding_window", 2047 if inferred else 0) or None


def _check_tensors(config: ModelConfig, tensors: Mapping[str, Shape]) -> None:
    expected = config.tensor_shapes()
    missing = [name for name in expected if name not in tensors]
    listed = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
    _require(not missing, f"{len(missing)} of {len(expected)} tensors are missing: {listed}", "fetch the file again")
    for name, shape in expected.items():
        found = tuple(tensors[name])
        _require(found == shape, f"tensor {name} has shape {found}, the metadata make it {shape}")
    for name in tensors:
        known = name in expected or name in ROPE_TENSORS
        _require(
            known, f"tensor {name} has no place in a {config.architecture} model", "it cannot be run as it is meant"
        )


def _factors(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


# Published factors (config.json of each model). Phi-3-mini-128k: the mid-2024 refresh, not the first release.
_PHI35_SHORT = _factors("""
    1.00 1.02 1.03 1.03 1.05 1.05 1.05 1.05 1.05 1.07 1.10 1.11 1.16 1.16 1.17 1.29 1.34 1.68 1.79 1.82 1.85 1.88
    1.91 1.94 1.99 2.02 2.02 2.02 2.02 2.02 2.02 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.08 2.09 2.19 2.22
    2.59 2.73 2.75 2.84
""")
_PHI35_LONG = _factors("""
    1.08 1.11 1.14 1.34 1.59 1.60 1.62 2.62 3.23 3.23 4.79 7.40 7.70 9.09 12.20 17.67 24.46 28.57 30.42 30.84 32.59
    32.93 42.32 44.96 50.34 50.45 57.55 57.93 58.21 60.14 62.61 62.62 62.71 63.14 63.14 63.77 63.93 63.96 63.97
    64.03 64.07 64.08 64.12 64.41 64.48 64.51 64.53 64.84
""")
_MINI_128K_SHORT = _factors("""
    1.1 1.1 1.1 1.3 1.35 1.35 1.4 1.55 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2.05 2.05 2.05 2.05 2.05 2.05 2.1 2.1 2.15
    2.25 2.25 2.25 2.25 2.25 2.4 2.45 2.5 2.7 2.7 2.75 2.8 2.9 3.05
""")
_MINI_128K_LONG = _factors("""
    1.07 1.12 1.15 1.42 1.57 1.80 2.13 2.13 3.01 5.91 6.95 9.07 9.93 10.71 11.13 14.61 15.41 19.81 37.28 38.28 38.60
    40.12 46.20 50.94 53.66 54.93739 56.89739 57.28739 59.98738 60.86739 60.88739 61.71739 62.91739 62.95739
    63.41739 63.81739 63.83739 63.8974 63.9374 64.0674 64.11435 64.12435 64.15435 64.19435 64.24435 64.57436 64.69
    64.76
""")
_PHI4_MINI_LONG = _factors("""
    1 1.118320672 1.250641126 1.398617824 1.564103225 1.74916897 1.956131817 2.187582649 2.446418898 2.735880826
    3.059592084 3.421605075 3.826451687 4.279200023 4.785517845 5.351743533 5.984965424 6.693110555 7.485043894
    8.370679318 9.36110372 10.4687158 11.70738129 13.09260651 14.64173252 16.37415215 18.31155283 20.47818807
    22.90118105 25.61086418 28.64115884 32.03 32.1 32.13 32.23 32.6 32.61 32.64 32.66 32.7 32.71 32.93 32.97 33.28
    33.49 33.5 44.16 47.77
""")


def _preset(name: str, architecture: str, sizes: Sequence[int], context: int, **other: Any) -> ModelConfig:
    """sizes: n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff."""
    values: dict[str, Any] = dict(zip((f.name for f in fields(ModelConfig)[1:8]), sizes, strict=True))
    values |= {"name": name, "architecture": architecture, "n_ctx_train": context}
    values |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_dim": values["head_dim"]}
    values["rope_interleaved"] = architecture == "llama"
    if "rope_long_factors" in other:
        values |= {"rope_original_context": 4096, "rope_attn_factor": longrope_attn_factor(context, 4096)}
    return ModelConfig(**(values | other))


_MINI = (32064, 3072, 32, 32, 32, 96, 8192)
_MEDIUM = (32064, 5120, 40, 40, 10, 128, 17920)
_LONG = 131072
_MINI_128K = {"rope_short_factors": _MINI_128K_SHORT, "rope_long_factors": _MINI_128K_LONG}
_PHI35 = {"rope_short_factors": _PHI35_SHORT, "rope_long_factors": _PHI35_LONG}
_PHI4_MINI = {"rope_dim": 96, "rope_short_factors": (1.0,) * 48, "rope_long_factors": _PHI4_MINI_LONG}
_QWEN2 = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True, "tie_embeddings": True}
_ALL = (
    _preset("phi-3-mini-4k", "phi3", _MINI, 4096, sliding_window=2047),
    _preset("phi-3-mini-128k", "phi3", _MINI, _LONG, **_MINI_128K),
    _preset("phi-3.5-mini", "phi3", _MINI, _LONG, **_PHI35),
    _preset("phi-3-medium-4k", "phi3", _MEDIUM, 4096, sliding_window=2047),
    # Shape only: its factor lists were not at hand to confirm. A model file brings its own.
    _preset("phi-3-medium-128k", "phi3", _MEDIUM, _LONG),
    _preset("phi-4-mini", "phi3", (200064, 3072, 32, 24, 8, 128, 8192), _LONG, tie_embeddings=True, **_PHI4_MINI),
    _preset("smollm2-135m", "llama", (49152, 576, 30, 9, 3, 64, 1536), 8192, rope_theta=1e5, tie_embeddings=True),
    _preset("qwen2-0.5b", "qwen2", (151936, 896, 24, 14, 2, 64, 4864), 32768, **_QWEN2),
)
PRESETS: dict[str, ModelConfig] = {config.name: config for config in _ALL}
