"""Correct containers of absurd models: refused by ModelConfig or Tokenizer, at once, with numbers.

The files are those of tests/tiny_models.py with one thing broken.
"""

from __future__ import annotations

import copy
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny_models

from phial.config import ROPE_TENSORS, ModelConfig
from phial.errors import FormatError, PhialError
from phial.gguf.blocks import GGMLType, n_bytes
from phial.gguf.container import GGUFFile, read_gguf, write_gguf
from phial.tokenizer.tokenizer import Tokenizer

Metadata = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def tiny(architecture: str) -> tuple[Metadata, Shapes]:
    return tiny_models.metadata(architecture), dict(tiny_models.shapes(architecture))


def written(path: Path, metadata: Metadata, shapes: Shapes) -> GGUFFile:
    """A file with all weights zero, read back."""
    tensors = []
    for name, shape in shapes.items():
        kind = GGMLType.Q2_K if len(shape) == 2 and shape[1] % 256 == 0 else GGMLType.F32
        tensors.append((name, shape, kind, np.zeros(n_bytes(kind, shape), np.uint8)))
    write_gguf(path, metadata, tensors)
    return read_gguf(path)


def configured(file: GGUFFile) -> ModelConfig:
    rope = {name: file.dequantized(name) for name in ROPE_TENSORS if name in file.tensors}
    return ModelConfig.from_gguf(file.metadata, {name: info.shape for name, info in file.tensors.items()}, rope)


def refused(read: Callable[[], object]) -> str:
    """The message of the FormatError, after checking that it came soon and in little memory."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(FormatError) as caught:
            read()
        elapsed, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert elapsed < 2 and peak < 8 << 20
    return caught.value.message


# (key after the architecture, value, what the message must say)
HYPER_PARAMETERS = [
    ("block_count", 10**9, ("1000000000",)),
    ("block_count", 2**64 - 1, (str(2**64 - 1),)),
    ("block_count", 0, ("0",)),
    ("block_count", -1, ("-1",)),
    ("block_count", 3, ("blk.2",)),
    ("block_count", "2", ("block_count", "'2'")),
    ("block_count", 2.0, ("block_count", "2.0")),
    ("block_count", True, ("block_count", "True")),
    ("block_count", None, ("block_count", "missing")),
    ("attention.head_count", 0, ("head_count", "0")),
    ("attention.head_count", 2**31, (str(2**31),)),
    ("attention.head_count", 3, ("256", "3")),
    ("attention.head_count", None, ("head_count", "missing")),
    ("attention.head_count_kv", 0, ("0",)),
    ("attention.head_count_kv", 3, ("4", "3")),
    ("attention.head_count_kv", np.array([2, 1], np.int32), ("head_count_kv",)),
    ("attention.head_count_kv", np.array([], np.int32), ("head_count_kv",)),
    ("attention.key_length", 63, ("63",)),
    ("attention.key_length", 2**40, (str(2**40),)),
    ("embedding_length", 0, ("0",)),
    ("embedding_length", 512, ("512", "256")),
    ("embedding_length", np.array([256, 256], np.float32), ("embedding_length",)),
    ("feed_forward_length", 0, ("0",)),
    ("feed_forward_length", 10**12, (str(10**12),)),
    ("feed_forward_length", 511, ("blk.0.ffn",)),
    ("context_length", 0, ("0",)),
    ("context_length", 2**63, (str(2**63),)),
    ("vocab_size", 5, ("5", "vocab_size")),
    ("attention.layer_norm_rms_epsilon", float("nan"), ("epsilon", "nan")),
    ("attention.layer_norm_rms_epsilon", float("inf"), ("epsilon", "inf")),
    ("attention.layer_norm_rms_epsilon", -0.5, ("eps", "-0.5")),
    ("attention.layer_norm_rms_epsilon", 0.0, ("eps", "0")),
    ("attention.layer_norm_rms_epsilon", None, ("epsilon", "missing")),
    ("rope.freq_base", float("nan"), ("freq_base", "nan")),
    ("rope.freq_base", 0.0, ("rope_theta", "0")),
    ("rope.freq_base", -10000.0, ("rope_theta", "-10000")),
    ("rope.dimension_count", 0, ("0",)),
    ("rope.dimension_count", 63, ("63",)),
    ("rope.dimension_count", 128, ("128", "64")),
    ("rope.scaling.type", "yarn", ("yarn",)),
    ("rope.scaling.factor", float("inf"), ("factor", "inf")),
    ("attention.sliding_window", -5, ("-5",)),
    ("attention.sliding_window", float("nan"), ("sliding_window", "nan")),
]  # fmt: skip


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_unbroken_models_are_accepted(tmp_path: Path, architecture: str) -> None:
    with written(tmp_path / "tiny.gguf", *tiny(architecture)) as file:
        assert configured(file).n_layer == tiny_models.LAYERS
        assert Tokenizer.from_gguf(file.metadata).n_vocab == len(file.metadata["tokenizer.ggml.tokens"])


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
@pytest.mark.parametrize(("key", "value", "says"), HYPER_PARAMETERS, ids=lambda part: f"{part!r:.40}")
def test_absurd_hyper_parameter_is_refused(
    tmp_path: Path, architecture: str, key: str, value: Any, says: tuple[str, ...]
) -> None:
    metadata, shapes = tiny(architecture)
    metadata[f"{architecture}.{key}"] = value
    if value is None:
        del metadata[f"{architecture}.{key}"]
    with written(tmp_path / "bad.gguf", metadata, shapes) as file:
        message = refused(lambda: configured(file))
    assert [part for part in says if part not in message] == [], message


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("token_embd.weight", (100, 256), ("100", "tokenizer.ggml.tokens")),
        ("token_embd.weight", (256,), ("token_embd.weight", "(256,)")),
        ("token_embd.weight", None, ("token_embd.weight",)),
        ("output.weight", (100, 256), ("output.weight", "(100, 256)")),
        ("output_norm.weight", (255,), ("output_norm.weight", "(255,)", "(256,)")),
        ("blk.1.ffn_down.weight", (256, 256), ("blk.1.ffn_down.weight", "(256, 256)", "(256, 512)")),
        ("blk.1.ffn_down.weight", None, ("blk.1.ffn_down.weight",)),
        ("blk.0.attn_qkv.weight", (256, 512), ("blk.0.attn_qkv.weight", "(512, 256)")),
        ("blk.7.attn_norm.weight", (256,), ("blk.7.attn_norm.weight",)),
        ("blk.0.ffn_gate_inp.weight", (8, 256), ("blk.0.ffn_gate_inp.weight",)),
    ],
    ids=lambda part: f"{part!r:.40}",
)
def test_tensor_of_the_wrong_shape_absent_or_unknown_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None, says: tuple[str, ...]
) -> None:
    metadata, shapes = tiny("phi3")
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    with written(tmp_path / "bad.gguf", metadata, shapes) as file:
        message = refused(lambda: configured(file))
    assert [part for part in says if part not in message] == [], message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_rope_factors_that_are_no_positive_numbers_are_refused(value: float) -> None:
    metadata, shapes = tiny("phi3")
    factors = np.full(32, 1.5, np.float32)
    factors[7] = value
    rope = dict.fromkeys(("rope_factors_short.weight", "rope_factors_long.weight"), factors)
    message = refused(lambda: ModelConfig.from_gguf(metadata, {**shapes, **dict.fromkeys(rope, (32,))}, rope))
    assert "[7]" in message and f"{value:g}" in message


@pytest.mark.parametrize("architecture", ["gemma", "", None, 3, "phi3\0"])
def test_unknown_architecture_is_refused(architecture: Any) -> None:
    metadata, shapes = tiny("phi3")
    metadata["general.architecture"] = architecture
    assert "architecture" in refused(lambda: ModelConfig.from_gguf(metadata, shapes))


TOKENIZER = [
    ("tokens", [], ("tokens",)),
    ("tokens", np.arange(9, dtype=np.int32), ("tokens",)),
    ("tokens", "text", ("tokens",)),
    ("tokens", None, ("tokens",)),
    ("tokens", ["<unk>", "<s>", "</s>"], ("3",)),
    ("model", "unknown", ("unknown",)),
    ("model", None, ("model",)),
    ("scores", np.zeros(5, np.float32), ("scores", "5")),
    ("scores", None, ("scores",)),
    ("scores", "many", ("scores",)),
    ("token_type", np.zeros(5, np.int32), ("token_type", "5")),
    ("token_type", 1, ("token_type",)),
    ("bos_token_id", 2**31, ("bos_token_id", str(2**31))),
    ("bos_token_id", -1, ("bos_token_id", "-1")),
    ("bos_token_id", "1", ("bos_token_id",)),
    ("eos_token_id", 99999, ("eos_token_id", "99999")),
    ("eot_token_id", 99999, ("eot_token_id", "99999")),
    ("unknown_token_id", 99999, ("unknown_token_id", "99999")),
    ("padding_token_id", 99999, ("padding_token_id", "99999")),
    ("add_bos_token", 3, ("add_bos_token",)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "says"), TOKENIZER, ids=lambda part: f"{part!r:.40}")
def test_absurd_vocabulary_is_refused(tmp_path: Path, key: str, value: Any, says: tuple[str, ...]) -> None:
    metadata, _ = tiny("phi3")
    metadata[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with written(tmp_path / "bad.gguf", metadata, {}) as file:
        message = refused(lambda: Tokenizer.from_gguf(file.metadata))
    assert [part for part in says if part not in message] == [], message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    metadata, _ = tiny("phi3")
    metadata["tokenizer.ggml.scores"][300] = value
    assert "scores" in refused(lambda: Tokenizer.from_gguf(metadata))


@pytest.mark.parametrize("kind", [-1, 7, 2**31 - 1])
def test_unknown_token_type_is_refused(kind: int) -> None:
    metadata, _ = tiny("phi3")
    metadata["tokenizer.ggml.token_type"][300] = kind
    assert str(kind) in refused(lambda: Tokenizer.from_gguf(metadata))


ANY_VALUE = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2, 255, 256, 2**31, 2**32, -1]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.text(max_size=4), max_size=4),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(lambda items: np.array(items, np.int32)),
    st.lists(st.floats(width=32), max_size=4).map(lambda items: np.array(items, np.float32)),
)


@settings(max_examples=400, deadline=4000)
@given(st.sampled_from(tiny_models.ARCHITECTURES), st.data())
def test_any_value_under_any_key_is_read_or_refused(architecture: str, data: st.DataObject) -> None:
    metadata, shapes = copy.deepcopy(tiny(architecture))
    optional = [f"{architecture}.{key}" for key, _, _ in HYPER_PARAMETERS] + [
        f"tokenizer.ggml.{k}" for k, _, _ in TOKENIZER
    ]
    optional += [f"{architecture}.expert_count", "general.type", "split.count", "tokenizer.ggml.merges"]
    for key in data.draw(st.lists(st.sampled_from([*metadata, *optional]), min_size=1, max_size=3)):
        metadata[key] = data.draw(ANY_VALUE)
    for read in (lambda: ModelConfig.from_gguf(metadata, shapes), lambda: Tokenizer.from_gguf(metadata)):
        try:
            read()
        except PhialError as error:
            assert error.message
