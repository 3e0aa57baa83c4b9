"""ModelConfig: the published numbers to the unit, GGUF metadata read or refused, nothing ignored."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import metadata as tiny_metadata
from tests.tiny_models import shapes as tiny_shapes

from phial.config import PRESETS, ROPE_TENSORS, ModelConfig, longrope_attn_factor
from phial.errors import ArgumentError, FormatError
from phial.gguf.container import read_gguf
from phial.gguf.metadata import gguf_metadata
from phial.hf.config import read_hf_config, write_hf_config

File = tuple[dict[str, Any], dict[str, tuple[int, ...]]]
MINI, PHI35, PHI4 = PRESETS["phi-3-mini-4k"], PRESETS["phi-3.5-mini"], PRESETS["phi-4-mini"]


def file_of(config: ModelConfig, **changes: Any) -> File:
    """Metadata and tensor shapes as a converter writes them; `changes` by key without the architecture, ... removes."""
    a = config.architecture
    metadata = {
        f"{a}.context_length": config.n_ctx_train,
        f"{a}.embedding_length": config.n_embd,
        f"{a}.feed_forward_length": config.n_ff,
        f"{a}.block_count": config.n_layer,
        f"{a}.attention.head_count": config.n_head,
        f"{a}.attention.head_count_kv": config.n_head_kv,
        f"{a}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{a}.rope.dimension_count": config.rope_dim,
        f"{a}.rope.freq_base": config.rope_theta,
        f"{a}.rope.scaling.original_context_length": config.rope_original_context,
        **{f"{a}.{key.replace('__', '.')}": value for key, value in changes.items()},
        "general.architecture": a,
        "general.name": config.name,
        "tokenizer.ggml.tokens": [str(i) for i in range(config.n_vocab)],
    }
    return {key: value for key, value in metadata.items() if value is not ...}, config.tensor_shapes()


def rope_tensors_of(config: ModelConfig) -> dict[str, np.ndarray]:
    lists = (config.rope_long_factors, config.rope_short_factors, config.rope_freq_factors)
    return {
        name: np.array(values, np.float32)
        for name, values in zip(ROPE_TENSORS, lists, strict=True)
        if values is not None
    }


def tiny(architecture: str = "phi3") -> File:
    return tiny_metadata(architecture), dict(tiny_shapes(architecture))


# Phi-3 report and configs; SmolLM2 and Qwen2 from their cards' safetensors.
@pytest.mark.parametrize(
    ("name", "n_params", "kv_bytes"),
    [
        ("phi-3-mini-4k", 3_821_079_552, 393_216),
        ("phi-3-mini-128k", 3_821_079_552, 393_216),
        ("phi-3.5-mini", 3_821_079_552, 393_216),
        ("phi-3-medium-4k", 13_960_238_080, 204_800),
        ("phi-3-medium-128k", 13_960_238_080, 204_800),
        ("phi-4-mini", 3_836_021_760, 131_072),
        ("smollm2-135m", 134_515_008, 23_040),
        ("qwen2-0.5b", 494_032_768, 12_288),
    ],
)
def test_presets_have_the_published_parameter_and_cache_sizes(name: str, n_params: int, kv_bytes: int) -> None:
    assert PRESETS[name].n_params() == n_params
    assert PRESETS[name].kv_bytes_per_token("f16") == kv_bytes
    assert PRESETS[name].name == name


def test_a_q8_0_cache_takes_34_bytes_for_32_values_and_other_types_are_refused() -> None:
    assert MINI.kv_bytes_per_token("bf16") == MINI.kv_bytes_per_token("f16") == 393_216
    assert MINI.kv_bytes_per_token("q8_0") == 393_216 // 2 * 34 // 32
    with pytest.raises(ArgumentError, match="q4_0"):
        MINI.kv_bytes_per_token("q4_0")


def test_inverse_frequencies_of_phi_3_5_mini() -> None:
    short, long = PHI35.inv_freq(long=False), PHI35.inv_freq(long=True)
    assert short.shape == long.shape == (48,) and short.dtype == long.dtype == np.float32
    golden = [0, 1, 12, 24, 47]
    np.testing.assert_allclose(short[golden], [1.0, 0.8092198, 0.08620690, 5.025126e-3, 4.265942e-5], rtol=1e-6)
    np.testing.assert_allclose(long[golden], [0.9259259, 0.7436074, 0.01298701, 1.986492e-4, 1.868488e-6], rtol=1e-6)


def test_attention_factors_of_the_published_models() -> None:
    assert longrope_attn_factor(131072, 4096) == pytest.approx(1.1902380714, abs=1e-10)
    assert longrope_attn_factor(131072, 8192) == pytest.approx(1.1435437498, abs=1e-10)
    assert longrope_attn_factor(131072, 2048) == pytest.approx(1.243163121016122, abs=1e-12)
    assert longrope_attn_factor(4096, 4096) == 1.0
    assert PHI35.rope_attn_factor**2 == pytest.approx(17 / 12)


def test_a_sequence_is_long_from_one_token_beyond_the_original_context() -> None:
    assert [PHI35.uses_long(n) for n in (1, 4096, 4097)] == [False, False, True]
    assert not MINI.uses_long(4097)


def test_partial_rotary_linear_scaling_and_frequency_factors_enter_the_frequencies() -> None:
    np.testing.assert_allclose(PHI4.inv_freq(False), 10000.0 ** (-np.arange(48) / 48), rtol=1e-6)
    np.testing.assert_allclose(replace(MINI, rope_scale=4.0).inv_freq(False), MINI.inv_freq(False) / 4, rtol=1e-6)
    factors = tuple(float(i) for i in range(1, 49))
    scaled = replace(MINI, rope_freq_factors=factors)
    np.testing.assert_allclose(scaled.inv_freq(False), MINI.inv_freq(False) / np.arange(1, 49), rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_as_metadata_is_read_back(name: str) -> None:
    config = PRESETS[name]
    head = {"attention__key_length": config.head_dim, "attention__value_length": config.head_dim}
    metadata, tensors = file_of(config, attention__sliding_window=config.sliding_window or 0, **head)
    read = ModelConfig.from_gguf(metadata, tensors, rope_tensors_of(config))
    for field in ("rope_long_factors", "rope_short_factors"):  # stored as float32
        np.testing.assert_allclose(getattr(read, field) or (), getattr(config, field) or (), rtol=1e-6)
    plain = {"rope_long_factors": None, "rope_short_factors": None}
    assert replace(read, **plain) == replace(config, **plain)


def test_tokens_that_see_both_ways_are_read_from_both_formats_and_no_window_goes_with_it() -> None:
    both = replace(next(iter(PRESETS.values())), sliding_window=None, causal=False)
    assert read_hf_config(write_hf_config(both, "float32")).causal is False
    metadata, tensors = file_of(both)
    written, key = gguf_metadata(both), "phi3.attention.causal"
    assert written[key] is False and key not in gguf_metadata(replace(both, causal=True))
    assert ModelConfig.from_gguf(metadata | written, tensors, rope_tensors_of(both)).causal is False
    with pytest.raises(FormatError, match="a window of 20 where tokens see both ways"):
        replace(both, sliding_window=20)


def test_a_real_file_is_read(smollm2: Path) -> None:
    with read_gguf(smollm2) as file:
        config = ModelConfig.from_gguf(file.metadata, {name: info.shape for name, info in file.tensors.items()})
    expected = replace(PRESETS["smollm2-135m"], name=config.name, rms_norm_eps=config.rms_norm_eps)
    assert config == expected
    assert config.rms_norm_eps == pytest.approx(1e-5)


def test_an_old_phi3_file_without_a_window_gets_the_2047_it_was_trained_with() -> None:
    for name in ("phi-3-mini-4k", "phi-3-medium-4k"):
        assert ModelConfig.from_gguf(*file_of(PRESETS[name])).sliding_window == 2047
    other = replace(MINI, n_layer=24)
    assert ModelConfig.from_gguf(*file_of(other)).sliding_window is None
    assert ModelConfig.from_gguf(*file_of(MINI, attention__sliding_window=0)).sliding_window is None
    assert ModelConfig.from_gguf(*file_of(MINI, attention__sliding_window=1000)).sliding_window == 1000
    smol = PRESETS["smollm2-135m"]
    assert ModelConfig.from_gguf(*file_of(replace(smol, n_ctx_train=4096, n_layer=32))).sliding_window is None


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert replace(PHI35, sliding_window=262144).sliding_window is None
    assert replace(MINI, sliding_window=4096).sliding_window is None
    assert replace(MINI, sliding_window=4095).sliding_window == 4095


def test_the_stored_attention_factor_goes_before_the_formula() -> None:
    metadata, tensors = file_of(PHI35, rope__scaling__attn_factor=1.25)
    assert ModelConfig.from_gguf(metadata, tensors, rope_tensors_of(PHI35)).rope_attn_factor == 1.25
    metadata, tensors = file_of(PHI35)
    read = ModelConfig.from_gguf(metadata, tensors, rope_tensors_of(PHI35))
    assert read.rope_attn_factor == pytest.approx(1.1902380714)


def test_linear_scaling_needs_no_type_and_none_switches_it_off() -> None:
    read = [
        ModelConfig.from_gguf(*file_of(MINI, rope__scaling__factor=4.0, **more)).rope_scale
        for more in ({}, {"rope__scaling__type": "linear"}, {"rope__scaling__type": "none"})
    ]
    assert read == [4.0, 4.0, 1.0]
    assert ModelConfig.from_gguf(*file_of(MINI, rope__scale_linear=2.0)).rope_scale == 2.0


def test_llama_pairs_neighbours_and_the_others_halves() -> None:
    read = {a: ModelConfig.from_gguf(*tiny(a)) for a in ("phi3", "llama", "qwen2")}
    assert {a: config.rope_interleaved for a, config in read.items()} == {"phi3": False, "llama": True, "qwen2": False}
    assert {a: config.qkv_bias for a, config in read.items()} == {"phi3": False, "llama": False, "qwen2": True}


def test_llama_with_biases_is_seen_from_its_tensors() -> None:
    metadata, tensors = tiny("llama")
    tensors |= {f"blk.{i}.attn_{n}.bias": tensors[f"blk.{i}.attn_{n}.weight"][:1] for i in (0, 1) for n in "qkv"}
    assert ModelConfig.from_gguf(metadata, tensors).qkv_bias


BAD_FIELDS: dict[str, Any] = {
    "architecture": "gpt2", "n_head": 0, "n_head_kv": 5, "head_dim": 95, "n_layer": 10**9, "n_vocab": 10**10,
    "n_embd": -1, "n_ff": 1 << 40, "n_ctx_train": 0, "rms_norm_eps": math.nan, "rope_theta": math.inf, "rope_dim": 97,
    "rope_attn_factor": -1.0, "rope_scale": 0.0, "sliding_window": 0, "rope_short_factors": (1.0,) * 48,
    "rope_long_factors": (1.0,) * 47, "rope_freq_factors": (math.nan,) * 48, "rope_original_context": -1,
}  # fmt: skip


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_an_absurd_field_is_named_with_its_value(field: str) -> None:
    with pytest.raises(FormatError) as caught:
        replace(MINI, **{field: BAD_FIELDS[field]})
    value = BAD_FIELDS[field]
    assert {"rope_short_factors": "long RoPE factors"}.get(field, field) in caught.value.message
    shown = {"rope_long_factors": "47", "rope_freq_factors": "nan", "rope_short_factors": "missing"}
    assert shown.get(field, str(value)) in caught.value.message


BAD_KEYS: list[tuple[str, Any, str]] = [
    ("phi3.attention.head_count", 0, "attention.head_count"),
    ("phi3.attention.head_count", 5, "256 is not a multiple of attention.head_count 5"),
    ("phi3.attention.head_count", np.array([4, 8], np.int32), "differs between layers"),
    ("phi3.attention.head_count", "four", "'four'"),
    ("phi3.attention.head_count_kv", 3, "n_head is 4.*n_head_kv 3"),
    ("phi3.attention.key_length", 63, "head_dim is 63"),
    ("phi3.block_count", 10**9, "n_layer is 1000000000"),
    ("phi3.block_count", 3, "tensors are missing: blk.2."),
    ("phi3.feed_forward_length", 500, r"ffn_up.weight has shape \(1024, 256\), the metadata make it \(1000, 256\)"),
    ("phi3.attention.layer_norm_rms_epsilon", math.nan, "layer_norm_rms_epsilon must be a finite number, not nan"),
    ("phi3.attention.layer_norm_rms_epsilon", 0.0, "rms_norm_eps is 0"),
    ("phi3.rope.dimension_count", 66, "rope_dim is 66.*head_dim 64"),
    ("phi3.rope.freq_base", -1.0, "rope_theta is -1"),
    ("phi3.rope.scaling.type", "yarn", "rope.scaling.type = 'yarn'"),
    ("phi3.rope.scaling.type", 3, "must be a string"),
    ("phi3.attention.sliding_window", -5, "sliding_window is -5"),
    ("phi3.vocab_size", 7, "vocab_size counts 7 tokens"),
    ("phi3.expert_count", 8, "expert_count = 8"),
    ("phi3.attn_logit_softcapping", 50.0, "attn_logit_softcapping = 50.0"),
    ("phi3.use_parallel_residual", True, "use_parallel_residual = True"),
    ("phi3.attention.scale", 0.5, "attention.scale = 0.5"),
    ("phi3.attention.value_length", 32, "attention.value_length = 32"),
    ("phi3.attention.causal", "no", "attention.causal must be true or false, not 'no'"),
    ("phi3.something.new", np.arange(100000), "something.new"),
    ("tokenizer.ggml.tokens", ["a", "b"], "tokenizer.ggml.tokens counts 2 tokens, token_embd.weight has"),
    ("tokenizer.ggml.tokens", 3, "no array of strings"),
    ("general.architecture", "mamba", "'mamba' is not supported"),
    ("general.architecture", np.arange(3), "must be a string"),
    ("general.type", "adapter", "adapter"),
    ("split.count", 4, "one of 4 parts"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_KEYS, ids=[f"{k}={str(v)[:20]}" for k, v, _ in BAD_KEYS])
def test_a_bad_key_is_refused_with_its_name_and_number(key: str, value: Any, message: str) -> None:
    metadata, tensors = tiny()
    with pytest.raises(FormatError, match=message) as caught:
        ModelConfig.from_gguf(metadata | {key: value}, tensors)
    assert len(str(caught.value)) < 400


ODD_VALUES: list[Any] = [0, -1, 1 << 63, True, math.nan, math.inf, "", "x" * 10**5, [], ["a"]]
ODD_VALUES += [np.zeros(0), np.arange(9), np.ones(3)]


@pytest.mark.parametrize("architecture", ["phi3", "llama", "qwen2"])
def test_no_value_of_any_key_does_worse_than_a_format_error(architecture: str) -> None:
    metadata, tensors = tiny(architecture)
    keys = {*metadata, f"{architecture}.attention.sliding_window", f"{architecture}.rope.scaling.factor", "split.count"}
    refused = 0
    for key in keys | {f"{architecture}.{name}" for name in ("rope.scaling.type", "expert_count", "new", "vocab_size")}:
        for value in ODD_VALUES:
            try:
                ModelConfig.from_gguf(metadata | {key: value}, tensors)
            except FormatError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "key",
    ["context_length", "embedding_length", "block_count", "attention.head_count", "feed_forward_length",
     "attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_a_missing_key_is_named(key: str) -> None:
    metadata, tensors = tiny()
    del metadata[f"phi3.{key}"]
    with pytest.raises(FormatError, match=f"phi3.{key} is missing"):
        ModelConfig.from_gguf(metadata, tensors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi3.expert_count", 0),
        ("phi3.attention.value_length", 64),
        ("phi3.attention.scale", 0.125),
        ("phi3.attention.head_count_kv", np.array([2, 2], np.int32)),
        ("phi3.final_logit_softcapping", 0.0),
        ("phi3.use_parallel_residual", False),
        ("phi3.rope.scaling.finetuned", True),
        ("phi3.rope.scaling.type", "longrope"),
        ("llama.expert_count", 8),  # another architecture's key means nothing here
    ],
)
def test_a_key_that_changes_nothing_is_accepted(key: str, value: Any) -> None:
    metadata, tensors = tiny()
    assert ModelConfig.from_gguf(metadata | {key: value}, tensors) == ModelConfig.from_gguf(metadata, tensors)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("token_embd.weight"), "token_embd.weight is missing"),
        (lambda t: t.pop("blk.1.attn_qkv.weight"), "1 of 15 tensors are missing: blk.1.attn_qkv.weight"),
        (lambda t: t.update({"token_embd.weight": (5,)}), "two dimensions"),
        (lambda t: t.update({"blk.0.attn_qkv.weight": (768, 256)}), r"has shape \(768, 256\).*\(512, 256\)"),
        (lambda t: t.update({"blk.0.attn_q_norm.weight": (64,)}), "blk.0.attn_q_norm.weight has no place"),
        (lambda t: t.update({"blk.0.attn_qkv.bias": (512,)}), "blk.0.attn_qkv.bias has no place"),
        (lambda t: t.update({"output.bias": (512,)}), "output.bias has no place"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(change: Change, message: str) -> None:
    metadata, tensors = tiny()
    change(tensors)
    with pytest.raises(FormatError, match=message):
        ModelConfig.from_gguf(metadata, tensors)


def test_rope_tensors_are_checked() -> None:
    metadata, tensors = tiny()
    both = {name: np.ones(32, np.float32) for name in ROPE_TENSORS[:2]}
    ModelConfig.from_gguf(metadata, tensors, both)
    with pytest.raises(FormatError, match="holds 31 factors for 32"):
        ModelConfig.from_gguf(metadata, tensors, {name: values[1:] for name, values in both.items()})
    with pytest.raises(FormatError, match="one of the short and long"):
        ModelConfig.from_gguf(metadata, tensors, {ROPE_TENSORS[0]: both[ROPE_TENSORS[0]]})
    with pytest.raises(FormatError, match=r"rope_long_factors\[3\] is 0"):
        wrong = np.ones(32, np.float32)
        wrong[3] = 0
        ModelConfig.from_gguf(metadata, tensors, both | {ROPE_TENSORS[0]: wrong})
    with pytest.raises(FormatError, match="original_context_length is missing"):
        del metadata["phi3.rope.scaling.original_context_length"]
        ModelConfig.from_gguf(metadata, tensors, both)
    with pytest.raises(ValueError, match="rope_freqs"):  # the caller's mistake: dropping them would change the model
        ModelConfig.from_gguf(metadata, tensors | {"rope_freqs.weight": (32,)})


def test_importing_the_config_imports_no_numpy() -> None:
    code = "import sys, phial.config; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
