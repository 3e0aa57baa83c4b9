"""Checkpoints: the PyTorch models from Hugging Face folders and to them, safetensors alone, never pickles.

A model is built without memory and filled tensor by tensor from mapped files, a few megabytes at a time, each value
checked on the way: loading takes the size of the model and no more. A folder is written under a temporary name, so it
is there whole or not at all. Left out: optimiser state, and models cut over several devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phial.errors import ArgumentError, FormatError
from phial.hf.config import read_hf_config, write_hf_config
from phial.hf.folder import (
    CONFIG,
    SHARD_BYTES,
    check_tensors,
    model_name,
    new_folder,
    read_config,
    read_folder,
    read_json,
    write_folder,
    write_json,
)
from phial.hf.names import hf_name, to_hf_rows
from phial.hf.safetensors import NewTensor, StoredTensor, row_passes
from phial.model.phi3_small import Phi3Small
from phial.model.phi3_small_settings import CLASS as SMALL_CLASS
from phial.model.phi3_small_settings import read_small_config, write_small_config
from phial.model.transformer import Transformer

Model = Transformer | Phi3Small
Folder = str | os.PathLike[str]
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "cl100k_base.tiktoken",
)  # fmt: skip
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def load(
    folder: Folder,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: str = "auto",
    dropout: float = 0.0,
    causal: bool | None = None,
) -> Model:
    """The model of a Hugging Face folder: Phi-3, Llama, Qwen2 or phi-3-small.

    Args:
        dtype: of all weights: float32, float16 or bfloat16; None: the narrowest that holds every stored value exactly.
        attention, dropout: as Transformer's.
        causal: instead of the folder's own; not for phi-3-small.

    Raises:
        ArgumentError: another dtype, or weights too large for it; attention or dropout as Transformer.
        FormatError: a missing or damaged file, pickles only, an architecture or a setting nobody here knows, factor
            lists of wrong length, a tensor missing, unknown or of a wrong shape, NaN or infinity.
    """
    folder = Path(folder)
    values = read_config(folder)
    with torch.device("meta"):
        model = _build(values, model_name(values, folder), attention, dropout, causal)
    stored = read_folder(folder)
    names = [name for name, _ in model.named_parameters()]
    kind = "phi-3-small" if isinstance(model, Phi3Small) else model.config.architecture
    check_tensors(stored, {name: tuple(p.shape) for name, p in model.named_parameters()}, kind)
    dtype = _dtype(dtype, (_DTYPES[stored[name].dtype] for name in names))
    # Assigned, not copied: the tensors read become the parameters.
    model.load_state_dict({name: _read(stored[name], dtype, device) for name in names}, assign=True)
    return model


def save(
    model: Model,
    folder: Folder,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer_from: Folder | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a Hugging Face folder that transformers, `phial convert` and load() read.

    Args:
        dtype: of all weights: float32, float16 or bfloat16; None: the model's own.
        shard_bytes: size of the largest file; a larger tensor gets a file of its own.
        tokenizer_from: a folder whose tokenizer files are copied as they are, and whose special token ids config.json
            takes over.
        generation: content of generation_config.json; None: the one of `tokenizer_from`, where it has one.

    Raises:
        ArgumentError: a folder that exists and is not empty; another dtype, or weights too large for it; no model.
        FormatError: NaN or infinity, a shape the architecture's config.json cannot express, no tokenizer in
            `tokenizer_from`.
        PhialError: the folder cannot be written.
    """
    if not isinstance(model, Transformer | Phi3Small) or any(p.is_meta for p in model.parameters()):
        raise ArgumentError(f"{type(model).__name__} is no model with weights", "pass a Transformer or a Phi3Small")
    if shard_bytes < 1:
        raise ArgumentError(f"shard_bytes is {shard_bytes}", "it must be at least 1")
    origin = None if tokenizer_from is None else Path(tokenizer_from)
    kind = _dtype(dtype, (parameter.dtype for parameter in model.parameters()))
    with new_folder(Path(folder)) as unfinished:
        if origin is not None:
            _copy_tokenizer(origin, unfinished)
        if generation is None and origin is not None and (origin / GENERATION).is_file():
            generation = read_json(origin / GENERATION)
        if generation is not None:
            write_json(unfinished / GENERATION, dict(generation))
        values = _settings(model, kind) | _token_ids(generation or {}, origin)
        write_json(unfinished / CONFIG, values)
        write_folder(unfinished, list(_tensors(model, kind)), shard_bytes=shard_bytes)


def _build(values: Mapping[str, Any], name: str, attention: str, dropout: float, causal: bool | None) -> Model:
    if values.get("architectures") == [SMALL_CLASS]:
        if causal is not None:
            raise ArgumentError(f"phi-3-small cannot be told causal={causal}", "leave it out")
        return Phi3Small(read_small_config(values, name), attention=attention, dropout=dropout)
    config = replace(read_hf_config(values, name), rope_interleaved=False)  # the folder's order of rows, not GGUF's
    if causal is not None:
        config = replace(config, causal=causal)
    return Transformer(config, attention=attention, dropout=dropout)


def _dtype(asked: torch.dtype | None, present: Iterable[torch.dtype]) -> torch.dtype:
    """The type asked for, else the narrowest that holds all that are present. ArgumentError for another one."""
    chosen = reduce(torch.promote_types, present) if asked is None else asked
    if chosen not in _CODES:
        raise ArgumentError(f"weights cannot be {chosen}", f"use one of: {', '.join(map(str, _CODES))}")
    return chosen


def _read(source: StoredTensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A stored tensor as one of its own; the pages it was read from are let go."""
    values = torch.empty(source.shape, dtype=dtype, device=device)
    for part in row_passes(source.shape):
        raw = np.array(source.raw[part])
        given = torch.from_numpy(raw.view(np.int16) if source.dtype == "BF16" else raw).view(_DTYPES[source.dtype])
        kept = given.to(dtype)
        _check_values(source.name, given, kept)
        values[part] = kept
        source.release()
    return values


def _check_values(name: str, given: Tensor, kept: Tensor) -> None:
    """FormatError where a weight is no number, ArgumentError where it does not fit the type it is kept in."""
    if kept.isfinite().all():
        return
    if not given.isfinite().all():
        raise FormatError(f"tensor {name} holds NaN or infinity", "the checkpoint is damaged or its training diverged")
    largest = given.abs().max().item()
    raise ArgumentError(f"tensor {name} holds {largest:g}, too large for {kept.dtype}", "use torch.bfloat16")


def _tensors(model: Model, dtype: torch.dtype) -> Iterator[NewTensor]:
    """Every weight by its Hugging Face name, rows in Hugging Face's order."""
    weights = dict(model.named_parameters())
    arrange: dict[str, Callable[[Tensor], Tensor]] = {}
    if isinstance(model, Transformer):
        config = model.config
        arrange = {hf_name(n, config.architecture): partial(to_hf_rows, n, config) for n in config.tensor_shapes()}
    for name, weight in weights.items():
        yield name, _CODES[dtype], tuple(weight.shape), _chunks(name, weight.detach(), arrange.get(name), dtype)


def _chunks(
    name: str, values: Tensor, arrange: Callable[[Tensor], Tensor] | None, dtype: torch.dtype
) -> Iterator[NDArray[np.uint8]]:
    values = values if arrange is None else arrange(values)
    for part in row_passes(tuple(values.shape)):
        kept = values[part].to(device="cpu", dtype=dtype).contiguous()
        _check_values(name, values[part], kept)
        yield kept.view(torch.uint8).numpy()


def _settings(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """config.json without the token ids."""
    name = str(dtype).removeprefix("torch.")
    if isinstance(model, Phi3Small):
        return write_small_config(model.config, name) | {"_name_or_path": model.config.shape.name}
    return write_hf_config(model.config, name) | {"_name_or_path": model.config.name}


def _token_ids(generation: Mapping[str, Any], origin: Path | None) -> dict[str, Any]:
    """The special ids, null where unknown: transformers would take Phi-3's own for those left out."""
    there = {} if origin is None or not (origin / CONFIG).is_file() else read_json(origin / CONFIG)
    return {name: there.get(name, generation.get(name)) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _copy_tokenizer(origin: Path, folder: Path) -> None:
    found = [name for name in TOKENIZER_FILES if (origin / name).is_file()]
    if not found:
        raise FormatError(f"{origin} holds no tokenizer", f"it has none of {', '.join(TOKENIZER_FILES[:3])}")
    for name in found:
        shutil.copyfile(origin / name, folder / name)
