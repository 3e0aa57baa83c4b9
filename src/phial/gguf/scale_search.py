"""Quantisation that searches for scales: the weighted squared error of what the blocks decode to is minimised.

The weights are an importance matrix: one number per column, the mean square of the activations it is multiplied with,
so that it is the product's error that becomes small. blocks.py says what the bytes mean and rounds to nearest; here
scales are searched, natively where the compiled core is there, otherwise in numpy. The numpy search
(scale_search_numpy.py) is the definition; the plans below drive both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError
from phial.gguf.formats import FORMATS, Bytes, GGMLType, n_bytes
from phial.gguf.scale_search_numpy import Plan, encode_blocks
from phial.threads import checked_threads

__all__ = ["encode"]

Floats = NDArray[np.float32]

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
    GGMLType.Q8_0: Plan(_symmetric(127, 0.9, 1.002, 8)),
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
    GGMLType.Q8_0: Plan(_symmetric(127, 0.97, 1.002, 4)),
    GGMLType.Q5_0: Plan(_symmetric(16, 0.85, 1.02, 4)),
    GGMLType.Q4_0: Plan(_symmetric(8, 0.8, 1.02, 4)),
    GGMLType.Q5_1: Plan(_affine(-0.2, 0.4)),
    GGMLType.Q4_1: Plan(_affine(-0.2, 0.4)),
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
    mean = importance.mean(dtype=np.float64)
    ratios = importance / mean if mean else np.ones(columns)
    weights: Floats = (ratios + _FLOOR).astype(np.float32)
    return weights


def encode(
    x: Floats, type: GGMLType, importance: Floats | None = None, *, n_threads: int | None = None
) -> NDArray[np.uint8]:
    """Quantise x (rows, columns), float32, to the tensor's blocks, (n_bytes,) uint8.

    Scales, minimums and sub-scales are chosen to minimise sum_j importance_j (x_j - decoded_j)^2 in every block.
    importance: (columns,), not negative; None: all columns alike. Where it is zero throughout a group, so are they.
    n_threads: as in Engine; the bytes do not depend on it.

    ArgumentError where x or importance hold what cannot be used or a scale does not fit float16; FormatError where the
    columns do not fill whole blocks.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2 or type not in FORMATS:
        raise ArgumentError(
            f"no scales to search for {type.name} of shape {x.shape}",
            f"give rows and columns and one of {', '.join(t.name for t in FORMATS)}",
        )
    size, columns = n_bytes(type, x.shape), x.shape[1]
    weights = None if importance is None else _weights(importance, columns)
    plan = _PLANS[type] if weights is not None else _EVEN_PLANS.get(type, _PLANS[type])
    if not np.isfinite(x).all():
        raise ArgumentError(f"NaN or infinity cannot be stored as {type.name}", "check the tensor's source")
    checked_threads("n_threads", n_threads)
    return _encode_numpy(x, type, np.ones(columns, np.float32) if weights is None else weights, plan, size)


def _encode_numpy(x: Floats, type: GGMLType, weights: Floats, plan: Plan, size: int) -> Bytes:
    form, out = FORMATS[type], np.empty(size, dtype=np.uint8)
    rows = max(1, _PASS_ELEMENTS // max(x.shape[1], 1))
    blocks = out.view(form.block).reshape(x.shape[0], x.shape[1] // form.elements)
    for start in range(0, x.shape[0], rows):
        part = x[start : start + rows]
        w = np.broadcast_to(weights, part.shape)
        encode_blocks(
            form,
            part.reshape(-1, form.elements),
            w.reshape(-1, form.elements),
            plan,
            blocks[start : start + rows].reshape(-1),
        )
    return out
