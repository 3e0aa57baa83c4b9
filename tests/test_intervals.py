"""Intervals of measured shares."""

from __future__ import annotations

import pytest

from phial.intervals import wilson


def test_wilsons_interval() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as in Newcombe 1998, method 3
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == 1
