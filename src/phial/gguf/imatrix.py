"""The importance matrix: how large the inputs of each weight's columns are, measured on a text, and its GGUF file.

Rounding column j of a matrix by e changes the product by e * x_j, so its squared error counts in proportion to the mean
square of x_j. The file is llama.cpp's (general.type "imatrix"; NAME.in_sum2 and NAME.counts for each weight), readable
by both. Left out: the older .dat files, and matrices of experts. Running a model is the engine's: what calibrate()
needs of it is the protocol Calibrated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phial.errors import FormatError
from phial.gguf.blocks import quantize
from phial.gguf.container import GGUFFile, read_gguf
from phial.gguf.formats import GGMLType
from phial.gguf.writer import Tensor, write_gguf

_RUN = "phial.calibration.run"
_OTHER = "make one with phial quantize --calibrate, or llama.cpp's llama-imatrix"


class Calibrated(Protocol):
    """A model that can be run for its inputs: an Engine."""

    def input_squares(self, tokens: Sequence[int]) -> Mapping[str, NDArray[np.float64]]:
        """Run tokens as a text of their own; by weight name the sum over them of each input's square, (columns,)."""
        ...


@dataclass
class ImportanceMatrix:
    """Sums over a text, added to chunk by chunk.

    Attributes:
        sums: by weight name, the sum over the tokens of the square of each input, (columns,) float32.
        counts: by weight name, how many tokens that were.
        datasets: the texts' names.
        chunk_count, chunk_size: how many chunks of how many tokens were read.
        run: what identifies an unfinished calibration, so that only the same one goes on from it; else "".
    """

    datasets: list[str]
    chunk_size: int
    chunk_count: int = 0
    sums: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    run: str = ""

    def add(self, squares: Mapping[str, NDArray[np.float64]]) -> None:
        """One more chunk. Sums are rounded to float32 after each, as the file holds them: a resumed run is the same."""
        for name, found in squares.items():
            self.sums[name] = (self.sums.get(name, np.float32(0)) + found).astype(np.float32)
            self.counts[name] = self.counts.get(name, 0) + self.chunk_size
        self.chunk_count += 1

    def weights(self, name: str) -> NDArray[np.float32]:
        """Mean square of each input of a weight, (columns,); ones where no token reached it. KeyError if unknown."""
        count = self.counts[name]
        return self.sums[name] / np.float32(count) if count else np.ones_like(self.sums[name])


def calibrate(model: Calibrated, chunks: Sequence[Sequence[int]], matrix: ImportanceMatrix) -> Iterator[None]:
    """Add to the matrix the chunks it does not yet have; yields after each. FormatError where a sum is not finite."""
    for chunk in chunks[matrix.chunk_count :]:
        squares = model.input_squares(chunk)
        for name, found in squares.items():
            if not np.isfinite(found).all():
                raise FormatError(f"the inputs of {name} are not finite", "the model is damaged: phial inspect")
        matrix.add(squares)
        yield


def save(matrix: ImportanceMatrix, path: str | os.PathLike[str]) -> None:
    """Write the file, atomically. PhialError where that fails."""
    metadata: dict[str, Any] = {
        "general.type": "imatrix",
        "imatrix.datasets": matrix.datasets,
        "imatrix.chunk_count": matrix.chunk_count,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    if matrix.run:
        metadata[_RUN] = matrix.run
    tensors: list[Tensor] = []
    for name in sorted(matrix.sums):
        count = np.array([matrix.counts[name]], np.float32)
        for suffix, values in (("in_sum2", matrix.sums[name]), ("counts", count)):
            tensors.append((f"{name}.{suffix}", values.shape, GGMLType.F32, quantize(values, GGMLType.F32)))
    write_gguf(path, metadata, tensors)


def load(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read such a file, llama.cpp's too.

    Raises:
        FormatError: it is no importance matrix, or one with impossible numbers.
        PhialError: it cannot be opened.
    """
    with read_gguf(path) as file:
        found = file.metadata
        if found.get("general.type") != "imatrix":
            raise FormatError(f"{path} is no importance matrix: general.type is {found.get('general.type')!r}", _OTHER)
        matrix = ImportanceMatrix(
            datasets=[str(name) for name in _key(file, "imatrix.datasets", list)],
            chunk_size=_key(file, "imatrix.chunk_size", int),
            chunk_count=_key(file, "imatrix.chunk_count", int),
            run=_key(file, _RUN, str) if _RUN in found else "",
        )
        for tensor in file.tensors:
            if tensor.endswith(".in_sum2"):
                _read_entry(file, tensor.removesuffix(".in_sum2"), matrix)
    if not matrix.sums:
        raise FormatError(f"{path} holds no sums", _OTHER)
    return matrix


def _key(file: GGUFFile, key: str, kind: type) -> Any:
    value = file.metadata.get(key)
    if not isinstance(value, kind):
        raise FormatError(f"{file.path}: {key} is {value!r}, not {kind.__name__}", _OTHER)
    return value


def _read_entry(file: GGUFFile, name: str, matrix: ImportanceMatrix) -> None:
    sums = file.dequantized(f"{name}.in_sum2")
    if f"{name}.counts" not in file.tensors:
        raise FormatError(f"{file.path}: {name} has sums but no counts", _OTHER)
    counts = file.dequantized(f"{name}.counts").reshape(-1)
    if sums.size != sums.shape[-1] or len(counts) != 1:
        raise FormatError(f"{file.path}: {name} has {len(counts)} counts: matrices of experts are not read")
    if not (np.isfinite(sums).all() and (sums >= 0).all()) or not (np.isfinite(counts[0]) and counts[0] >= 0):
        raise FormatError(f"{file.path}: {name} holds a negative or infinite sum or count", "make it again")
    matrix.sums[name], matrix.counts[name] = sums.reshape(-1), float(counts[0])


def partial_path(path: Path) -> Path:
    """Where an unfinished calibration is kept."""
    return path.with_name(path.name + ".partial")
