"""A LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors in a folder.

As with config.json of a model, a key that is neither read nor known to be information must be empty or switched off:
DoRA, biases and whatever comes next change what is computed, so they are errors that name the key. Modules carry
their Hugging Face names and row order; Q and K of a llama model are brought into GGUF's order here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phial.config import ModelConfig
from phial.errors import FormatError
from phial.gguf.lora import OTHER_MODEL, Adapter, Halves, LowRank, adaptable, low_rank, scaled, unknown_target
from phial.hf.folder import read_json
from phial.hf.names import hf_name, to_gguf_rows
from phial.hf.safetensors import StoredTensor, read_safetensors
from phial.hf.settings import Settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# About training, storage and which modules were chosen, which the tensors say themselves.
_INFORMATION = set(
    """auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules inference_mode layers_pattern
    layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision runtime_config
    target_modules task_type""".split()
)
# Ways to initialise that leave the base model as it was; the others train against a changed one.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
PREFIX = "base_model.model."  # of every tensor's name
_HALF = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_PATTERN = re.compile(r"(?:[\w.^$|*+\[\]()-]|\\[.dw])+")


def read_peft_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """The adapter of a folder. Raises FormatError: a missing or damaged file, or what cannot be honoured, by name."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = name == WEIGHTS and (folder / "adapter_model.bin").is_file()
            hint = "only safetensors are read, never pickles" if pickled else "name the folder that PEFT saved"
            raise FormatError(f"there is no {name}", hint)
    settings = _Settings(read_json(folder / CONFIG))
    stored = read_safetensors(folder / WEIGHTS)
    deltas = {}
    for name, halves in _pairs(stored, config).items():
        a, b = low_rank(halves, adaptable(config)[name])
        settings.check_rank(halves.name, len(a))
        b = scaled(halves.name, b, settings.scale(halves.name, len(a)))
        deltas[name] = LowRank(a, np.ascontiguousarray(to_gguf_rows(name, config, b)))
    return Adapter(folder.resolve().name, deltas)


def _pairs(stored: Mapping[str, StoredTensor], config: ModelConfig) -> dict[str, Halves]:
    """The halves by the GGUF name of their matrix."""
    modules = {hf_name(name, config.architecture).removesuffix(".weight"): name for name in adaptable(config)}
    found: dict[str, Halves] = {}
    for key, tensor in stored.items():
        match = _HALF.fullmatch(key)
        if match is None:
            if _is_frozen_copy(key, stored):
                continue
            raise FormatError(f"tensor {key} is no half of a LoRA product", _why_not(key))
        module = match["module"]
        if module not in modules:
            raise unknown_target(key, config)
        setattr(found.setdefault(modules[module], Halves(module)), match["half"].lower(), tensor.floats(tensor.raw))
    if not found:
        raise FormatError("it holds no LoRA tensors", OTHER_MODEL)
    return found


def _is_frozen_copy(key: str, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether this is the model's own output matrix, which PEFT saves again beside its adapter unless told not to.

    It was frozen while the adapter was trained, so it says nothing new; with another number of rows it does.
    """
    copied, b = stored[key].shape, stored.get(f"{PREFIX}lm_head.lora_B.weight")
    return key == f"{PREFIX}lm_head.base_layer.weight" and b is not None and copied[:1] == b.shape[:1]


def _why_not(key: str) -> str:
    """What a tensor that is no half of a low-rank product is likely to be."""
    if "lora_embedding" in key:
        return "embeddings cannot be adapted; merge the adapter into the model with PEFT and convert that"
    if "magnitude" in key:
        return "DoRA is not supported; merge the adapter into the model with PEFT and convert that"
    if key.endswith("bias"):
        return "biases cannot be adapted; merge the adapter into the model with PEFT and convert that"
    return "whole layers in an adapter are not supported: save with save_embedding_layers=False, or merge it with PEFT"


class _Settings:
    """adapter_config.json, checked: rank and scale of every module."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        keys = Settings(values, CONFIG)
        kind, start = keys.get("peft_type", None), keys.get("init_lora_weights", True)
        if kind != "LORA":
            raise FormatError(f"{CONFIG}: peft_type is {kind!r:.60}", "only LORA is supported")
        if not isinstance(start, (str, bool)) or start not in _PLAIN_STARTS:
            hint = "it was trained against a changed base model: save it from PEFT as plain LoRA, or merge it"
            raise FormatError(f"{CONFIG}: init_lora_weights is {start!r:.60}", hint)
        if (bias := keys.get("bias", "none")) != "none":
            raise FormatError(f"{CONFIG}: bias is {bias!r:.60}", "biases cannot be adapted: merge it with PEFT")
        self._rank, self._ranks = keys.number("r", 8), _patterns(keys.get("rank_pattern", {}), "rank_pattern")
        self._alpha, self._alphas = (
            keys.number("lora_alpha", 8),
            _patterns(keys.get("alpha_pattern", {}), "alpha_pattern"),
        )
        self._rooted = keys.flag("use_rslora", False)
        for key in sorted(values.keys() - keys.asked - _INFORMATION):
            if values[key] not in (None, False, [], {}, ""):
                hint = "it may change what is computed: merge the adapter into the model with PEFT and convert that"
                raise FormatError(f"{CONFIG}: {key} = {values[key]!r:.60} is not supported", hint)

    def check_rank(self, module: str, rank: int) -> None:
        """FormatError where the configuration gives the module another rank than its tensors have."""
        expected = _first_match(self._ranks, module, self._rank)
        if rank != expected:
            raise FormatError(
                f"{module} has rank {rank}, {CONFIG} makes it {expected:g}", "the two do not belong together"
            )

    def scale(self, module: str, rank: int) -> float:
        """alpha / rank, or with rank-stabilised LoRA alpha / sqrt(rank)."""
        return _first_match(self._alphas, module, self._alpha) / (math.sqrt(rank) if self._rooted else rank)


def _patterns(given: Any, key: str) -> dict[re.Pattern[str], float]:
    """Numbers by the pattern of the module names they hold for, in PEFT's sense: the end of the name."""
    if not isinstance(given, dict):
        raise FormatError(f"{CONFIG}: {key} is {given!r:.60}, not an object")
    keys = Settings(given, f"{CONFIG}: {key}")
    return {_compiled(key, pattern): keys.number(pattern) for pattern in given}


def _compiled(key: str, pattern: str) -> re.Pattern[str]:
    """A pattern for the end of a module's name, unless a stranger could have written it to take for ever."""
    repetitions, choices = pattern.count("*") + pattern.count("+"), pattern.count("|")
    try:
        if not _PATTERN.fullmatch(pattern) or re.search(r"\)[*+]", pattern) or repetitions > 2 or choices > 8:
            raise re.error("too general a pattern; names, classes, few repetitions and alternatives are read")
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise FormatError(f"{CONFIG}: {key} has the key {pattern!r:.60}: {error}") from error


def _first_match(patterns: Mapping[re.Pattern[str], float], module: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)
