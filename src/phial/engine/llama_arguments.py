"""What becomes of every argument of Llama and its methods: it works, or it is answered.

Three answers (phi3-spec §10.1): an argument that would change results and cannot be honoured raises ArgumentError;
one that only steers a GPU or a memory layout we do not have gets one line on stderr; the rest is passed on, checked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from phial.engine.adapters import checked_scale
from phial.engine.sampling import SamplingParams
from phial.errors import ArgumentError

RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's LLAMA_DEFAULT_SEED: draw a fresh one
POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST = 0, 1, 2, 3
POOLING_TYPES = (-1, POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST)
CACHE_TYPE_OF_GGML = {1: "f16", 8: "q8_0", 30: "bf16"}

_FROM_FILE = "position encoding comes from the model file; leave this argument out"

# argument: (values that ask for nothing, hint)
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "kv_overrides": ((None, {}), "the metadata of the model file is used as it is"),
    "rope_scaling_type": ((None, -1), _FROM_FILE),
    "rope_freq_base": ((0,), _FROM_FILE),
    "rope_freq_scale": ((0,), _FROM_FILE),
    "yarn_ext_factor": ((-1,), _FROM_FILE),
    "yarn_attn_factor": ((1,), _FROM_FILE),
    "yarn_beta_fast": ((32,), _FROM_FILE),
    "yarn_beta_slow": ((1,), _FROM_FILE),
    "yarn_orig_ctx": ((0,), _FROM_FILE),
    "attention_type": ((-1, 0), "attention is causal (0)"),
    "lora_base": ((None,), "an adapter is added to the model's own weights as they run"),
}
# argument: (values that ask for nothing, why the others change nothing)
_NO_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "split_mode": ((1,), "there is no GPU to split over"),
    "main_gpu": ((0,), "there is no GPU"),
    "tensor_split": ((None, []), "there is no GPU to split over"),
    "op_offload": ((None, False), "there is no GPU"),
    "flash_attn": ((False,), "attention on the CPU never writes out the score matrix anyway"),
    "use_mmap": ((True,), "weights are read through a map, repacked and released in any case"),
    "use_mlock": ((False,), "memory is not locked"),
    "swa_full": ((None, False), "the cache keeps every position in any case"),
    "numa": ((False, 0), "threads are left to the operating system"),
    "n_batch": ((512,), "prompts run in steps of 512 tokens; it only limits a text in embed()"),
    "n_ubatch": ((512,), "prompts run in steps of 512 tokens"),
}


def say(line: str) -> None:
    """Tell the user one thing, on stderr."""
    print(f"phial: {line}", file=sys.stderr)


def check_constructor(arguments: Mapping[str, Any]) -> None:
    """Refuse what cannot be honoured, and say what has no effect.

    Raises:
        ArgumentError: an argument that would change results, or one outside its range.
    """
    for name, (neutral, hint) in _REFUSED.items():
        if not _is_one_of(arguments[name], neutral):
            raise ArgumentError(f"{name}={arguments[name]!r} is not supported", hint)
    for name, low in (("n_ctx", 0), ("n_batch", 1), ("n_ubatch", 1), ("last_n_tokens_size", -1), ("n_gpu_layers", -1)):
        _whole(name, arguments[name], low)
    chosen_seed(arguments["seed"])
    for name in ("n_threads", "n_threads_batch"):
        if arguments[name] is not None:
            _whole(name, arguments[name], 0)
    if not _is_one_of(arguments["pooling_type"], POOLING_TYPES):
        raise ArgumentError(
            f"pooling_type={arguments['pooling_type']!r} is not supported", "none 0, mean 1, first 2, last 3, or -1"
        )
    own = arguments["tokenizer"]
    if own is not None and not (hasattr(own, "tokenize") and hasattr(own, "detokenize")):
        raise ArgumentError(
            f"tokenizer={own!r} cannot be used", "it needs tokenize(bytes, add_bos, special) and detokenize(ids, ...)"
        )
    if lora_adapters(arguments["lora_path"], arguments["lora_scale"]) and arguments["vocab_only"]:
        raise ArgumentError("lora_path with vocab_only=True", "no weights are loaded that it could be added to")
    for name, (neutral, reason) in _NO_EFFECT.items():
        if not _is_one_of(arguments[name], neutral):
            say(f"{name}={arguments[name]!r} has no effect: {reason}")


def lora_adapters(lora_path: Any, lora_scale: Any) -> list[tuple[str | PathLike[str], float]]:
    """Paths of adapters with their scales. A list of paths takes one scale for all or a list of as many.

    Raises:
        ArgumentError: a path that is none, a scale that is no number, or scales without as many paths.
    """
    paths = [] if lora_path is None else [lora_path] if isinstance(lora_path, (str, PathLike)) else lora_path
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, (str, PathLike)) for path in paths):
        raise ArgumentError(f"lora_path={lora_path!r} is no path", "a PEFT folder or a GGUF adapter, or a list of them")
    count = max(1, len(paths))
    scales = list(lora_scale) if isinstance(lora_scale, (list, tuple)) else [lora_scale] * count
    if len(scales) != count or (not paths and scales != [1]):
        raise ArgumentError(f"lora_scale={lora_scale!r} beside lora_path={lora_path!r}", "one scale for each adapter")
    return list(zip(paths, map(checked_scale, scales), strict=False))


def say_gpu_layers(n_gpu_layers: int, n_layer: int) -> None:
    """Answer a wish for a GPU."""
    if n_gpu_layers:
        asked = n_layer if n_gpu_layers < 0 else n_gpu_layers
        say(f"no GPU backend: 0 of {asked} layers offloaded, running on CPU")


def cache_type(type_k: int | None, type_v: int | None) -> str:
    """Name the type of the key-value cache from the two GGML type numbers.

    Raises:
        ArgumentError: unless both are F16 (1, also None), both Q8_0 (8) or both BF16 (30).
    """
    key, value = (1 if t is None else t for t in (type_k, type_v))
    if key != value or key not in CACHE_TYPE_OF_GGML:
        raise ArgumentError(
            f"type_k={type_k!r} with type_v={type_v!r} is not supported",
            "both 1 (f16, the default), both 8 (q8_0) or both 30 (bf16)",
        )
    return CACHE_TYPE_OF_GGML[key]


def chosen_seed(seed: int | None) -> int | None:
    """None where a fresh seed is asked for (None, -1, LLAMA_DEFAULT_SEED), else the seed itself.

    Raises:
        ArgumentError: it is no whole number, or below -1.
    """
    if seed is None:
        return None
    _whole("seed", seed, -1)
    return None if seed in (-1, RANDOM_SEED) else seed


def sampling_params(
    *,
    temperature: float,
    mirostat_mode: int,
    tfs_z: float,
    penalize_nl: bool = True,
    logit_bias: Mapping[Any, float] | None = None,
    **others: Any,
) -> SamplingParams:
    """SamplingParams from the arguments of llama-cpp-python; `others` are passed on by name.

    A temperature below 0 draws from the whole distribution as it is, as there.

    Raises:
        ArgumentError: an argument outside its range, or tail-free sampling, mirostat 1, penalize_nl=False.
    """
    if tfs_z != 1.0:
        raise ArgumentError(f"tfs_z={tfs_z!r} is not supported", "use top_p, min_p or typical_p instead")
    if penalize_nl is not True:
        raise ArgumentError(f"penalize_nl={penalize_nl!r} is not supported", "newlines count like every other token")
    if isinstance(temperature, (int, float)) and temperature < 0:
        temperature = 1.0
        others |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        mirostat_mode = 0
    return SamplingParams(
        temperature=temperature, mirostat_mode=mirostat_mode, logit_bias=_token_biases(logit_bias), **others
    )


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """The stop strings as a list.

    Raises:
        ArgumentError: one is empty or no string.
    """
    stops = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    for value in stops:
        if not isinstance(value, str) or not value:
            raise ArgumentError(f"stop holds {value!r}", "stop strings are strings of at least one character")
    return stops


def _token_biases(logit_bias: Mapping[Any, float] | None) -> dict[int, float] | None:
    """Biases by token id; JSON has only strings as keys, so those are taken too."""
    if logit_bias is None:
        return None
    try:
        return {int(token): float(bias) for token, bias in logit_bias.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"logit_bias is {logit_bias!r}", "pass {token id: number}") from error


def _is_one_of(value: object, candidates: Sequence[object]) -> bool:
    """Whether the value equals a candidate, without asking arrays or callables what they think of ==."""
    plain = value is None or isinstance(value, (bool, int, float, str, list, dict))
    return plain and value in candidates


def _whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ArgumentError(f"{name}={value!r} is outside its range", f"a whole number from {low}")
