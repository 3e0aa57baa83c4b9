"""An adapter that is being trained, as PEFT saves one: adapter_config.json and adapter_model.safetensors in a folder.

Only what training needs to go on is read back here; gguf/lora_peft.py reads adapters of any origin to run them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phial.errors import FormatError
from phial.gguf.lora_peft import CONFIG, PREFIX, WEIGHTS
from phial.hf.folder import new_folder, read_json, write_json
from phial.hf.safetensors import NewTensor, read_safetensors, write_safetensors
from phial.train.lora import LoraConfig, adapted

_DECIDE = (  # keys that must be the run's own: they decide what is computed
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "bias", "modules_to_save",
)  # fmt: skip


def write_adapter(model: nn.Module, config: LoraConfig, folder: Path, base: str) -> None:
    """Write the adapters of a model, in float32, in place of what the folder held.

    Args:
        base: of what model they are, for people: "base_model_name_or_path".

    Raises PhialError where the disk refuses.
    """
    tensors: list[NewTensor] = []
    for name, weight in _halves(model).items():
        values = weight.detach().to("cpu", torch.float32).contiguous()
        tensors.append((name, "F32", tuple(values.shape), [values.view(torch.uint8).numpy()]))
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as unfinished:
        write_json(unfinished / CONFIG, _settings(model, config) | {"base_model_name_or_path": base})
        write_safetensors(unfinished / WEIGHTS, tensors)


@torch.no_grad()
def read_adapter(model: nn.Module, config: LoraConfig, folder: Path) -> None:
    """Fill the adapters of a model from a folder.

    Raises FormatError where it has none, or another rank, scale or other matrices than the configuration says.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} has no {name}", "name the folder of an adapter")
    there = read_json(folder / CONFIG)
    for key in _DECIDE:
        if (was := there.get(key) or None) != (now := _settings(model, config).get(key) or None):
            raise FormatError(f"the adapter in {folder} has {key} = {was!r:.60}, the run {now!r}", "give it the same")
    stored, halves = read_safetensors(folder / WEIGHTS), _halves(model)
    if other := sorted(stored.keys() ^ halves.keys()):
        whose = "adapter" if other[0] in stored else "run"
        raise FormatError(f"only the {whose} has {other[0]}", "name the same targets, on the same model")
    for name, weight in halves.items():
        values = torch.from_numpy(stored[name].floats(stored[name].raw))
        if values.shape != weight.shape or not values.isfinite().all():
            raise FormatError(f"{folder}: {name} of shape {tuple(values.shape)} is damaged, or of another model")
        weight.copy_(values)


def _halves(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted matrix, by the names of PEFT's file."""
    return {
        f"{PREFIX}{name}.lora_{half}.weight": getattr(module, f"lora_{half}").weight
        for name, module in adapted(model).items()
        for half in "AB"
    }


def _settings(model: nn.Module, config: LoraConfig) -> dict[str, Any]:
    """adapter_config.json, with the keys that decide what is computed."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted(model)}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
