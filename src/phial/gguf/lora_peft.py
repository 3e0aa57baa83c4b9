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

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias"}
# About training, storage and which modules were chosen, which the tensors say themselves.
_INFORMATION = set(
    """auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules inference_mode layers_pattern
    layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision runtime_config
    target_modules task_type""".split()
)
# Ways to initialise that leave the base model as it was; the others train against a changed one.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_HALF = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
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
            raise FormatError(f"tensor {key} is no half of a LoRA product", _why_not(key))
        module = match["module"]
        if module not in modules:
            raise unknown_target(key, config)
        setattr(found.setdefault(modules[module], Halves(module)), match["half"].lower(), tensor.floats(tensor.raw))
    if not found:
        raise FormatError("it holds no LoRA tensors", OTHER_MODEL)
    return found


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
        if values.get("peft_type") != "LORA":
            raise FormatError(f"{CONFIG}: peft_type is {values.get('peft_type')!r:.60}", "only LORA is supported")
        start, bias = values.get("init_lora_weights"), values.get("bias", "none")
        if not isinstance(start, (str, bool, type(None))) or start not in _PLAIN_STARTS:
            hint = "it was trained against a changed base model: save it from PEFT as plain LoRA, or merge it"
            raise FormatError(f"{CONFIG}: init_lora_weights is {start!r:.60}", hint)
        if bias not in (None, "none"):
            raise FormatError(
                f"{CONFIG}: bias is {bias!r:.60}", "biases cannot be adapted: merge the adapter with PEFT"
            )
        for key in sorted(values.keys() - _READ - _INFORMATION):
            if values[key] not in (None, False, [], {}, ""):
                hint = "it may change what is computed: merge the adapter into the model with PEFT and convert that"
                raise FormatError(f"{CONFIG}: {key} = {values[key]!r:.60} is not supported", hint)
        self._rank, self._ranks = _number(values, "r", 8), _patterns(values, "rank_pattern")
        self._alpha, self._alphas = _number(values, "lora_alpha", 8), _patterns(values, "alpha_pattern")
        self._rooted = values.get("use_rslora") or False
        if not isinstance(self._rooted, bool):
            raise FormatError(f"{CONFIG}: use_rslora is {self._rooted!r:.60}, not true or false")

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


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FormatError(f"{CONFIG}: {key} is {value!r:.60}, not a number")
    return float(value)


def _patterns(values: Mapping[str, Any], key: str) -> dict[re.Pattern[str], float]:
    """Numbers by the pattern of the module names they hold for, in PEFT's sense: the end of the name."""
    given = values.get(key) or {}
    if not isinstance(given, dict):
        raise FormatError(f"{CONFIG}: {key} is {given!r:.60}, not an object")
    return {_compiled(key, pattern): _number(given, pattern, 0) for pattern in given}


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
