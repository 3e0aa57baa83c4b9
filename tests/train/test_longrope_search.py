"""The evolutionary search: its constraints, a known optimum, scores computed once, and going on after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from phial.errors import ArgumentError, PhialError
from phial.train.longrope.search import Found, SearchConfig, search
from phial.train.longrope.seeds import Factors

STRETCH = 8.0
PAIRS = 12
OPTIMUM = tuple(float(x) for x in np.round(np.geomspace(1.0, 9.5, PAIRS), 2))
SEEDS = {"pi": (STRETCH,) * PAIRS, "yarn": tuple(np.clip(np.linspace(-3, 14, PAIRS), 1, STRETCH).tolist())}
QUICK = SearchConfig(population=32, parents=12, mutations=8, crossovers=8, iterations=12)


class Distance:
    """How far factors are from OPTIMUM, relatively; keeps what it was asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[Factors] = []
        self.stop_after = stop_after

    def __call__(self, factors: Factors) -> float:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(factors)
        return float(np.square(np.log(np.array(factors) / OPTIMUM)).sum())


def found(path: Path, fitness: Distance, config: SearchConfig = QUICK) -> Found:
    return search(fitness, SEEDS, STRETCH, config, path)


def test_every_list_asked_is_monotone_in_bounds_and_on_the_grid(tmp_path: Path) -> None:
    fitness = Distance()
    found(tmp_path / "j", fitness)
    lists = np.array(fitness.asked)
    assert lists.shape[1] == PAIRS and len(lists) > 100
    assert (np.diff(lists, axis=1) >= 0).all()
    assert lists.min() >= 1 and lists.max() <= 1.25 * STRETCH
    np.testing.assert_allclose(lists * 100, np.round(lists * 100), atol=1e-9)


def test_no_list_is_scored_twice_and_the_count_is_told(tmp_path: Path) -> None:
    fitness = Distance()
    result = found(tmp_path / "j", fitness)
    assert len(set(fitness.asked)) == len(fitness.asked) == result.scored


def test_the_best_beats_every_seed_and_the_curve_never_rises(tmp_path: Path) -> None:
    result = found(tmp_path / "j", Distance())
    assert result.score < min(result.seeds.values())
    assert result.seeds["pi"] == Distance()(SEEDS["pi"])
    assert len(result.curve) == QUICK.iterations + 1
    assert all(b <= a for a, b in zip(result.curve, result.curve[1:], strict=False))
    assert result.curve[-1] == result.score == Distance()(result.factors)


def test_a_known_optimum_is_found(tmp_path: Path) -> None:
    """The paper's settings, 1,344 lists: every factor within 8 %, the score 100 times below the YaRN seed's."""
    result = found(tmp_path / "j", Distance(), SearchConfig())
    assert result.scored <= 64 + 40 * 32 + len(SEEDS)
    assert np.abs(np.log(np.array(result.factors) / OPTIMUM)).max() < 0.08
    assert result.seeds["yarn"] > 100 * result.score


def test_the_same_seed_finds_the_same_and_another_does_not(tmp_path: Path) -> None:
    first, second = (found(tmp_path / name, Distance()) for name in "ab")
    assert first == second
    other = found(tmp_path / "c", Distance(), QUICK.model_copy(update={"seed": 7}))
    assert other.factors != first.factors


@pytest.mark.parametrize("after", [0, 1, 30, 130])
def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(after: int, tmp_path: Path) -> None:
    whole = Distance()
    expected = found(tmp_path / "whole", whole)
    first, second = Distance(stop_after=after), Distance()
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "j", first)
    with open(tmp_path / "j", "a") as journal:
        journal.write("[[100, 1")  # killed in the middle of a line
    assert found(tmp_path / "j", second) == expected
    assert first.asked + second.asked == whole.asked  # in the same order, none twice
    assert (tmp_path / "j").read_text() == (tmp_path / "whole").read_text()


def test_unusable_scores_lose_and_a_search_of_nothing_else_is_an_error(tmp_path: Path) -> None:
    def half(factors: Factors) -> float:
        return math.nan if factors[-1] > STRETCH else Distance()(factors)

    assert search(half, SEEDS, STRETCH, QUICK, tmp_path / "a").factors[-1] <= STRETCH
    with pytest.raises(PhialError, match="finite"):
        search(lambda factors: math.nan, SEEDS, STRETCH, QUICK, tmp_path / "b")


def test_mistakes_are_named(tmp_path: Path) -> None:
    found(tmp_path / "j", Distance())
    with pytest.raises(PhialError, match="another search"):
        search(Distance(), SEEDS, 4.0, QUICK, tmp_path / "j")
    (tmp_path / "j").write_text((tmp_path / "j").read_text() + "[1]\n")
    with pytest.raises(PhialError, match="damaged"):
        found(tmp_path / "j", Distance())
    for seeds in ({}, {"a": (1.0, 2.0), "b": (1.0,)}, {"a": (2.0, 1.0)}):
        with pytest.raises(ArgumentError):
            search(Distance(), seeds, STRETCH, QUICK, tmp_path / "k")


def test_seeds_beyond_the_ceiling_are_brought_to_it(tmp_path: Path) -> None:
    asked: list[Factors] = []
    only_seeds = SearchConfig(population=2, iterations=0)
    search(lambda f: asked.append(f) or 0.0, {"far": (0.5, 50.0)}, 2.0, only_seeds, tmp_path / "j")
    assert asked[0] == (1.0, 2.5)
