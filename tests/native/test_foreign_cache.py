"""A cache made for another shape of model is refused: its pages have other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("phial._native", reason="the compiled core is not built", exc_type=ImportError)

SHAPE = {
    "n_vocab": 40, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 64, "rope_dim": 16
}  # fmt: skip


def model(**changes: int) -> Any:
    """A model without tensors: arguments are checked before they are missed."""
    options = {**SHAPE, "rms_norm_eps": 1e-5, "rope_interleaved": False, "sliding_window": 0, "n_threads": 1}
    return native.Model(**{**options, **changes})


def forward(cache: Any) -> None:
    one, none = np.array([1], np.int32), np.array([0], np.int32)
    pages = np.array([[cache.new_page()]], np.int32)
    model().forward(cache, one, one, none, np.zeros(1, np.uint8), pages, 0, 1)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("changes", [{"n_layer": 3}, {"n_layer": 1}, {"n_head_kv": 1}, {"head_dim": 32}], ids=str)
def test_a_cache_of_another_shape_is_refused(changes: dict[str, int], cache_type: str) -> None:
    cache = native.Cache(model(**changes), cache_type)
    with pytest.raises(ValueError, match="the cache is another model's"):
        forward(cache)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_a_cache_of_the_same_shape_is_taken(cache_type: str) -> None:
    with pytest.raises(RuntimeError, match="forward before finish"):  # the next check: the cache was no obstacle
        forward(native.Cache(model(), cache_type))
