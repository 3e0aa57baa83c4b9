"""Random LoRA adapters for the tiny models: as PEFT would save them, as llama.cpp's converter would, and merged.

An adapter here is {Hugging Face module: (A, B)} and alpha, so that the truth can be built in transformers' own terms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tests.engine.tiny_models import LAYER_NAMES

from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import read_gguf, write_gguf

PREFIX = "base_model.model."


@dataclass
class RandomAdapter:
    """Products for every matrix of a transformers model, or those `chosen`, each of the size of the weights."""

    architecture: str
    alpha: float
    rank: int
    heads: dict[str, int]  # of the matrices whose rows GGUF permutes
    products: dict[str, tuple[np.ndarray, np.ndarray]]

    def delta(self, module: str) -> np.ndarray:
        a, b = self.products[module]
        return self.alpha / len(a) * (b.astype(np.float64) @ a)

    def gguf_name(self, module: str) -> str:
        if module == "lm_head":
            return "output.weight"
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{LAYER_NAMES[part]}.weight"

    def gguf_rows(self, module: str, rows: np.ndarray) -> np.ndarray:
        """Rows in the order of the GGUF file: of each head i and i + half become neighbours."""
        heads = self.heads.get(module.rsplit(".", 1)[-1])
        if heads is None:
            return rows
        return rows[np.arange(len(rows)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)]


def random_adapter(
    model: torch.nn.Module, rank: int = 4, seed: int = 0, chosen: Callable[[str], bool] = lambda module: True
) -> RandomAdapter:
    """For a model of tests/engine/tiny_models."""
    rng, config = np.random.default_rng(seed), model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    products = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and chosen(name):
            rows, columns = module.weight.shape
            a = rng.standard_normal((rank, columns), np.float32) / columns**0.5
            products[name] = a, rng.standard_normal((rows, rank), np.float32) / np.float32(2 * rank**0.5)
    return RandomAdapter(config.model_type, 1.5 * rank, rank, heads if config.model_type == "llama" else {}, products)


def write_peft(folder: Path, adapter: RandomAdapter, **settings: Any) -> Path:
    """The two files PEFT saves, with the keys it writes. settings: changes of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in adapter.products.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = a, b
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "somewhere/tiny", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": adapter.alpha,
        "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "peft_type": "LORA", "r": adapter.rank, "rank_pattern": {}, "revision": None,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in adapter.products}),
        "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def write_adapter_gguf(path: Path, adapter: RandomAdapter, type: GGMLType = GGMLType.F32, **metadata: Any) -> Path:
    """The file of llama.cpp's converter. metadata: changes, with __ for the dots of a key."""
    tensors = []
    for module, (a, b) in adapter.products.items():
        for half, values in (("a", a), ("b", adapter.gguf_rows(module, b))):
            tensors.append((f"{adapter.gguf_name(module)}.lora_{half}", values.shape, type, quantize(values, type)))
    keys = {
        "general.architecture": adapter.architecture, "general.type": "adapter", "general.name": path.stem,
        "adapter.type": "lora", "adapter.lora.alpha": float(adapter.alpha),
    } | {key.replace("__", "."): value for key, value in metadata.items()}  # fmt: skip
    write_gguf(path, keys, tensors)
    return path


def merge_into(model: torch.nn.Module, adapter: RandomAdapter, scale: float = 1.0) -> None:
    """Add an adapter to a transformers model's weights."""
    for module in adapter.products:
        weight = model.get_submodule(module).weight
        weight.data = (weight.double() + torch.from_numpy(scale * adapter.delta(module))).float()


def merged_file(base: Path, path: Path, adapters: Sequence[tuple[RandomAdapter, float]]) -> Path:
    """A copy of an F32 file with the adapters added to its weights."""
    with read_gguf(base) as file:
        values = {name: file.dequantized(name).astype(np.float64) for name in file.tensors}
        for adapter, scale in adapters:
            for module in adapter.products:
                values[adapter.gguf_name(module)] += scale * adapter.gguf_rows(module, adapter.delta(module))
        tensors = [
            (name, array.shape, GGMLType.F32, quantize(array.astype(np.float32), GGMLType.F32))
            for name, array in values.items()
        ]
        write_gguf(path, file.typed_metadata(), tensors)
    return path
