"""`phial convert`: a Hugging Face folder to a GGUF file, and a GGUF file to a folder.

Weights stream from one memory map to the other file a few megabytes at a time. Everything that can be wrong is checked
before the first byte is written, except values (NaN, overflow), which show while they are read; a failure leaves
nothing behind. Quantising beyond Q8_0 is quantize.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_TENSORS, ModelConfig
from phial.errors import ArgumentError, FormatError
from phial.gguf.adapter import Merge
from phial.gguf.blocks import quantize
from phial.gguf.container import GGUFFile, read_gguf
from phial.gguf.formats import BLOCK_SIZES, GGMLType
from phial.gguf.hf_tokenizer import read_hf_tokenizer
from phial.gguf.hf_tokenizer_files import write_hf_tokenizer
from phial.gguf.metadata import gguf_metadata, rope_tensors
from phial.gguf.writer import Tensor, write_gguf
from phial.hf.config import read_hf_config, write_hf_config
from phial.hf.folder import (
    SHARD_BYTES,
    check_tensors,
    model_name,
    new_folder,
    read_config,
    read_folder,
    write_folder,
    write_json,
)
from phial.hf.names import hf_name, to_gguf_rows, to_hf_rows
from phial.hf.safetensors import NewTensor, StoredTensor, row_passes
from phial.hf.sentence_transformers import pooling_name, pooling_type, write_embedder
from phial.tokenizer.vocabulary import Vocabulary

GGUF_TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
HF_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # general.file_type
Progress = Callable[[str, int, int], None]  # name of the tensor begun, tensors done, tensors in all
Chunks = Iterator[NDArray[np.uint8]]


def _silent(name: str, done: int, total: int) -> None:
    pass


def hf_to_gguf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    type: str = "f16",
    progress: Progress = _silent,
    *,
    adapter: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Convert a Phi-3, Llama or Qwen2 folder; returns notes on what GGUF cannot say. Vectors stay F32.

    Args:
        type: of the matrices: f32, f16, bf16 or q8_0.
        adapter: LoRA, a PEFT folder or a GGUF file, that is added to the weights.

    Raises:
        ArgumentError: another type, or values that do not fit it; an adapter that cannot be merged.
        FormatError: a missing or damaged file, a wrong shape, NaN, or a model that GGUF or phial does not know.
        PhialError: the file cannot be written.
    """
    kind = _choose(type, GGUF_TYPES)
    model = read_model(Path(folder))
    merge = Merge(adapter, model.config)
    metadata = model.metadata | {"general.file_type": _FILE_TYPES[type]}
    if kind in BLOCK_SIZES and BLOCK_SIZES[kind][0] > 1:
        metadata["general.quantization_version"] = 2
    tensors: list[Tensor] = [(n, v.shape, GGMLType.F32, quantize(v, GGMLType.F32)) for n, v in model.ropes.items()]
    sources = model.sources
    for done, (name, source) in enumerate(sources.items()):
        chosen = kind if len(source.shape) == 2 else GGMLType.F32
        _check_columns(source, chosen)
        start = partial(progress, source.name, done, len(sources))
        tensors.append((name, source.shape, chosen, _encoded(name, model.config, source, chosen, merge, start)))
    write_gguf(Path(path), metadata, tensors)
    progress("", len(sources), len(sources))
    return model.notes


@dataclass(frozen=True)
class FolderModel:
    """A Hugging Face folder in GGUF's terms.

    Attributes:
        metadata: without general.file_type, which says how the tensors are written.
        ropes: small float tensors that belong to the configuration.
        sources: the weights by GGUF name, not yet read, rows in the folder's order (names.to_gguf_rows).
        notes: what GGUF cannot say.
    """

    config: ModelConfig
    metadata: dict[str, Any]
    ropes: dict[str, NDArray[np.float32]]
    sources: dict[str, StoredTensor]
    notes: list[str]


def read_model(folder: Path) -> FolderModel:
    """Read everything of a folder but the weights' values. Raises FormatError as hf_to_gguf does."""
    values = read_config(folder)
    config = read_hf_config(values, model_name(values, folder))
    stored = read_folder(folder)
    sources = _match(config, stored)
    tokenizer, notes = read_hf_tokenizer(folder, values, config.n_vocab, config.name)
    metadata = gguf_metadata(config) | tokenizer
    if (pooling := pooling_type(folder)) is not None:
        metadata[f"{config.architecture}.pooling_type"] = pooling
    ropes = rope_tensors(config)
    ModelConfig.from_gguf(metadata, {name: t.shape for name, t in sources.items()}, ropes)  # what it writes, it reads
    return FolderModel(config, metadata, ropes, sources, notes)


def gguf_to_hf(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    type: str = "f32",
    progress: Progress = _silent,
    *,
    shard_bytes: int = SHARD_BYTES,
    adapter: str | os.PathLike[str] | None = None,
) -> None:
    """Write a GGUF file as a Hugging Face folder, every weight as `type` (f32, f16 or bf16), an adapter added to them.

    Raises:
        ArgumentError: another type, values that do not fit it, an adapter that cannot be merged, a folder that
            exists and is not empty.
        FormatError: the file is damaged or its model has no Hugging Face counterpart.
        PhialError: the folder cannot be written.
    """
    path, folder = Path(path), Path(folder)
    dtype = _choose(type, HF_TYPES)
    with new_folder(folder) as unfinished, read_gguf(path) as file:
        config = model_config(file)
        merge = Merge(adapter, config)
        write_without_weights(unfinished, file, dtype)
        write_folder(unfinished, list(_decoded(file, config, type, merge, progress)), shard_bytes=shard_bytes)
    progress("", len(file.tensors), len(file.tensors))


def model_config(file: GGUFFile) -> ModelConfig:
    """The shape of a file's model. FormatError where it has none that is known."""
    shapes = {name: info.shape for name, info in file.tensors.items()}
    ropes = {name: file.dequantized(name) for name in ROPE_TENSORS if name in shapes}
    return ModelConfig.from_gguf(file.metadata, shapes, ropes)


def write_without_weights(folder: Path, file: GGUFFile, dtype: str = "float32") -> None:
    """Write a Hugging Face folder of everything but the weights: the tokenizer, its template and the settings.

    Raises FormatError as gguf_to_hf(), PhialError for files that cannot be written.
    """
    config = model_config(file)
    values = write_hf_config(config, dtype) | {"_name_or_path": config.name}
    vocabulary = write_hf_tokenizer(folder, file.metadata, config.n_ctx_train)
    _write_configs(folder, values, vocabulary)
    pooling = pooling_name(file.metadata.get(f"{config.architecture}.pooling_type"))
    if pooling is not None:
        write_embedder(folder, pooling, config.n_embd, {}, config.n_ctx_train)


def dequantized_weights(file: GGUFFile, config: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights by their Hugging Face names, rows in that order, one at a time. FormatError for NaN or infinity."""
    for name in config.tensor_shapes():
        yield hf_name(name, config.architecture), _hf_values(file, config, name, Merge(None, config))
        file.release(name)


def _choose(type: str, types: Mapping[str, Any]) -> Any:
    if type not in types:
        raise ArgumentError(f"type {type!r} cannot be written here", f"one of {', '.join(types)}")
    return types[type]


def _match(config: ModelConfig, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Stored tensors by GGUF name. FormatError, in the folder's own names, for missing, unknown and wrong ones."""
    shapes = config.tensor_shapes()
    names = {name: hf_name(name, config.architecture) for name in shapes}
    check_tensors(stored, {theirs: shapes[name] for name, theirs in names.items()}, config.architecture)
    return {name: stored[theirs] for name, theirs in names.items()}


def _check_columns(source: StoredTensor, kind: GGMLType) -> None:
    elements = BLOCK_SIZES[kind][0]
    if source.shape[-1] % elements:
        message = f"{source.name} has rows of {source.shape[-1]} values, {kind.name} takes multiples of {elements}"
        raise ArgumentError(message, "convert to f16")


def _encoded(
    name: str, config: ModelConfig, source: StoredTensor, kind: GGMLType, merge: Merge, start: Callable[[], None]
) -> Chunks:
    """A stored tensor as bytes of a GGUF type. FormatError for NaN and infinity, ArgumentError for overflow."""
    start()
    rows = to_gguf_rows(name, config, source.raw)
    for part in row_passes(rows.shape):
        values = merge(name, part, source.floats(rows[part]))
        if not np.isfinite(values).all():
            raise FormatError(f"tensor {source.name} holds NaN or infinity", "the checkpoint is damaged")
        yield _quantized(source.name, values, kind)
    source.release()


def _decoded(file: GGUFFile, config: ModelConfig, type: str, merge: Merge, progress: Progress) -> Iterator[NewTensor]:
    shapes = config.tensor_shapes()
    for done, (name, shape) in enumerate(shapes.items()):
        theirs = hf_name(name, config.architecture)
        start = partial(progress, theirs, done, len(shapes))
        yield theirs, type.upper(), shape, _dequantized(file, config, name, GGUF_TYPES[type], merge, start)


def _dequantized(
    file: GGUFFile, config: ModelConfig, name: str, kind: GGMLType, merge: Merge, start: Callable[[], None]
) -> Chunks:
    start()
    values = _hf_values(file, config, name, merge)
    for part in row_passes(values.shape):
        yield _quantized(name, values[part], kind)
    file.release(name)


def _hf_values(file: GGUFFile, config: ModelConfig, name: str, merge: Merge) -> NDArray[np.float32]:
    values = to_hf_rows(name, config, merge(name, slice(None), file.dequantized(name)))
    if not np.isfinite(values).all():
        raise FormatError(f"tensor {name} holds NaN or infinity", "the file is damaged")
    return values


def _quantized(name: str, values: NDArray[np.float32], kind: GGMLType) -> NDArray[np.uint8]:
    try:
        return quantize(values, kind)
    except ArgumentError as error:
        raise ArgumentError(f"tensor {name}: {error.message}", error.hint) from error


def _write_configs(folder: Path, values: dict[str, Any], vocabulary: Vocabulary) -> None:
    """config.json and generation_config.json with the token ids."""
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": vocabulary.pad_id}
    named: dict[str, Any] = {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    write_json(folder / "config.json", values | named)
    ends = [i for i in [vocabulary.eos_id] if i is not None]
    ends += sorted(vocabulary.eog_ids - set(ends))
    if ends:
        named["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    write_json(folder / "generation_config.json", named)
