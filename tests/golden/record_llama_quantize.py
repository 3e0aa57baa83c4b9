"""Records which types llama.cpp's own quantiser gives each tensor, so that the tests never need it installed.

    PYTHONPATH=src:. PEERS_PYTHON tests/golden/record_llama_quantize.py tests/golden/quantize_types.json

Each case is a model of zeros of some shape, written, quantised by llama-cpp-python's llama_model_quantize to every
recipe, with an importance matrix and without, and read back. Kept is the type of every matrix, runs of layers of equal
types together.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from phial.config import ModelConfig
from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import read_gguf, write_gguf
from phial.gguf.mixes import RECIPES

try:
    import llama_cpp
except ImportError:  # the tests read cases and foldings from here and need no llama.cpp
    llama_cpp = None

# What a case changes in SHAPE. Widths that are no multiple of 256 or 32 meet the fall-backs.
SHAPE = {"n_embd": 256, "n_ff": 256, "n_layer": 2, "n_head": 2, "n_head_kv": 1, "tie": False}
CASES: dict[str, dict[str, Any]] = {
    "phi3, 32 layers": {"architecture": "phi3", "n_layer": 32, "n_head_kv": 2},
    "phi3, 40 layers": {"architecture": "phi3", "n_layer": 40},
    "phi3, tied": {"architecture": "phi3", "tie": True},
    "phi3, width 64": {"architecture": "phi3", "n_embd": 64, "n_ff": 96, "n_layer": 9},
    "llama, 30 layers, width 576 of SmolLM2, tied": {
        "architecture": "llama",
        "n_embd": 576,
        "n_ff": 1536,
        "n_layer": 30,
        "n_head": 9,
        "n_head_kv": 3,
        "tie": True,
    },  # fmt: skip
    "llama, 22 layers": {"architecture": "llama", "n_layer": 22},
    "llama, 80 layers": {"architecture": "llama", "n_layer": 80},
    "llama, 80 layers, no shared heads": {"architecture": "llama", "n_layer": 80, "n_head_kv": 2},
    "llama, width 48": {"architecture": "llama", "n_embd": 48, "n_ff": 80, "n_layer": 3},
    "qwen2, 24 layers, tied": {"architecture": "qwen2", "n_layer": 24, "tie": True},
    "qwen2, 80 layers": {"architecture": "qwen2", "n_layer": 80, "n_head_kv": 2},
    "phi3, 80 layers": {"architecture": "phi3", "n_layer": 80},
}
OVERRIDES = {  # --output-type and --embedding-type, on these cases
    "output": {"output_tensor_type": GGMLType.Q8_0},
    "embedding": {"token_embedding_type": GGMLType.Q4_0},
    "both": {"output_tensor_type": GGMLType.F16, "token_embedding_type": GGMLType.Q8_0},
}
N_VOCAB = 32


def config_of(case: dict[str, Any]) -> ModelConfig:
    """The configuration of a case, from what it changes or from its whole shape in the JSON file."""
    shape = {**SHAPE, **case}
    head_dim = shape["n_embd"] // shape["n_head"]
    return ModelConfig(
        architecture=shape["architecture"],
        n_vocab=N_VOCAB,
        **{key: shape[key] for key in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv")},
        head_dim=head_dim,
        n_ctx_train=64,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        rope_dim=head_dim,
        rope_interleaved=shape["architecture"] == "llama",
        qkv_bias=shape["architecture"] == "qwen2",
        tie_embeddings=shape["tie"],
    )


def write(config: ModelConfig, path: Path) -> None:
    """The model with zeros for weights, in F32."""
    a = config.architecture
    metadata = {
        "general.architecture": a,
        f"{a}.vocab_size": N_VOCAB,
        f"{a}.context_length": config.n_ctx_train,
        f"{a}.embedding_length": config.n_embd,
        f"{a}.feed_forward_length": config.n_ff,
        f"{a}.block_count": config.n_layer,
        f"{a}.attention.head_count": config.n_head,
        f"{a}.attention.head_count_kv": config.n_head_kv,
        f"{a}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{a}.rope.dimension_count": config.rope_dim,
        f"{a}.rope.freq_base": config.rope_theta,
    }
    zeros = [
        (n, s, GGMLType.F32, quantize(np.zeros(s, np.float32), GGMLType.F32)) for n, s in config.tensor_shapes().items()
    ]
    write_gguf(path, metadata, zeros)


def importance(config: ModelConfig) -> tuple[Any, list[Any]]:
    """Ones for every matrix as llama.cpp takes them, and what must stay alive meanwhile."""
    names = {name.encode(): shape[-1] for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    alive: list[Any] = [(ctypes.c_float * columns)(*[1.0] * columns) for columns in names.values()]
    entries = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, data in zip(entries, names, alive, strict=False):
        entry.name, entry.data, entry.size = name, data, len(data)
    return entries, alive


def types(config: ModelConfig, source: Path, recipe: str, *, matrix: bool, **overrides: int) -> dict[str, str]:
    """The type of every matrix, as llama.cpp wrote it."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = RECIPES[recipe].file_type, 2
    for key, value in overrides.items():
        setattr(parameters, key, int(value))
    entries, alive = importance(config)
    if matrix:
        parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    target = source.with_suffix(".quantised")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, (recipe, matrix, overrides)
    del alive
    with read_gguf(target) as file:
        return folded({n: info.type.name for n, info in file.tensors.items() if len(info.shape) == 2})


def folded(found: dict[str, str]) -> dict[str, str]:
    """{"attn_v": "Q6_K 0-3 6, Q4_K 4 5"}: for each kind its types with the layers that have them."""
    kinds: dict[str, dict[str, list[int]]] = {}
    for name, kind in found.items():
        parts = name.split(".")
        layer, stem = (int(parts[1]), parts[2]) if parts[0] == "blk" else (0, parts[0])
        kinds.setdefault(stem, {}).setdefault(kind, []).append(layer)
    return {
        stem: ", ".join(f"{kind} {runs(sorted(layers))}" for kind, layers in sorted(by_type.items()))
        for stem, by_type in sorted(kinds.items())
    }


def runs(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2 5"."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def main(target: str) -> None:
    """Record every case and write the JSON file."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            config, path = config_of(case), Path(folder) / "model.gguf"
            write(config, path)
            recorded: dict[str, Any] = {"case": name, "shape": {**SHAPE, **case}}
            for recipe in RECIPES:
                recorded[recipe] = types(config, path, recipe, matrix=False)
                with_matrix = types(config, path, recipe, matrix=True)
                if with_matrix != recorded[recipe]:
                    recorded[f"{recipe} with matrix"] = with_matrix
            if "tied" in name or name == "llama, 22 layers":
                for what, overrides in OVERRIDES.items():
                    if config.n_embd % 256 == 0:
                        recorded[f"Q4_K_M {what}"] = types(config, path, "Q4_K_M", matrix=False, **overrides)
            cases.append(recorded)
    recorded = {"source": f"llama-cpp-python {llama_cpp.__version__}", "cases": cases}
    Path(target).write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
