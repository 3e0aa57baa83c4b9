"""What a fitted law says for a budget of tokens: which keep-rate, how many epochs, how sure, how far from the measured.

The share of phase 2 is in no law: for it a parabola is laid through the losses of measured shares, and its lowest point
is looked for between the least and the greatest of them, nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from phial.data.optimal_fit import TAU, Fit, Point
from phial.data.optimal_law import Array
from phial.errors import ArgumentError, PhialError

LEVEL = 0.9  # of every interval


class Candidate(NamedTuple):
    """A keep-rate at the budget.

    Attributes:
        epochs: passes over its documents. loss: predicted mean. low, high: interval of a single training's loss.
        best: share of the draws in which it is the best.
        as_good: whether the interval of its mean loss less the chosen one's holds 0.
    """

    keep_rate: float
    unique_tokens: float
    epochs: float
    loss: float
    low: float
    high: float
    best: float
    as_good: bool


class Choice(NamedTuple):
    """What to do with a budget.

    Attributes:
        keep_rate: the best in most draws. extrapolation: the budget over the greatest that was measured.
        warnings: what the measurements do not carry.
    """

    tokens: int
    keep_rate: float
    epochs: float
    extrapolation: float
    candidates: list[Candidate]
    warnings: list[str]


class Crossover(NamedTuple):
    """Where a looser keep-rate overtakes a tighter one; None: later than was looked for.

    Attributes:
        tokens: by the fit. low, high: the interval. share: of the draws that have a crossover at all.
    """

    tighter: float
    looser: float
    tokens: float | None
    low: float | None
    high: float | None
    share: float


def choose(fitted: Fit, keep_rates: Sequence[float], tokens: int) -> Choice:
    """The keep-rate for a budget, for models of the size that was measured.

    Args:
        keep_rates: rising, one for each union of buckets.
    """
    keep = np.arange(1, len(keep_rates) + 1)
    unique, losses = np.cumsum(fitted.law.unique), fitted.law.loss(keep, tokens)
    drawn = fitted.losses(keep, tokens)
    low, high = fitted.band(keep, tokens, LEVEL, one_run=True)
    best = np.bincount(drawn.argmin(axis=1), minlength=len(keep)) / len(drawn)
    chosen = int(best.argmax())
    apart = np.quantile(drawn - drawn[:, [chosen]], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rows = [
        Candidate(float(rate), float(unique[i]), float(tokens / unique[i]), float(losses[i]), float(low[i]),
                  float(high[i]), float(best[i]), bool(apart[0, i] <= 0 <= apart[1, i]))
        for i, rate in enumerate(keep_rates)
    ]  # fmt: skip
    measured = max(point.tokens for point in fitted.points)
    warnings = _warnings(fitted, keep_rates, tokens, measured)
    others = [f"{row.keep_rate:g}" for i, row in enumerate(rows) if row.as_good and i != chosen]
    if others:
        warnings.append(f"keep-rate {', '.join(others)} may be as good as {rows[chosen].keep_rate:g}")
    return Choice(tokens, rows[chosen].keep_rate, rows[chosen].epochs, tokens / measured, rows, warnings)


def _warnings(fitted: Fit, keep_rates: Sequence[float], tokens: int, measured: int) -> list[str]:
    """What the fit cannot know at this budget."""
    least = min(point.tokens for point in fitted.points)
    found = []
    if tokens > measured:
        found.append(f"{tokens:,} tokens are {tokens / measured:.2g} times the greatest budget measured ({measured:,})")
    if tokens < least:
        found.append(f"{tokens:,} tokens are fewer than the least budget measured ({least:,})")
    unique = np.cumsum(fitted.law.unique)
    for i, rate in enumerate(keep_rates):
        seen = max(point.tokens for point in fitted.points if point.keep == i + 1) / unique[i]
        if tokens / unique[i] > max(1.0, 1.05 * seen):
            found.append(f"keep-rate {rate:g} would be {tokens / unique[i]:.2g} epochs, measured are {seen:.2g}")
    for i, repeated in enumerate(fitted.repeated):
        if not repeated and tokens > unique[i]:
            found.append(f"bucket {i + 1} was never repeated: its tau is unknown, all of it is in the intervals")
    return found


def parameters(fitted: Fit, keep_rates: Sequence[float]) -> list[dict[str, Any]]:
    """Each bucket's parameters with their intervals, as optimal.json has them.

    tau: null where nothing was repeated; its upper end: null where the losses would be the same without any decay.
    """
    rows: list[dict[str, Any]] = []
    ends = {name: fitted.interval(name, LEVEL) for name in ("a", "b", "tau", "d")}
    for i, rate in enumerate(keep_rates):
        row: dict[str, Any] = {"from": float(keep_rates[i - 1]) if i else 0.0, "to": float(rate)}
        row["unique_tokens"] = float(fitted.law.unique[i])
        for name in ("a", "b", "d"):
            low, high = ends[name][:, i]
            row[name] = {"value": float(getattr(fitted.law, name)[i]), "low": float(low), "high": float(high)}
        row["tau"] = None
        if fitted.repeated[i]:
            low, high = ends["tau"][:, i]
            bounded = high < 0.9 * TAU[1]
            row["tau"] = {
                "value": float(fitted.law.tau[i]),
                "low": float(low),
                "high": float(high) if bounded else None,
            }
        rows.append(row)
    return rows


def crossovers(fitted: Fit, keep_rates: Sequence[float], least: float, most: float) -> list[Crossover]:
    """Where the looser of two keep-rates overtakes the tighter, for each two, between `least` and `most` tokens."""
    grid = np.geomspace(least, most, 300)
    found = []
    for tight, loose in combinations(range(1, len(keep_rates) + 1), 2):
        keep = np.concatenate([np.full(300, tight), np.full(300, loose)])

        def gap(losses: Array) -> Array:
            return losses[..., :300] - losses[..., 300:]

        both = np.tile(grid, 2)
        at = _first_rise(gap(fitted.law.loss(keep, both)), grid)
        drawn = [_first_rise(row, grid) for row in gap(fitted.losses(keep, both))]
        times = np.array([np.inf if value is None else value for value in drawn])  # later than was looked for
        low, high = np.quantile(times, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
        share = float(np.isfinite(times).mean())
        found.append(
            Crossover(
                float(keep_rates[tight - 1]), float(keep_rates[loose - 1]), at, _finite(low), _finite(high), share
            )
        )
    return found


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _first_rise(gap: Array, grid: Array) -> float | None:
    """Where a gap goes from below 0 to above, on a line in log tokens between grid points."""
    at = np.flatnonzero((gap[:-1] <= 0) & (gap[1:] > 0))
    if not len(at):
        return None
    i = int(at[0])
    part = -gap[i] / (gap[i + 1] - gap[i])
    return float(np.exp(np.log(grid[i]) + part * np.log(grid[i + 1] / grid[i])))


def held_out(fitted: Fit, points: Sequence[Point], keep_rates: Sequence[float]) -> dict[str, Any]:
    """The law's prediction against losses it was not fitted to, all of one budget.

    Beside it what simpler rules would have said: the keep-rate that was best at the greatest budget of the fit, and for
    the losses a straight line in logarithms through the two greatest.
    """
    tokens = {point.tokens for point in points}
    if len(tokens) != 1:
        raise ArgumentError(f"held-out losses at {sorted(tokens)} tokens", "hold one budget out")
    budget, keep = tokens.pop(), sorted({point.keep for point in points})
    law, rows = fitted.law.loss(keep, budget), []
    low, high = fitted.band(keep, budget, LEVEL, one_run=True)
    for i, k in enumerate(keep):
        losses = [point.loss for point in points if point.keep == k]
        error, line = float(law[i] - np.mean(losses)), _line(fitted.points, k, budget)
        rows.append({
            "keep_rate": float(keep_rates[k - 1]), "predicted": float(law[i]), "low": float(low[i]),
            "high": float(high[i]), "measured": float(np.mean(losses)), "error": error,
            "relative_error": error / float(np.mean(losses)), "seeds": len(losses),
            "by_a_line": line, "error_of_line": line - float(np.mean(losses)),
            "seeds_inside": int(np.sum((low[i] <= losses) & (losses <= high[i]))),
        })  # fmt: skip
    last = max(point.tokens for point in fitted.points)
    means = {k: np.mean([p.loss for p in fitted.points if (p.keep, p.tokens) == (k, last)] or [np.inf]) for k in keep}
    return {
        "tokens": budget,
        "fitted_up_to": last,
        "keep_rates": rows,
        "root_mean_square_error": float(np.sqrt(np.mean([row["error"] ** 2 for row in rows]))),
        "root_mean_square_error_of_line": float(np.sqrt(np.mean([row["error_of_line"] ** 2 for row in rows]))),
        "best_predicted": min(rows, key=lambda row: row["predicted"])["keep_rate"],
        "best_measured": min(rows, key=lambda row: row["measured"])["keep_rate"],
        "best_before": float(keep_rates[min(means, key=lambda k: means[k]) - 1]),
    }


def _line(points: Sequence[Point], keep: int, tokens: int) -> float:
    """The loss at `tokens` on a straight line in logarithms through the means of a pool's two greatest budgets."""
    own = sorted({point.tokens for point in points if point.keep == keep})[-2:]
    means = [np.mean([p.loss for p in points if (p.keep, p.tokens) == (keep, n)]) for n in own]
    if len(own) < 2:
        return float(means[-1])
    slope = np.log(means[1] / means[0]) / np.log(own[1] / own[0])
    return float(means[1] * (tokens / own[1]) ** slope)


class Shares(NamedTuple):
    """The share of phase 2 with the least loss.

    Attributes:
        share: the lowest point of the parabola within what was measured. low, high: its interval.
        at_end: share of the draws whose lowest point is the least or the greatest measured share.
        curve: the parabola's coefficients, the highest power first.
    """

    share: float
    low: float
    high: float
    at_end: float
    curve: list[float]


def best_share(shares: Sequence[float], losses: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Shares:
    """A parabola through losses by share of phase 2, and its lowest point.

    Raises PhialError where there are fewer than 3 different shares, or not one loss more than that.
    """
    x, y = np.asarray(shares, np.float64), np.asarray(losses, np.float64)
    if len(set(x.tolist())) < 3 or len(x) < 4:
        raise PhialError(f"{len(x)} losses at {len(set(x.tolist()))} shares of phase 2", "measure 3 shares, and seeds")
    powers = np.vander(x, 3)
    curve, *_ = np.linalg.lstsq(powers, y, rcond=None)
    degrees = len(x) - 3
    noise = np.sqrt(np.sum((y - powers @ curve) ** 2) / degrees)
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(np.linalg.inv(powers.T @ powers))
    turns = rng.normal(size=(draws, 3))
    scale = noise * np.sqrt(degrees / rng.chisquare(degrees, (draws, 1)))
    grid = np.linspace(x.min(), x.max(), 401)
    lowest = grid[(np.vander(grid, 3) @ (curve + turns @ root.T * scale).T).argmin(axis=0)]
    low, high = np.quantile(lowest, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = float(np.mean((lowest == grid[0]) | (lowest == grid[-1])))
    at = float(grid[(np.vander(grid, 3) @ curve).argmin()])
    return Shares(at, float(low), float(high), ends, curve.tolist())
