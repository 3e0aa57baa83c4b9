"""The keys of a config.json, read once and strictly: a key that nobody asks for is an error.

A model that would be computed differently must not load quietly. Exempt are keys known not to change the computation,
empty ones, and features not implemented that are switched off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from phial.errors import FormatError

# Keys about training, storage and habits of generation. Token ids are read with the tokenizer.
INFORMATION = set(
    """_name_or_path architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype embd_pdrop
    eos_token_id id2label initializer_range is_llama_config label2id max_window_layers model_type output_attentions
    output_hidden_states pad_token_id problem_type resid_pdrop return_dict torch_dtype transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_cache""".split()
)
# Keys of features not implemented, with the value that is.
ONLY: dict[str, object] = {
    "attention_bias": False, "hidden_act": "silu", "is_encoder_decoder": False, "add_cross_attention": False,
    "mlp_bias": False, "pretraining_tp": 1, "rope_interleaved": False, "tie_encoder_decoder": False,
}  # fmt: skip


class Settings:
    """The keys of config.json, or of the rope settings in it, which remember what was asked for.

    only: keys of features not implemented, with the value that is; besides those every architecture has.
    """

    def __init__(self, values: Mapping[str, Any], where: str, only: Mapping[str, object] | None = None) -> None:
        self.values, self.where = values, where
        self.only = ONLY | dict(only or {})
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = ...) -> Any:
        """The value, `default` where it is absent or null. FormatError where it is absent without a default."""
        self.asked.add(name)
        value = self.values.get(name)
        if value is None and default is ...:
            raise FormatError(f"{self.where} has no {name}", "the folder holds no complete model")
        return default if value is None else value

    def number(self, name: str, default: Any = ...) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FormatError(f"{self.where}: {name} is {value!r}, not a number")
        return float(value)

    def integer(self, name: str, default: Any = ...) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise FormatError(f"{self.where}: {name} is {value!r}, not a count")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self.where}: {name} is {value!r}, not true or false")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.get(name)
        if not isinstance(value, list) or not all(
            isinstance(item, (int, float)) and not isinstance(item, bool) for item in value
        ):
            raise FormatError(f"{self.where}: {name} is no list of numbers: {value!r:.80}")
        return tuple(float(np.float32(item)) for item in value)  # as a GGUF file holds them

    def refuse_the_rest(self) -> None:
        """FormatError for a key nobody asked for that is neither information nor empty nor switched off."""
        for name in sorted(self.values.keys() - self.asked - INFORMATION):
            value = self.values[name]
            if value is None or value in ([], {}) or (name in self.only and value == self.only[name]):
                continue
            raise FormatError(
                f"{self.where}: {name} = {value!r:.80} is not supported",
                "it may change what the model computes; this model cannot be read",
            )


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32, which is what GGUF holds: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
