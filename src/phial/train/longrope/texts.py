"""Long texts cut into windows: some to search on, some to report on, the rest to tune on; no token in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phial.errors import PhialError

Windows = NDArray[np.int64]  # (windows, length + 1)


@dataclass(frozen=True)
class Texts:
    """Windows of one length + 1 by what they are for."""

    search: Windows
    report: Windows
    tune: Windows


def split_windows(
    documents: Sequence[Sequence[int]], length: int, *, search: int, report: int, tune: int, seed: int
) -> Texts:
    """Windows of length + 1 tokens, each within one document, drawn for each purpose; `tune` is the least for tuning.

    Raises PhialError where the documents hold too few.
    """
    size, windows = length + 1, list[Windows]()
    for document in documents:
        ids = np.asarray(document, np.int64)
        count = len(ids) // size
        windows.extend(ids[: count * size].reshape(count, size))
    needed = search + report + tune
    if len(windows) < needed:
        longest = max(map(len, documents), default=0)
        raise PhialError(
            f"the texts hold {len(windows)} windows of {size} tokens, not {needed}; the longest text has {longest}",
            "give more long texts, or fewer windows in the configuration",
        )
    order = np.random.default_rng(seed).permutation(len(windows))
    drawn = np.stack(windows)[order]
    return Texts(drawn[:search], drawn[search : search + report], drawn[search + report :])


def pieces(windows: Windows, length: int) -> Windows:
    """Every window cut into pieces of length + 1 tokens that predict the same tokens, as far as they go in whole."""
    count = (windows.shape[1] - 1) // length
    cut = [windows[:, i * length : (i + 1) * length + 1] for i in range(count)]
    return np.concatenate(cut)
