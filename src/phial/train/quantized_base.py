"""A frozen base loaded as blocks: a GGUF file's own, or a folder's weights quantised one by one on the way in.

No more than one matrix is ever in float32, but for embeddings and the output matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phial.errors import ArgumentError, FormatError
from phial.gguf.container import read_gguf
from phial.gguf.convert import model_config, read_model
from phial.gguf.formats import FORMATS, PLAIN_BYTES, GGMLType
from phial.gguf.scale_search import encode
from phial.hf.names import hf_name, to_hf_rows
from phial.model.transformer import Transformer
from phial.train.quantized import QuantizedLinear


class _Matrix(NamedTuple):
    """A matrix of a layer. name: Hugging Face's. rows: (rows, bytes of a row), uint8, in Hugging Face's order."""

    name: str
    kind: GGMLType
    rows: NDArray[np.uint8]


class _Floats(NamedTuple):
    """Any other weight, float32."""

    name: str
    values: NDArray[np.float32]


def load_quantized(model: Transformer, path: Path, base: str) -> None:
    """Load a model that has no memory yet, in place: the matrices of its layers as blocks, all else in float32.

    Args:
        model: on the meta device. path: the GGUF file or Hugging Face folder it was made for.
        base: "file", the file's own blocks, or a type, whose scales are searched as `phial quantize` does.

    Raises ArgumentError for "file" and a folder; FormatError for damaged files, and as encode().
    """
    floats: dict[str, Tensor] = {}
    for weight in _of_folder(path, base) if path.is_dir() else _of_file(path, base):
        if isinstance(weight, _Floats):
            floats[weight.name] = torch.from_numpy(weight.values)
            continue
        parent, _, child = weight.name.removesuffix(".weight").rpartition(".")
        layer = model.get_submodule(parent)
        bias = getattr(layer, child).bias
        setattr(layer, child, QuantizedLinear(weight.kind, torch.from_numpy(weight.rows), bias))
    model.load_state_dict(floats, assign=True)
    model.requires_grad_(False)


def _of_folder(path: Path, base: str) -> Iterator[_Matrix | _Floats]:
    if base == "file":
        raise ArgumentError(f"{path} is a folder, which holds no blocks", 'set lora.base = "q8_0" or "q4_0"')
    found = read_model(path)
    for name, source in found.sources.items():
        yield _weight(name, hf_name(name, found.config.architecture), source.floats(source.raw), base)
        source.release()


def _of_file(path: Path, base: str) -> Iterator[_Matrix | _Floats]:
    with read_gguf(path) as file:
        config = model_config(file)
        for name in config.tensor_shapes():
            theirs = hf_name(name, config.architecture)
            if base == "file" and _in_layer(name, file.tensors[name].shape):
                kind, rows = file.tensors[name].type, file.data(name).reshape(file.tensors[name].shape[0], -1)
                _check_scales(name, kind, rows)
                yield _Matrix(theirs, kind, np.array(to_hf_rows(name, config, rows)))  # the map goes with the file
            else:
                yield _weight(name, theirs, to_hf_rows(name, config, file.dequantized(name)), base)
            file.release(name)


def _weight(name: str, theirs: str, values: NDArray[np.float32], base: str) -> _Matrix | _Floats:
    """A weight in floats as it is to be held. FormatError for what is no number."""
    if not np.isfinite(values).all():
        raise FormatError(f"tensor {name} holds NaN or infinity", "the file is damaged")
    if base == "file" or not _in_layer(name, values.shape):
        return _Floats(theirs, values)
    kind = GGMLType[base.upper()]
    return _Matrix(theirs, kind, encode(values, kind).reshape(len(values), -1))


def _in_layer(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("blk.") and len(shape) == 2


def _check_scales(name: str, kind: GGMLType, rows: NDArray[np.uint8]) -> None:
    """FormatError where a value would be no number: codes always are, so it is the float16 of a block that tells."""
    if kind in PLAIN_BYTES:
        plain = {GGMLType.F32: "<f4", GGMLType.F16: "<f2", GGMLType.BF16: "<u2"}[kind]
        values = rows.reshape(-1).view(plain)
        finite = (values & 0x7F80) != 0x7F80 if kind == GGMLType.BF16 else np.isfinite(values)
    else:
        blocks = rows.reshape(-1).view(FORMATS[kind].block)
        finite = np.stack([np.isfinite(blocks[key]) for key in "dm" if key in (blocks.dtype.names or ())])
    if not finite.all():
        raise FormatError(f"tensor {name} holds NaN or infinity", "the file is damaged")
