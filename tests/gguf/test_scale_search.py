"""The quantiser that searches for scales: what its bytes decode to, against plain rounding and against llama.cpp's.

Every claim is about decoded values: dequantize (held to an independent implementation in test_blocks.py) says what the
bytes are worth. Leaves out speed (bench/quantize.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from phial.errors import ArgumentError, FormatError
from phial.gguf import scale_search
from phial.gguf.blocks import GGMLType, dequantize, quantize
from phial.gguf.formats import FORMATS
from phial.gguf.scale_search import encode

Floats = NDArray[np.float32]
TYPES = list(FORMATS)
K_TYPES = [type for type in TYPES if FORMATS[type].scales]


def tensor(kind: str, rows: int, columns: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    draw = {
        "normal": rng.standard_normal,
        "heavy": lambda shape: rng.standard_t(3, shape),
        "laplace": lambda shape: rng.laplace(size=shape),
    }
    return (draw[kind]((rows, columns)) * 0.02).astype(np.float32)


def importances(columns: int, seed: int = 1) -> Floats:
    """As uneven as real ones: log-normal, one column in a hundred a hundred times larger."""
    rng = np.random.default_rng(seed)
    weights = np.exp(1.5 * rng.standard_normal(columns))
    weights[rng.integers(0, columns, columns // 100)] *= 100
    return weights.astype(np.float32)


def rmse(x: Floats, data: NDArray[np.uint8], type: GGMLType, importance: Floats | None = None) -> float:
    squares = (dequantize(data, type, x.shape).astype(np.float64) - x) ** 2
    return float(np.sqrt(np.average(squares.mean(axis=0), weights=importance)))


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_the_error_is_below_that_of_rounding_to_nearest(type: GGMLType, kind: str) -> None:
    x, importance = tensor(kind, 8, 1024), importances(1024)
    assert rmse(x, encode(x, type), type) < 0.99 * rmse(x, quantize(x, type), type)
    weighted = rmse(x, encode(x, type, importance), type, importance)
    assert weighted < 0.9 * rmse(x, quantize(x, type), type, importance)
    assert weighted < 0.99 * rmse(x, encode(x, type), type, importance)
