"""Prompt lookup against plain search over the whole text."""

from __future__ import annotations

import numpy as np
import pytest

from phial.engine.lookup import LONGEST, PRIOR, SIZES, Lookup


def latest_place(text: list[int]) -> int | None:
    """The position after the latest earlier occurrence of the longest n-gram the text ends with."""
    for size in SIZES:
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :]:
                return end
    return None


@pytest.mark.parametrize("seed", range(4))
def test_the_drafts_are_what_followed_the_latest_longest_ngram(seed: int) -> None:
    text = np.random.default_rng(seed).integers(0, 4, 200).tolist()
    for length in range(1, 200):
        lookup = Lookup()
        lookup.begin(text[:length])
        place, n = latest_place(text[:length]), 5
        follow = text[place : min(place + n, length)] if place is not None else []
        assert lookup.draft(n)[: len(follow)] == follow
        assert bool(lookup.draft(n)) == (place is not None)


def test_a_place_is_followed_while_the_text_agrees_and_left_when_it_does_not() -> None:
    lookup = Lookup()
    lookup.begin([1, 2, 3, 4, 5, 6, 9, 3, 8, 1, 2])
    assert lookup.draft(3) == [3, 4, 5]
    lookup.extend(3)  # (9, 3) was later, but (1, 2, 3) goes on
    assert lookup.draft(2) == [4, 5]
    lookup.extend(8)
    assert lookup.draft(2) == [1, 2]
    lookup.extend(7)
    assert lookup.draft(2) == [] and lookup.chances(4) == []


def test_a_loop_is_drafted_round_and_round() -> None:
    lookup = Lookup()
    lookup.begin([5, 6, 7, 5, 6, 7, 5])
    assert lookup.draft(8) == [6, 7, 5, 6, 7, 5, 6, 7]
    lookup.begin([4, 4])
    assert lookup.draft(3) == [4, 4, 4]


def test_growing_token_by_token_is_the_same_as_beginning_with_the_whole() -> None:
    text = np.random.default_rng(0).integers(0, 5, 300).tolist()
    grown = Lookup()
    grown.begin(text[:1])
    for token in text[1:]:
        grown.extend(token)
    whole = Lookup()
    whole.begin(text)
    assert whole._after == grown._after


def test_chances_rise_with_the_length_of_the_match_and_with_success() -> None:
    lookup = Lookup()
    lookup.begin([1, 2, 3, 4, 5, 6, 7, 8, 1])
    assert lookup.chances(3) == pytest.approx(PRIOR[:3])
    for token in (2, 3, 4):
        lookup.extend(token)
    assert lookup.chances(2)[0] == pytest.approx(PRIOR[3])
    lookup.begin([1, 2, 3, 1])
    before = lookup.chances(1)[0]
    assert before > PRIOR[0]  # it was right after one agreement
    for _ in range(30):
        lookup.begin([1, 2, 3, 1])
        lookup.extend(9)
    lookup.begin([1, 2, 3, 1])
    assert lookup.chances(1)[0] < 0.05
    lookup.begin([1, 2] * 30)
    assert len(lookup.chances(40)) == LONGEST and len(lookup.chances(4)) == 4
    assert lookup.chances(1)[0] == pytest.approx(PRIOR[LONGEST - 1])
