"""Duplicates by meaning: near embeddings within clusters (SemDeDup, Abbas et al. 2023).

The kept documents' embeddings are clustered with k-means, fitted on a sample, so that only pairs within a cluster are
compared. Within a cluster the document first in order is kept and those whose cosine to it reaches the threshold are
dropped, as in `duplicates`. Memory: 12 bytes a document, the sample and one cluster's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.data.duplicates import SEMANTIC, Drop, first_of_each, in_order
from phial.data.signature_files import Numbers, SignatureReader

_SAMPLE = 20_000  # embeddings the clusters are fitted on


def drops(files: SignatureReader, kept: NDArray[np.bool_], threshold: float, size: int, seed: int) -> Iterator[Drop]:
    """Which of the kept documents are dropped for one that means the same.

    Args:
        threshold: cosine similarity.
        size: documents in a cluster, on average.
        seed: of k-means.
    """
    numbers = np.flatnonzero(kept)
    if len(numbers) < 2:
        return
    owners = _clusters(files, numbers, -(-len(numbers) // size), seed)
    order = np.argsort(owners, kind="stable")
    bounds = np.flatnonzero(np.diff(owners[order])) + 1
    for members in np.split(numbers[order], bounds):
        ordered = in_order(files, members)
        rows = files.rows("embeddings", ordered)

        def alike(first: int, rest: Numbers, rows: NDArray[Any] = rows) -> NDArray[np.bool_]:
            near: NDArray[np.bool_] = rows[rest] @ rows[first] >= threshold
            return near

        for first, dropped in first_of_each(len(ordered), alike):
            yield Drop(int(ordered[dropped]), int(ordered[first]), SEMANTIC)


def _clusters(files: SignatureReader, numbers: Numbers, count: int, seed: int) -> NDArray[np.int32]:
    """The cluster of each document."""
    owners = np.zeros(len(numbers), np.int32)
    if count == 1:
        return owners
    from sklearn.cluster import MiniBatchKMeans

    sample = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _SAMPLE), dtype=np.int64)]
    means = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(files.rows("embeddings", sample))
    for at in range(0, len(numbers), _SAMPLE):
        owners[at : at + _SAMPLE] = means.predict(files.rows("embeddings", numbers[at : at + _SAMPLE]))
    return owners
