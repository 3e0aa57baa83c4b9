"""The law against hand-worked values, an integral and published parameters; its fit against planted ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from phial.data.optimal_fit import Fit, Point, fit
from phial.data.optimal_law import Law
from phial.data.optimal_plan import best_share, choose, crossovers, held_out, parameters
from phial.errors import ArgumentError, PhialError

UNIQUE = np.array([1e6, 2e6, 7e6])
PLANTED = Law(UNIQUE, np.full(3, 60.0), np.array([-0.21, -0.20, -0.19]), np.array([3.0, 5.0, 8.0]), np.full(3, 1.5))
RATES = (0.1, 0.3, 1.0)
FIRST_CROSSOVER = 4_603_273
BUDGETS = (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)


def measured(law: Law, seed: int, noise: float = 0.004, by_run: float = 0.0, seeds: int = 3) -> list[Point]:
    """Noisy losses of every pool at every budget."""
    rng = np.random.default_rng(seed)
    points = []
    for keep in range(1, len(law.unique) + 1):
        for number in range(seeds):
            shared = rng.normal(0, by_run) if by_run else 0.0
            for tokens in BUDGETS:
                loss = float(law.loss(keep, tokens)[0]) + shared + rng.normal(0, noise)
                points.append(Point(keep, tokens, loss, f"{keep}-{number}" if by_run else f"{keep}-{number}-{tokens}"))
    return points


def test_one_pool_by_hand() -> None:
    law = Law(np.array([100.0]), np.array([2.0]), np.array([-0.5]), np.array([1.0]), np.array([0.25]))
    # exponents -1/2, -1/4, -1/8 in passes 1, 2, 3
    assert law.loss(1, 25)[0] == pytest.approx(2 / 5 + 0.25)
    assert law.loss(1, 200)[0] == pytest.approx(2 / 10 * 2**-0.25 + 0.25)
    assert law.loss(1, 250)[0] == pytest.approx(2 / 10 * 2**-0.25 * 1.25**-0.125 + 0.25)


def test_two_unequal_pools_by_hand() -> None:
    law = Law(
        np.array([100.0, 300.0]), np.array([2.0, 2.0]), np.array([-0.4, -0.2]), np.array([0.25, 1.5]), np.zeros(2)
    )
    # shares 1/4 and 3/4 stretch the half-lives to 1 and 2 passes: (0.4/4 + 0.6/4) = 1/4, then 0.05 + 0.15/sqrt(2)
    assert law.loss(2, 400)[0] == pytest.approx(2 * 400**-0.25)
    assert law.loss(2, 600)[0] == pytest.approx(2 * 400**-0.25 * 1.5 ** -(0.05 + 0.15 / 2**0.5))


def test_no_decay_is_a_power_law_and_full_decay_stops_after_one_pass() -> None:
    tokens = [1e5, 1e6, 5e6, 1e7]
    slow, fast = (PLANTED._replace(tau=np.full(3, tau)) for tau in (1e12, 1e-6))
    np.testing.assert_allclose(slow.loss(1, tokens), 60 * np.array(tokens) ** -0.21 + 1.5)
    np.testing.assert_allclose(fast.loss(1, tokens), 60 * np.minimum(tokens, 1e6) ** -0.21 + 1.5)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_law_is_the_integral_of_its_utility(keep: int) -> None:
    """Between the ends of passes the loss above d obeys dL/dn = b L / n, with the mean of decayed exponents."""
    pool, end = UNIQUE[:keep].sum(), 3.4 * UNIQUE[:keep].sum()
    above, start = 60 * 1e4 ** np.average(PLANTED.b[:keep], weights=UNIQUE[:keep]), 1e4
    for passed in range(4):
        stop = min(pool * (passed + 1), end)
        left = [
            b * 0.5 ** (passed / (tau * pool / u)) for b, tau, u in zip(PLANTED.b, PLANTED.tau, UNIQUE, strict=True)
        ]
        exponent = np.average(left[:keep], weights=UNIQUE[:keep])
        done = solve_ivp(lambda n, y, e=exponent: e * y / n, (start, stop), [above], rtol=1e-10, atol=1e-12)
        above, start = done.y[0, -1], stop
    assert PLANTED.loss(keep, end)[0] == pytest.approx(above + 1.5, rel=1e-7)


def test_published_parameters_say_that_the_best_keep_rate_loosens_with_compute() -> None:
    """T-MARS buckets of 12.8 M samples: b and tau as published (results/parameter_values.jsonl), error c^b n^b + d."""
    b, tau = np.array([-0.16, -0.125, -0.1, -0.085]), np.array([6.727, 8.545, 5.273, 2.273])
    law = Law(np.full(4, 12.8e6), (0.025 / 1e5) ** b, b, tau, np.full(4, 0.1))
    best = [int(law.loss([1, 2, 3, 4], n).argmin()) + 1 for n in (32e6, 64e6, 128e6, 640e6)]
    assert best[0] == 1 and best[-1] > 1 and best == sorted(best)
    for n, keep in ((32e6, 1), (640e6, 3)):  # the same by that code's loop, an epoch at a time
        stretched, samples, above = tau[:keep] * keep, np.array([0.0]), 1.0
        for epoch in range(int(n // (12.8e6 * keep)) + 1):
            exponent = np.mean(b[:keep] * 0.5 ** (epoch / stretched))
            before, samples = samples, 0.025 * min(12.8e6 * keep * (epoch + 1), n) / 1e5
            above *= samples**exponent if epoch == 0 else (samples / before) ** exponent
        assert law.loss(keep, n)[0] == pytest.approx(above + 0.1)


@pytest.mark.parametrize(("keep", "tokens"), [(0, 1e6), (4, 1e6), (1, 0.5), (1, 1e12)])
def test_what_the_law_does_not_say(keep: int, tokens: float) -> None:
    with pytest.raises(ArgumentError):
        PLANTED.loss(keep, tokens)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(measured(PLANTED, 1), UNIQUE, draws=60)


def test_planted_parameters_are_found(fitted: Fit) -> None:
    assert fitted.separate == ("b", "tau")  # Akaike's choice is how the losses were made
    assert fitted.sigma == pytest.approx(0.004, rel=0.3)
    for name in ("a", "b", "tau", "d"):
        low, high = fitted.interval(name, 0.98)
        assert np.all((low <= getattr(PLANTED, name)) & (getattr(PLANTED, name) <= high)), name
    np.testing.assert_allclose(fitted.law.tau[:2], PLANTED.tau[:2], rtol=0.15)


def test_exact_losses_give_exact_parameters() -> None:
    found = fit(measured(PLANTED, 0, noise=0.0, seeds=1), UNIQUE, separate=("b", "tau"), draws=2).law
    for name in ("a", "b", "tau", "d"):
        np.testing.assert_allclose(getattr(found, name), getattr(PLANTED, name), rtol=1e-3)


def test_one_wild_loss_does_not_move_the_fit() -> None:
    points = measured(PLANTED, 2)
    points[7] = points[7]._replace(loss=points[7].loss + 1.0)
    found = fit(points, UNIQUE, separate=("b", "tau"), draws=1).law
    np.testing.assert_allclose(found.loss([1, 2, 3], 16e6), PLANTED.loss([1, 2, 3], 16e6), atol=0.03)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("by_run", [0.0, 0.004])
def test_intervals_hold_the_truth_as_often_as_they_say(by_run: float) -> None:
    """90 % intervals of parameters and of predictions at four times the greatest budget, over 40 plantings."""
    names, hits, crossings = ("a", "b", "tau", "d"), np.zeros((5, 3)), 0
    for seed in range(40):
        points = [p for p in measured(PLANTED, 50 + seed, by_run=by_run) if p.tokens <= 4_000_000]
        found = fit(points, UNIQUE, separate=("b", "tau"), draws=100, seed=seed)
        for i, name in enumerate(names):
            low, high = found.interval(name)
            hits[i] += (low <= getattr(PLANTED, name)) & (getattr(PLANTED, name) <= high)
        low, high = found.band([1, 2, 3], 16e6)
        hits[4] += (low <= PLANTED.loss([1, 2, 3], 16e6)) & (PLANTED.loss([1, 2, 3], 16e6) <= high)
        first = crossovers(found, RATES, 5e5, 6.4e7)[0]
        crossings += (first.low or np.inf) <= FIRST_CROSSOVER <= (first.high or np.inf)
    assert hits.min() >= 28 and crossings >= 28, (hits / 40, crossings / 40)


def test_a_half_life_that_nothing_bears_on_is_unknown_and_predictions_say_so() -> None:
    points = [p for p in measured(PLANTED, 3) if p.tokens <= 1_000_000]
    found = fit(points, UNIQUE, separate=("b", "tau"), draws=40)
    assert found.repeated == (False, False, False)
    assert [row["tau"] for row in parameters(found, RATES)] == [None] * 3
    inside, outside = (np.ptp(found.band(1, tokens), axis=0)[0] for tokens in (1e6, 16e6))
    low, high = found.band(1, 16e6)
    assert outside > 5 * inside and low[0] <= PLANTED.loss(1, 16e6)[0] <= high[0]
    choice = choose(found, RATES, 16_000_000)
    assert choice.extrapolation == 16
    assert any("tau is unknown" in warning for warning in choice.warnings)
    assert any("16 times the greatest budget" in warning for warning in choice.warnings)


def test_the_best_keep_rate_and_the_crossovers_are_those_planted(fitted: Fit) -> None:
    for tokens in (1_000_000, 7_000_000, 16_000_000):
        choice = choose(fitted, RATES, tokens)
        assert choice.keep_rate == RATES[int(PLANTED.loss([1, 2, 3], tokens).argmin())]
        row = next(row for row in choice.candidates if row.keep_rate == choice.keep_rate)
        assert choice.epochs == row.epochs == tokens / row.unique_tokens
        assert row.low < row.loss < row.high
    grid = np.geomspace(5e5, 6.4e7, 20_000)
    found = crossovers(fitted, RATES, 5e5, 6.4e7)
    assert [(cross.tighter, cross.looser) for cross in found] == [(0.1, 0.3), (0.1, 1.0), (0.3, 1.0)]
    for cross in found:
        tight = RATES.index(cross.tighter) + 1
        gap = PLANTED.loss(tight, grid) - PLANTED.loss(RATES.index(cross.looser) + 1, grid)
        true = grid[np.flatnonzero((gap[:-1] <= 0) & (gap[1:] > 0))[0]]
        assert cross.tokens == pytest.approx(true, rel=0.2)  # the last lies beyond every measurement
        assert cross.low is not None and cross.tokens is not None
        assert cross.low <= cross.tokens <= (cross.high or np.inf) and cross.low <= 1.1 * true


def test_the_largest_budget_is_predicted_from_the_smaller_ones() -> None:
    points = measured(PLANTED, 5)
    small = [p for p in points if p.tokens <= 8_000_000]
    told = held_out(
        fit(small, UNIQUE, separate=("b", "tau"), draws=40), [p for p in points if p.tokens > 8_000_000], RATES
    )
    assert told["best_predicted"] == told["best_measured"] == 0.3
    assert told["root_mean_square_error"] < 0.05 and told["fitted_up_to"] == 8_000_000
    assert [row["seeds"] for row in told["keep_rates"]] == [3, 3, 3]
    lines = PLANTED.loss([1, 2, 3], 8e6) ** 2 / PLANTED.loss([1, 2, 3], 4e6)  # as much again in logarithms
    assert [row["by_a_line"] for row in told["keep_rates"]] == pytest.approx(lines.tolist(), abs=0.02)
    assert told["root_mean_square_error"] < told["root_mean_square_error_of_line"]


def test_too_few_losses_and_a_pool_without_any_are_refused() -> None:
    points = measured(PLANTED, 0, seeds=1)
    with pytest.raises(PhialError, match="losses for a law of 8 parameters"):
        fit([p for p in points if p.tokens > 4_000_000], UNIQUE, separate=("b", "tau"))
    with pytest.raises(PhialError, match=r"pools \[1, 2\], there are 3"):
        fit([p for p in points if p.keep < 3], UNIQUE)


def test_the_best_share_of_phase_2_lies_within_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    shares = [s for s in (0.0, 0.1, 0.2, 0.4) for _ in range(3)]
    found = best_share(shares, [3 + 2 * (s - 0.17) ** 2 + rng.normal(0, 0.002) for s in shares])
    assert found.low <= 0.17 <= found.high and found.share == pytest.approx(0.17, abs=0.03) and found.at_end < 0.05
    falling = best_share(shares, [3 - s for s in shares])
    assert falling.share == 0.4 and falling.at_end > 0.9
    with pytest.raises(PhialError, match="2 shares of phase 2"):
        best_share([0.0, 0.1] * 3, [1.0] * 6)
