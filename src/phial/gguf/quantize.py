"""A model in wide types to a quantised GGUF file: plan the types, then stream tensor by tensor.

The source is a GGUF file or a Hugging Face folder. Types are mixes.py's, scales scale_search.py's, weighted by an
importance matrix where there is one. Each matrix's error is that of the values as they will be decoded. Left out:
splitting files, removing layers, and a type for every single tensor by hand.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_TENSORS, ModelConfig
from phial.errors import ArgumentError, FormatError
from phial.gguf.blocks import dequantize, quantize
from phial.gguf.container import GGUFFile, TensorInfo, read_gguf
from phial.gguf.convert import FolderModel, read_model
from phial.gguf.formats import FORMATS, GGMLType, n_bytes
from phial.gguf.imatrix import ImportanceMatrix
from phial.gguf.layout import DEFAULT_ALIGNMENT
from phial.gguf.mixes import RECIPES, choose_types
from phial.gguf.scale_search import Encoded, Values, search, to_floats
from phial.gguf.writer import Tensor, file_size, write_gguf
from phial.hf.names import to_gguf_rows
from phial.hf.safetensors import StoredTensor

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]  # name of the tensor in work, parameters done, parameters in all
_PASS_VALUES = 1 << 23
_QUANTIZATION_VERSION = 2  # of the block formats: ggml's number since 2023
WORST = 5  # matrices that reports mark
_UNWEIGHTED = ("token_embd.weight", "output.weight")  # what llama.cpp's matrices may lack


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source. parts: its rows as scale_search takes them, some at a time. data: its bytes, or None."""

    shape: tuple[int, ...]
    type: GGMLType
    parts: Callable[[], Iterator[Values]]
    data: Callable[[], Bytes] | None = None


@dataclass(frozen=True)
class Source:
    """An open model. notes: what a GGUF file of it cannot say."""

    config: ModelConfig
    metadata: dict[str, Any]
    tensors: dict[str, SourceTensor]
    alignment: int = DEFAULT_ALIGNMENT
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be written: the type of every tensor of the source, and all metadata."""

    source: Source
    recipe: str
    types: dict[str, GGMLType]
    matrix: ImportanceMatrix | None
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        nothing = np.empty(0, np.uint8)
        tensors: list[Tensor] = [(n, t.shape, self.types[n], nothing) for n, t in self.source.tensors.items()]
        return file_size(self.metadata, tensors, alignment=self.source.alignment)


@dataclass(frozen=True)
class TensorReport:
    """How well one matrix was kept.

    Attributes:
        rmse: root of the mean squared error, columns weighted by importance where there is a matrix.
        relative: rmse by the root mean square of the values, weighted likewise.
    """

    name: str
    shape: tuple[int, ...]
    source_type: GGMLType
    type: GGMLType
    rmse: float
    relative: float

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return n_bytes(self.type, self.shape)

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.n_bytes / math.prod(self.shape)


@contextlib.contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a GGUF file or a Hugging Face folder. Raises FormatError where it is damaged or no model phial knows."""
    path = Path(path)
    if path.is_dir():
        yield _folder_source(read_model(path))
        return
    with read_gguf(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
        ropes = {name: file.dequantized(name) for name in ROPE_TENSORS if name in shapes}
        config = ModelConfig.from_gguf(file.metadata, shapes, ropes)
        tensors = {
            name: SourceTensor(info.shape, info.type, partial(_file_parts, file, info), partial(file.data, name))
            for name, info in file.tensors.items()
        }
        yield Source(config, file.typed_metadata(), tensors, file.alignment)


def plan(
    source: Source,
    recipe: str,
    *,
    importance: bool = False,
    output_type: GGMLType | None = None,
    embedding_type: GGMLType | None = None,
    allow_requantize: bool = False,
) -> Plan:
    """Choose every tensor's type and check that it can be had.

    Args:
        recipe: a key of mixes.RECIPES.
        importance: whether there will be an importance matrix; give it to with_matrix().
        output_type, embedding_type: see mixes.choose_types.
        allow_requantize: take sources quantised to fewer bits than Q8_0.

    Raises:
        ArgumentError: a source that is quantised already, or a type that does not fit.
    """
    chosen = choose_types(
        recipe, source.config, importance=importance, output_type=output_type, embedding_type=embedding_type
    )
    types = {name: chosen.get(name, tensor.type) for name, tensor in source.tensors.items()}
    for name, tensor in source.tensors.items():
        coarse = tensor.type in FORMATS and tensor.type != GGMLType.Q8_0
        if coarse and types[name] != tensor.type and not allow_requantize:
            raise ArgumentError(
                f"{name} is {tensor.type.name} already: quantising it again adds a second error",
                "start from F32, F16, BF16 or Q8_0, or say --allow-requantize",
            )
    return Plan(source, recipe, types, None, _metadata(source, recipe, None, ""))


def with_matrix(chosen: Plan, matrix: ImportanceMatrix, file: str = "") -> Plan:
    """The same plan, errors weighted by a matrix; file: its name, for the metadata. FormatError if another model's."""
    source = chosen.source
    for name, tensor in source.tensors.items():
        if chosen.types[name] in FORMATS and chosen.types[name] != tensor.type:
            _check_entry(matrix, name, tensor.shape[-1])
    return replace(chosen, matrix=matrix, metadata=_metadata(source, chosen.recipe, matrix, file))


def write(
    chosen: Plan, target: str | os.PathLike[str], *, n_threads: int | None = None, progress: Progress | None = None
) -> list[TensorReport]:
    """Write the file, atomically, and return how well each matrix was kept.

    Memory stays near some tens of megabytes beyond the mapped pages of one tensor.

    Raises:
        FormatError: a weight is NaN or infinite.
        ArgumentError: values too large for their type.
        PhialError: the file cannot be written.
    """
    target, source = Path(target), chosen.source
    total = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    reports: list[TensorReport] = []
    done = 0
    tensors: list[Tensor] = []
    for name, tensor in source.tensors.items():
        start = partial(progress, name, done, total) if progress else None
        kind = chosen.types[name]
        tensors.append((name, tensor.shape, kind, _encoded(name, tensor, chosen, n_threads, reports, start)))
        done += math.prod(tensor.shape)
    write_gguf(target, chosen.metadata, tensors, alignment=source.alignment)
    if progress:
        progress("", total, total)
    return reports


def _folder_source(model: FolderModel) -> Source:
    tensors = {
        name: SourceTensor(values.shape, GGMLType.F32, partial(iter, [values])) for name, values in model.ropes.items()
    }
    for name, stored in model.sources.items():
        kind = GGMLType[stored.dtype] if len(stored.shape) > 1 else GGMLType.F32
        tensors[name] = SourceTensor(stored.shape, kind, partial(_folder_parts, name, model.config, stored))
    return Source(model.config, model.metadata, tensors, notes=tuple(model.notes))


def _folder_parts(name: str, config: ModelConfig, stored: StoredTensor) -> Iterator[Values]:
    rows = to_gguf_rows(name, config, stored.raw)
    return (rows[part] for part in _passes(rows.shape))


def _file_parts(file: GGUFFile, info: TensorInfo) -> Iterator[Values]:
    data = file.data(info.name).reshape(info.shape[0], -1)
    as_stored = {GGMLType.F32: np.float32, GGMLType.F16: np.float16, GGMLType.BF16: np.uint16}.get(info.type)
    for part in _passes(info.shape):
        rows = data[part]
        if as_stored is not None:
            yield rows.view(as_stored).reshape(len(rows), *info.shape[1:])
        else:
            yield dequantize(rows.reshape(-1), info.type, (len(rows), *info.shape[1:]))
    file.release(info.name)


def _passes(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows, each a second's work for the slowest kernels: between them a run can be stopped."""
    rows = max(1, _PASS_VALUES // max(1, math.prod(shape[1:])))
    return (slice(at, at + rows) for at in range(0, shape[0], rows))


def _check_entry(matrix: ImportanceMatrix, name: str, columns: int) -> None:
    if name not in matrix.sums:
        if name not in _UNWEIGHTED:
            raise FormatError(f"the importance matrix has no entry for {name}", "it was made for another model")
    elif len(matrix.sums[name]) != columns:
        raise FormatError(
            f"the importance matrix has {len(matrix.sums[name])} columns for {name}, the weight has {columns}",
            "it was made for another model",
        )


def _metadata(source: Source, recipe: str, matrix: ImportanceMatrix | None, matrix_file: str) -> dict[str, Any]:
    """The source's, with what it says about types and matrix replaced, under llama.cpp's keys."""
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith("quantize.imatrix.")}
    metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    metadata["general.file_type"] = RECIPES[recipe].file_type
    if matrix is not None:
        if matrix_file:
            metadata["quantize.imatrix.file"] = matrix_file
        if matrix.datasets:
            metadata["quantize.imatrix.dataset"] = matrix.datasets[0]
        metadata["quantize.imatrix.entries_count"] = len(matrix.sums)
        metadata["quantize.imatrix.chunks_count"] = matrix.chunk_count
    return metadata


def _encoded(
    name: str,
    tensor: SourceTensor,
    chosen: Plan,
    n_threads: int | None,
    reports: list[TensorReport],
    start: Callable[[], None] | None,
) -> Iterator[Bytes]:
    """The tensor's bytes in its new type; a matrix's report is added when its last part has gone."""
    if start:
        start()
    kind = chosen.types[name]
    matrix = chosen.matrix
    weights = matrix.weights(name) if matrix is not None and name in matrix.sums and kind in FORMATS else None
    if tensor.data is not None and kind == tensor.type and kind in FORMATS:
        yield tensor.data()
        reports.append(TensorReport(name, tensor.shape, tensor.type, kind, 0.0, 0.0))
        return
    error = power = 0.0
    for values in tensor.parts():
        try:
            found = _encode(values, kind, weights, n_threads)
        except ArgumentError as problem:
            if not np.isfinite(to_floats(values)).all():
                raise FormatError(f"tensor {name} holds NaN or infinity", "the source is damaged") from problem
            raise ArgumentError(f"tensor {name}: {problem.message}", problem.hint) from problem
        yield found.data
        error, power = error + found.error, power + found.power
    if len(tensor.shape) > 1:
        rmse, relative = math.sqrt(error / math.prod(tensor.shape)), math.sqrt(error / power) if power else 0.0
        reports.append(TensorReport(name, tensor.shape, tensor.type, kind, rmse, relative))


def _encode(values: Values, kind: GGMLType, weights: F32 | None, n_threads: int | None) -> Encoded:
    """Rows as blocks whose scales were searched for, or as plain numbers; ArgumentError where either is impossible."""
    if kind in FORMATS:
        return search(values, kind, weights, n_threads=n_threads)
    floats = to_floats(values)
    if not np.isfinite(floats).all():
        raise ArgumentError("NaN or infinity", "the source is damaged")
    data = quantize(floats, kind)
    kept = dequantize(data, kind, floats.shape)
    kept -= floats
    return Encoded(data, float(np.square(kept).sum(dtype=np.float64)), float(np.square(floats).sum(dtype=np.float64)))


def worst(reports: list[TensorReport], count: int) -> set[str]:
    """The names of the matrices with the largest relative errors, none of those that are exact."""
    ranked = sorted((r for r in reports if r.relative > 0), key=lambda r: -r.relative)
    return {report.name for report in ranked[:count]}
