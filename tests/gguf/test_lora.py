"""Adapter files of both kinds: what is read, and that whatever cannot be honoured is one error that names it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.config import ModelConfig
from phial.engine.model_file import read_config
from phial.errors import PhialError
from phial.gguf.adapter import read_adapter
from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import read_gguf, write_gguf

torch = pytest.importorskip("torch", reason="torch and transformers write the tiny models")
from tests.engine.tiny_models import tiny_llama, tiny_phi3  # noqa: E402
from tests.lora_adapters import PREFIX, RandomAdapter, random_adapter, write_adapter_gguf, write_peft  # noqa: E402

Q = "model.layers.0.self_attn.q_proj"


class Llama:
    """A tiny llama and an adapter of its Q and down matrices; rank 4, alpha 6."""

    def __init__(self, folder: Path) -> None:
        path, self.model = tiny_llama(folder)
        self.config = config_of(path)
        self.adapter = random_adapter(self.model, 4, 0, lambda name: name.endswith(("q_proj", "down_proj")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return Llama(tmp_path_factory.mktemp("llama"))


def config_of(path: Path) -> ModelConfig:
    with read_gguf(path) as file:
        return read_config(file)


def product(adapter: Any, name: str) -> np.ndarray:
    return adapter.deltas[name].b.astype(np.float64) @ adapter.deltas[name].a


def test_both_forms_of_an_adapter_are_the_same_adapter(llama: Llama, tmp_path: Path) -> None:
    peft = read_adapter(write_peft(tmp_path / "poet", llama.adapter), llama.config)
    gguf = read_adapter(write_adapter_gguf(tmp_path / "poet.gguf", llama.adapter), llama.config)
    assert peft.name == gguf.name == "poet"
    assert set(peft.deltas) == {f"blk.{i}.{part}.weight" for i in (0, 1) for part in ("attn_q", "ffn_down")}
    for name, delta in peft.deltas.items():
        np.testing.assert_array_equal(delta.a, gguf.deltas[name].a)
        np.testing.assert_array_equal(delta.b, gguf.deltas[name].b)
    assert peft.fingerprint == gguf.fingerprint
    expected = llama.adapter.gguf_rows(Q, llama.adapter.delta(Q))
    np.testing.assert_allclose(product(peft, "blk.0.attn_q.weight"), expected, atol=1e-6)


def test_fused_matrices_of_phi3_keep_their_rows(tmp_path: Path) -> None:
    path, model = tiny_phi3(tmp_path)
    adapter = random_adapter(model)
    ours = read_adapter(write_peft(tmp_path / "all", adapter), config_of(path))
    for ending, name in (("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")):
        expected = adapter.delta(f"model.layers.1.{ending}")
        np.testing.assert_allclose(product(ours, f"blk.1.{name}.weight"), expected, atol=1e-6)
    assert len(ours.deltas) == 4 * 2 + 1


def test_the_copy_of_the_output_matrix_that_peft_saves_changes_nothing(llama: Llama, tmp_path: Path) -> None:
    """With lm_head among its targets PEFT saves the frozen matrix too; with other rows it would be another one."""
    from safetensors.numpy import load_file, save_file

    adapter = random_adapter(llama.model, 4, 0, lambda name: name == "lm_head")
    path = write_peft(tmp_path, adapter) / "adapter_model.safetensors"
    expected, tensors = read_adapter(tmp_path, llama.config), load_file(path)
    tensors[f"{PREFIX}lm_head.base_layer.weight"] = llama.model.lm_head.weight.detach().numpy()
    save_file(tensors, path)
    assert read_adapter(tmp_path, llama.config).fingerprint == expected.fingerprint
    tensors[f"{PREFIX}lm_head.base_layer.weight"] = np.zeros((460, 64), np.float32)
    save_file(tensors, path)
    refused(tmp_path, llama.config, "save_embedding_layers")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.5),
        ({"lora_alpha": 2}, 0.5),
        ({"use_rslora": True}, 3.0),
        ({"alpha_pattern": {"q_proj": 10}}, 2.5),
        ({"alpha_pattern": {"k_proj": 10, "proj": 10}}, 1.5),  # the ends of names, not parts of words
        ({"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 10}}, 1.5),
        ({"alpha_pattern": {r"layers\.[0-1]\..*\.(k_proj|q_proj)": 8}}, 2.0),
        ({"r": 7, "rank_pattern": {"q_proj": 4, "down_proj": 4}}, 1.5),
        ({"r": 7, "rank_pattern": {r"layers\.\d+\..*": 4}, "init_lora_weights": "eva"}, 1.5),
    ],
)
def test_the_scale_follows_pefts_settings(llama: Llama, tmp_path: Path, settings: Any, scale: float) -> None:
    ours = read_adapter(write_peft(tmp_path, llama.adapter, **settings), llama.config)
    a, b = llama.adapter.products[Q]
    expected = llama.adapter.gguf_rows(Q, scale * (b @ a))
    np.testing.assert_allclose(product(ours, "blk.0.attn_q.weight"), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.BF16])
def test_half_precision_files_are_read(llama: Llama, tmp_path: Path, kind: GGMLType) -> None:
    ours = read_adapter(write_adapter_gguf(tmp_path / "a.gguf", llama.adapter, kind), llama.config)
    expected = llama.adapter.gguf_rows(Q, llama.adapter.delta(Q))
    np.testing.assert_allclose(product(ours, "blk.0.attn_q.weight"), expected, atol=0.05)


def test_a_gguf_adapter_without_alpha_is_not_scaled(llama: Llama, tmp_path: Path) -> None:
    """As llama.cpp has it: alpha 0 or absent leaves B A as it is."""
    path = write_adapter_gguf(tmp_path / "a.gguf", llama.adapter, adapter__lora__alpha=0.0)
    a, b = llama.adapter.products[Q]
    ours = product(read_adapter(path, llama.config), "blk.0.attn_q.weight")
    np.testing.assert_allclose(ours, llama.adapter.gguf_rows(Q, b @ a), atol=1e-6)


def refused(path: Path, config: ModelConfig, *named: str) -> None:
    """One error that names the adapter and what is wrong with it."""
    with pytest.raises(PhialError) as caught:
        read_adapter(path, config)
    for part in (path.name, *named):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "lora_only"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"something_new": {"on": 1}}, "something_new"),
        ({"use_qalora": 0.5}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": [1]}, "init_lora_weights"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": 1e40}, "alpha / rank"),
        ({"r": 8}, "rank 4"),
        ({"r": True}, "True"),
        ({"rank_pattern": {"q_proj": 5}}, "rank 4"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": "4"}}, "'4'"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "alpha_pattern"),
        ({"alpha_pattern": {"(a|a)" * 20: 1}}, "alpha_pattern"),
        ({"alpha_pattern": {"(q_proj": 1}}, "alpha_pattern"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_named(llama: Llama, tmp_path: Path, settings: Any, named: str) -> None:
    refused(write_peft(tmp_path, llama.adapter, **settings), llama.config, named)


TENSORS = {
    "no B": ({f"{Q}.lora_B.weight": None}, "no B"),
    "no A": ({f"{Q}.lora_A.weight": None}, "no A"),
    "unknown target": ({"model.layers.0.mlp.gate_up_proj.lora_A.weight": (4, 64)}, "gate_up_proj"),
    "beyond the last layer": ({"model.layers.2.mlp.down_proj.lora_A.weight": (4, 96)}, "layers.2"),
    "wrong columns": ({f"{Q}.lora_A.weight": (4, 32)}, "64 x 64"),
    "wrong rows": ({f"{Q}.lora_B.weight": (32, 4)}, "64 x 64"),
    "two ranks": ({f"{Q}.lora_B.weight": (64, 5)}, "(64, 5)"),
    "rank 0": ({f"{Q}.lora_A.weight": (0, 64), f"{Q}.lora_B.weight": (64, 0)}, "(0, 64)"),
    "three dimensions": ({f"{Q}.lora_A.weight": (4, 64, 1)}, "(4, 64, 1)"),
    "NaN": ({f"{Q}.lora_A.weight": np.full((4, 64), np.nan, np.float32)}, "NaN"),
    "infinity": ({f"{Q}.lora_B.weight": np.full((64, 4), np.inf, np.float32)}, "NaN"),
    "DoRA": ({f"{Q}.lora_magnitude_vector.weight": (64,)}, "DoRA"),
    "bias": ({f"{Q}.lora_B.bias": (64,)}, "bias"),
    "embedding": ({"model.embed_tokens.lora_embedding_A": (4, 452)}, "embedding"),
    "a whole layer": ({"lm_head.weight": (452, 64)}, "save_embedding_layers"),
    "a norm": ({"model.norm.lora_A.weight": (1, 64)}, "model.norm"),
}


@pytest.mark.parametrize("changes", TENSORS)
def test_tensors_that_do_not_fit_are_named(llama: Llama, tmp_path: Path, changes: str) -> None:
    from safetensors.numpy import load_file, save_file

    path = write_peft(tmp_path, llama.adapter) / "adapter_model.safetensors"
    tensors, (changed, named) = load_file(path), TENSORS[changes]
    for name, value in changed.items():
        del_it, key = value is None, PREFIX + name
        array = value if isinstance(value, np.ndarray) else np.zeros(value or (), np.float32)
        tensors = {k: v for k, v in tensors.items() if k != key} | ({} if del_it else {key: array})
    save_file(tensors, path)
    refused(tmp_path, llama.config, named)


def test_a_folder_without_its_files_or_with_damaged_ones(llama: Llama, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    refused(folder, llama.config, "adapter_config.json")
    write_peft(folder, llama.adapter)
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], struct.pack("<Q", 1 << 40) + whole[8:]):
        weights.write_bytes(damaged)
        refused(folder, llama.config, "adapter_model.safetensors")
    weights.write_bytes(whole)
    for text in ("", "[]", "{", json.dumps({})):
        settings.write_text(text)
        refused(folder, llama.config, "adapter")
    write_peft(folder, llama.adapter)
    weights.rename(folder / "adapter_model.bin")
    refused(folder, llama.config, "never pickles")
    refused(tmp_path / "nowhere", llama.config, "nowhere")


def test_an_empty_adapter_is_refused(llama: Llama, tmp_path: Path) -> None:
    empty = RandomAdapter("llama", 1.0, 4, {}, {})
    refused(write_peft(tmp_path / "empty", empty), llama.config, "no LoRA tensors")
    refused(write_adapter_gguf(tmp_path / "empty.gguf", empty), llama.config, "no LoRA tensors")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general__type": "model"}, "general.type"),
        ({"general__architecture": "phi3"}, "'phi3'"),
        ({"general__architecture": 7}, "general.architecture"),
        ({"adapter__type": "control_vector"}, "control_vector"),
        ({"adapter__lora__alpha": "6"}, "adapter.lora.alpha"),
        ({"adapter__lora__alpha": float("nan")}, "adapter.lora.alpha"),
        ({"adapter__alora__invocation_tokens": [1, 2]}, "adapter.alora.invocation_tokens"),
    ],
    ids=str,
)
def test_gguf_metadata_that_cannot_be_honoured_are_named(
    llama: Llama, tmp_path: Path, metadata: Any, named: str
) -> None:
    refused(write_adapter_gguf(tmp_path / "a.gguf", llama.adapter, **metadata), llama.config, named)


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("blk.0.attn_q.weight", (64, 64), "no half"),
        ("blk.0.attn_norm.weight", (64,), "attn_norm"),
        ("blk.0.attn_k.weight.lora_a", (4, 64), "no B"),
        ("blk.0.attn_qkv.weight.lora_a", (4, 64), "attn_qkv"),
        ("token_embd.weight.lora_a", (4, 64), "token_embd"),
        (".lora_a", (4, 64), "lora_a"),
    ],
)
def test_gguf_tensors_that_do_not_fit_are_named(
    llama: Llama, tmp_path: Path, name: str, shape: tuple[int, ...], named: str
) -> None:
    path = write_adapter_gguf(tmp_path / "a.gguf", llama.adapter)
    with read_gguf(path) as file:
        tensors: list[Any] = [
            (info.name, info.shape, info.type, file.data(info.name)) for info in file.tensors.values()
        ]
        tensors.append((name, shape, GGMLType.F32, quantize(np.zeros(shape, np.float32), GGMLType.F32)))
        write_gguf(tmp_path / "b.gguf", file.metadata, tensors)
    refused(tmp_path / "b.gguf", llama.config, named)


def test_an_adapter_of_another_size_of_model_is_refused(llama: Llama, tmp_path: Path) -> None:
    path, _ = tiny_llama(tmp_path, n_embd=32)
    for adapter in (write_peft(tmp_path / "a", llama.adapter), write_adapter_gguf(tmp_path / "a.gguf", llama.adapter)):
        refused(adapter, config_of(path), "another model")
    with pytest.raises(PhialError, match="GGUF"):
        read_adapter(tmp_path / "a" / "adapter_model.safetensors", llama.config)
