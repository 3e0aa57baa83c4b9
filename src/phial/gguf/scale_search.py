"""Quantisation that searches for scales: the weighted squared error of what the blocks decode to is minimised.

The weights are an importance matrix: one number per column, the mean square of the activations it is multiplied with,
so that it is the product's error that becomes small. blocks.py says what the bytes mean and rounds to nearest; here
scales are searched, natively where the compiled core is there, otherwise in numpy. The numpy search
(scale_search_numpy.py) is the definition; the plans below drive both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError
from phial.gguf.blocks import dequantize
from phial.gguf.formats import FORMATS, Bytes, GGMLType, n_bytes
from phial.gguf.scale_search_numpy import Plan, encode_blocks
from phial.threads import checked_threads

try:
    from phial import _native
except ImportError:  # an installation without the compiled core
    _native = None  # type: ignore[assignment]

__all__ = ["Encoded", "encode", "search"]

Floats = NDArray[np.float32]
Values = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

_SOURCES = {
    np.dtype(np.float32): GGMLType.F32,
    np.dtype(np.float16): GGMLType.F16,
    np.dtype(np.uint16): GGMLType.BF16,
}
_PASS_ELEMENTS = 1 << 18  # numpy's temporaries stay within some ten MiB
# Added to every weight, relative to their mean: columns without importance are rounded well where it costs the others
# nothing, and a group of nothing else counts as evenly weighted.
_FLOOR = 1e-6


def _symmetric(peak: int, first: float, last: float, count: int, opposite: int = 0) -> Floats:
    """`count` trials that map the peak value to these fractions of the lowest code; `opposite` more upwards."""
    trials = [-peak * f for f in np.linspace(first, last, count)] + [
        peak * f for f in np.linspace(first, last, opposite)
    ]
    return np.array([(t, 0) for t in trials], np.float32)


def _affine(*ends: float) -> Floats:
    """Every pair of ends: how far beyond the first and the last code the smallest and the largest value lie."""
    return np.array([(below, above) for below in ends for above in ends], np.float32)


def _moves(scale: int, minimum: int) -> NDArray[np.int32]:
    """Every move of a group's scale by at most `scale` and of its minimum by at most `minimum`, but none of both."""
    moves = [(s, m) for s in range(-scale, scale + 1) for m in range(-minimum, minimum + 1) if s or m]
    return np.array(moves, np.int32).reshape(-1, 2)


# How much each trial is worth: docs/LOG.md, 2026-11-25.
_PLANS = {
    GGMLType.Q8_0: Plan(_symmetric(127, 0.92, 1.002, 6)),
    GGMLType.Q5_0: Plan(_symmetric(16, 0.5, 1.1, 24)),
    GGMLType.Q4_0: Plan(_symmetric(8, 0.5, 1.1, 24, 8)),
    GGMLType.Q5_1: Plan(_affine(-3, -2, -1, -0.3, 0.25, 0.7, 1.2)),
    GGMLType.Q4_1: Plan(_affine(-2, -1.3, -0.7, -0.2, 0.25, 0.7, 1.2)),
    GGMLType.Q6_K: Plan(_symmetric(32, 0.6, 1.02, 16), _moves(3, 0), 2),
    GGMLType.Q5_K: Plan(_affine(-2.1, -1.05, -0.15, 0.25, 0.6), _moves(2, 1), 3),
    GGMLType.Q4_K: Plan(_affine(-1.6, -0.9, -0.3, 0.1, 0.4, 0.7), _moves(2, 1), 2),
    GGMLType.Q3_K: Plan(_symmetric(4, 0.5, 1.1, 12, 8), _moves(4, 0), 2),
    GGMLType.Q2_K: Plan(_affine(-0.5, -0.25, -0.03, 0.14, 0.35), _moves(2, 1), 2),
}
# Without weights the best fits are all alike, and nearly as good after a few trials.
_EVEN_PLANS = {
    GGMLType.Q8_0: Plan(_symmetric(127, 0.97, 1, 4)),
    GGMLType.Q5_0: Plan(_symmetric(16, 0.88, 1.03, 3)),
    GGMLType.Q4_0: Plan(_symmetric(8, 0.92, 1.03, 2)),
    GGMLType.Q5_1: Plan(np.array([(0.4, -0.2), (-0.2, 0.4)], np.float32)),
    GGMLType.Q4_1: Plan(np.array([(0.4, -0.2), (-0.2, 0.4)], np.float32)),
}


def _weights(importance: Floats, columns: int) -> Floats:
    """Weights of mean 1 that are nowhere zero. ArgumentError where the importance is not one weight per column."""
    importance = np.asarray(importance, np.float32)
    if importance.shape != (columns,):
        raise ArgumentError(
            f"importance of shape {importance.shape} for {columns} columns", "an importance matrix has one per column"
        )
    if not np.isfinite(importance).all() or (importance < 0).any():
        bad = importance[~((importance >= 0) & np.isfinite(importance))][0]
        raise ArgumentError(f"an importance of {bad}", "importances are finite and not negative")
    mean = importance.mean(dtype=np.float64) if columns else 0.0
    ratios = importance / mean if mean else np.ones(columns)
    weights: Floats = (ratios + _FLOOR).astype(np.float32)
    return weights


class Encoded(NamedTuple):
    """A tensor's blocks, and what they lose: weighted sums over all values, the weights being 1 on average."""

    data: Bytes  # (n_bytes,)
    error: float  # of (x - decoded)^2
    power: float  # of x^2


def encode(x: Values, type: GGMLType, importance: Floats | None = None, *, n_threads: int | None = None) -> Bytes:
    """Quantise as `search` does; returns the blocks alone, (n_bytes,) uint8."""
    return search(x, type, importance, n_threads=n_threads).data


def search(x: Values, type: GGMLType, importance: Floats | None = None, *, n_threads: int | None = None) -> Encoded:
    """Quantise x (rows, columns) with the scales that minimise the weighted squared error.

    x: float32, float16, or uint16 that holds bfloat16; other numbers become float32.

    Scales, minimums and sub-scales are searched in every block for the least sum_j importance_j (x_j - decoded_j)^2.
    importance: (columns,), not negative; None: all columns alike. Where it is zero throughout a group, so are they.
    n_threads: as in Engine; the result does not depend on it.

    ArgumentError where x or importance hold what cannot be used or a scale does not fit float16; FormatError where the
    columns do not fill whole blocks.
    """
    x = np.require(x, None if x.dtype in _SOURCES else np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    if x.ndim != 2 or type not in FORMATS:
        raise ArgumentError(
            f"no scales to search for {type.name} of shape {x.shape}",
            f"give rows and columns and one of {', '.join(t.name for t in FORMATS)}",
        )
    size, columns = n_bytes(type, x.shape), x.shape[1]
    weights = np.ones(columns, np.float32) if importance is None else _weights(importance, columns)
    plan = _EVEN_PLANS.get(type, _PLANS[type]) if importance is None else _PLANS[type]
    threads = checked_threads("n_threads", n_threads)
    if not size:
        return Encoded(np.empty(0, np.uint8), 0.0, 0.0)
    if _native is None:
        return _search_numpy(to_floats(x), type, weights, plan)
    source, raw = int(_SOURCES[x.dtype]), x.view(np.uint8)
    found = Encoded(*_native.quantize(int(type), source, raw, weights, plan.trials, plan.moves, plan.rounds, threads))
    blocks = found.data.view(FORMATS[type].block)
    if not all(np.isfinite(blocks[field]).all() for field in {"d", "m"} & set(blocks.dtype.names or ())):
        _check_finite(to_floats(x), type)
        raise ArgumentError(
            f"a block scale of {type.name} does not fit float16 (largest 65504)",
            "rescale the tensor or keep it in F32",
        )
    return found


def to_floats(x: Values) -> Floats:
    """x as float32."""
    return dequantize(x.view(np.uint8).reshape(-1), _SOURCES[x.dtype], x.shape)


def _check_finite(x: Floats, type: GGMLType) -> None:
    if not np.isfinite(x).all():
        raise ArgumentError(f"NaN or infinity cannot be stored as {type.name}", "check the tensor's source")


def _search_numpy(x: Floats, type: GGMLType, weights: Floats, plan: Plan) -> Encoded:
    _check_finite(x, type)
    form, parts, error = FORMATS[type], [], 0.0
    rows = max(1, _PASS_ELEMENTS // x.shape[1])
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        blocks = np.empty(part.size // form.elements, form.block)
        w = np.broadcast_to(weights, part.shape).reshape(-1, form.elements)
        error += encode_blocks(form, part.reshape(-1, form.elements), w, plan, blocks)
        parts.append(blocks.view(np.uint8))
    power = float((np.square(x.astype(np.float64)) @ weights).sum())
    return Encoded(np.concatenate(parts), error, power)
