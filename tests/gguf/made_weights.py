"""Weights and importances as uneven as real ones, the same on every machine, and the error of what they decode to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phial.gguf.blocks import GGMLType, dequantize
from phial.gguf.container import GGUFFile
from phial.gguf.formats import FORMATS

Floats = NDArray[np.float32]
KINDS = ("normal", "laplace", "heavy")


def tensor(kind: str, rows: int, columns: int, seed: int = 0) -> Floats:
    """(rows, columns) of standard deviation near 0.02. RandomState, because its streams never change."""
    rng = np.random.RandomState(seed)
    draw = {"normal": rng.standard_normal, "laplace": lambda size: rng.laplace(size=size)}
    draw["heavy"] = lambda size: rng.standard_t(3, size)
    return (draw[kind]((rows, columns)) * 0.02).astype(np.float32)


def importances(columns: int, seed: int = 1) -> Floats:
    """(columns,): log-normal, one column in a hundred a hundred times larger."""
    rng = np.random.RandomState(seed)
    weights = np.exp(1.5 * rng.standard_normal(columns))
    weights[rng.randint(0, columns, columns // 100)] *= 100
    return weights.astype(np.float32)


def dithered(file: GGUFFile, name: str) -> Floats:
    """A real matrix of a Q4_1 file with what rounding took from it made up again: noise of one step in width.

    Without it a type of as many codes could store the values exactly.
    """
    values = file.dequantized(name)
    steps = file.data(name).view(FORMATS[GGMLType.Q4_1].block)["d"].astype(np.float32).reshape(len(values), -1)
    noise = np.random.RandomState(0).uniform(-0.5, 0.5, values.shape).astype(np.float32)
    return values + noise * np.repeat(steps, 32, axis=1)


def rmse(x: Floats, data: NDArray[np.uint8], type: GGMLType, importance: Floats | None = None) -> float:
    """Root of the mean squared error, columns weighted by importance."""
    squares = (dequantize(data, type, x.shape).astype(np.float64) - x) ** 2
    return float(np.sqrt(np.average(squares.mean(axis=0), weights=importance)))
