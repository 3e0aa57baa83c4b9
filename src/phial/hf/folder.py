"""A Hugging Face folder: its JSON files, and its weights in one safetensors file or in shards with an index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phial.errors import ArgumentError, FormatError, PhialError
from phial.hf.names import is_computed
from phial.hf.safetensors import (
    DAMAGED,
    NewTensor,
    StoredTensor,
    byte_count,
    read_safetensors,
    write_safetensors,
)

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. FormatError where the folder has none, or it is no JSON object."""
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{folder} has no {CONFIG}", "name the folder of a Hugging Face model")
    return read_json(folder / CONFIG)


def model_name(values: Mapping[str, Any], folder: Path) -> str:
    """The model's name: the last part of where its config.json says it came from, else the folder's."""
    origin = values.get("_name_or_path")
    return (Path(origin).name if isinstance(origin, str) else "") or folder.resolve().name


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by name, from one file or the shards its index names.

    Raises:
        FormatError: no weights, a missing shard, a file that breaks the format, an index that contradicts its files.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            hint = "only safetensors are read, never pickles" if pickled else "name the folder that holds them"
            raise FormatError(f"{folder} has neither {SINGLE} nor {INDEX}", hint)
        return read_safetensors(folder / SINGLE)
    places = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            raise FormatError(f"shard {shard} named by {INDEX} is missing in {folder}", "fetch it again")
        held = read_safetensors(folder / shard)
        if absent := [name for name, place in places.items() if place == shard and name not in held]:
            raise FormatError(f"{shard} lacks tensor {absent[0]}, which {INDEX} places there", DAMAGED)
        if twice := tensors.keys() & held.keys():
            raise FormatError(f"tensor {min(twice)} stands in two shards, the second is {shard}", DAMAGED)
        tensors |= held
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{index} has no weight_map", DAMAGED)
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise FormatError(f"{index} places {name} in {shard!r}, which is no safetensors file beside it")
    return places


def check_tensors(stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """FormatError where the tensors of a folder are not those of the model: missing, unknown, of another shape."""
    if missing := [name for name in shapes if name not in stored]:
        raise FormatError(
            f"{len(missing)} of {len(shapes)} tensors are missing, first {missing[0]}", "fetch them again"
        )
    known = {*shapes, "lm_head.weight"}  # a tied model may store its embedding twice
    if unknown := [name for name in stored if name not in known and not is_computed(name)]:
        raise FormatError(f"tensor {unknown[0]} has no place in a {model} model")
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise FormatError(f"tensor {name} has shape {stored[name].shape}, {CONFIG} makes it {shape}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which becomes `folder` when the block ends and vanishes if it fails.

    Raises ArgumentError where `folder` is a file or holds anything, PhialError for what the disk refuses in the block.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder} exists and is not an empty folder", "name a new one")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        os.replace(unfinished, folder)
    except OSError as error:
        raise PhialError(f"cannot write {folder}: {error.strerror or error}", "check the path and its space") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. FormatError where the file is none; OSError as open()."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}", DAMAGED) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def write_folder(folder: Path, tensors: Sequence[NewTensor], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write one file, or shards of at most `shard_bytes` (a larger tensor gets its own) with their index.

    The folder is the caller's to remove if this fails. PhialError when a file cannot be written.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        places = {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(byte_count(tensor) for tensor in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)


def _shards(tensors: Sequence[NewTensor], limit: int) -> Iterator[list[NewTensor]]:
    shard: list[NewTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + byte_count(tensor) > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += byte_count(tensor)
    yield shard


def write_json(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write JSON, readably. PhialError when the file cannot be written."""
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise PhialError(f"cannot write {path}: {error.strerror or error}", "check the folder and its space") from error
