"""Text embeddings from the model's last hidden states: pooling and scaling, as llama.cpp defines them.

Pooling: none gives one vector per token, mean their average, CLS the first one, last the last one. Causal models
put the whole text's meaning nearest to the last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phial.engine.llama_arguments import POOLING_CLS, POOLING_LAST, POOLING_MEAN, POOLING_NONE

Vector = list[float]


def pool(hidden: NDArray[np.float32], pooling: int, normalize: bool) -> Vector | list[Vector]:
    """Reduce hidden states (n, n_embd) to one vector, or to a list of n where pooling is none.

    normalize scales each vector to Euclidean length 1; a zero vector stays as it is.
    """
    if pooling == POOLING_NONE:
        return [_numbers(row, normalize) for row in hidden]
    if pooling == POOLING_MEAN:
        return _numbers(hidden.mean(axis=0), normalize)
    assert pooling in (POOLING_CLS, POOLING_LAST)
    return _numbers(hidden[0 if pooling == POOLING_CLS else -1], normalize)


def _numbers(vector: NDArray[np.float32], normalize: bool) -> Vector:
    values = vector.astype(np.float64)
    length = float(np.linalg.norm(values))
    if normalize and length > 0:
        values = values / length
    return [float(value) for value in values]
