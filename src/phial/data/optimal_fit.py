"""Fitting the law of optimal_law.py to measured losses: robust least squares, and a bootstrap for what is not known.

Parameters may be one for all buckets or one for each; unless told, Akaike's criterion (with its correction for small
samples) decides for a and tau. A tau of documents that no training saw twice is in no measurement: it is not fitted,
its interval is the range that is thought possible, and predictions carry the whole of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from phial.data.optimal_law import Array, Exposure, Law, decayed, exposure, reducible
from phial.errors import PhialError

Name = Literal["a", "b", "tau", "d"]
NAMES: tuple[Name, ...] = ("a", "b", "tau", "d")
TAU = (0.25, 400.0)  # what a fit may find
TAU_UNSEEN = (1.0, 100.0)  # what is thought possible without a measurement; the paper's are 2 to 9
_B = (1e-4, 3.0)
_CHOICES: tuple[tuple[Name, ...], ...] = (
    ("b",), ("b", "tau"), ("a", "b"), ("a", "b", "tau"), ("b", "d"), ("b", "tau", "d"),
)  # fmt: skip


class Point(NamedTuple):
    """A measured loss.

    Attributes:
        keep: how many buckets the pool has. tokens: seen until then.
        run: which training; its losses at several counts of tokens err together.
    """

    keep: int
    tokens: int
    loss: float
    run: str


class Fit(NamedTuple):
    """A fitted law with what is not known about it.

    Attributes:
        law: the best parameters. separate: which of them each bucket has its own of.
        points: what was fitted. sigma: standard deviation of a training's loss.
        draws: laws that fit about as well, from the bootstrap.
        repeated: by bucket, whether any training saw it more than once; else its tau is unknown.
        aicc: of each choice of `separate` that was tried, joined by "+"; less is better.
    """

    law: Law
    separate: tuple[Name, ...]
    points: list[Point]
    sigma: float
    draws: list[Law]
    repeated: tuple[bool, ...]
    aicc: dict[str, float]

    def interval(self, name: Name, level: float = 0.9) -> Array:
        """(2, K): the ends of the interval of a parameter."""
        return _quantiles(np.array([getattr(draw, name) for draw in self.draws]), level)

    def losses(self, keep: ArrayLike, tokens: ArrayLike) -> Array:
        """(draws, P): what each draw predicts of the mean loss."""
        return np.array([draw.loss(keep, tokens) for draw in self.draws])

    def band(self, keep: ArrayLike, tokens: ArrayLike, level: float = 0.9, *, one_run: bool = False) -> Array:
        """(2, P): the ends of the interval of the mean loss, or, with `one_run`, of a single new training's."""
        losses = self.losses(keep, tokens)
        if one_run:
            losses = losses + np.random.default_rng(0).normal(0, self.sigma, losses.shape)
        return _quantiles(losses, level)


def _quantiles(values: Array, level: float) -> Array:
    return np.asarray(np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0))


def fit(
    points: Sequence[Point],
    unique: Sequence[float],
    *,
    separate: Sequence[Name] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Fit:
    """Fit the law to measured losses.

    Args:
        unique: tokens in each bucket, the best first.
        separate: the parameters that each bucket has its own of; None: b, and a or d, and tau, where they explain more.

    Raises PhialError where a bucket is in no pool of its own, or there are fewer losses than parameters.
    """
    sizes = np.asarray(unique, np.float64)
    if {point.keep for point in points} != set(range(1, len(sizes) + 1)):
        raise PhialError(
            f"losses of pools {sorted({p.keep for p in points})}, there are {len(sizes)} buckets", "measure every pool"
        )
    if separate is not None:
        best = _Problem(points, sizes, tuple(n for n in NAMES if n in separate))
        best.solve()
        aicc = {"+".join(best.separate): best.aicc}
    else:
        tried = [_Problem(points, sizes, choice) for choice in (_CHOICES if len(sizes) > 1 else _CHOICES[:1])]
        able = [problem for problem in tried if problem.freedom >= 1] or tried[:1]
        for problem in able:
            problem.solve()
        aicc = {"+".join(problem.separate): problem.aicc for problem in able}
        best = min(able, key=lambda problem: problem.aicc)
    law, sigma = best.law(best.best), best.noise()
    return Fit(
        law, best.separate, list(points), sigma, best.bootstrap(draws, seed), tuple(best.repeated.tolist()), aicc
    )


class _Problem:
    """Least squares over the numbers that a choice of separate parameters leaves free."""

    def __init__(self, points: Sequence[Point], unique: Array, separate: tuple[Name, ...]) -> None:
        self.points, self.unique, self.separate = points, unique, separate
        self.seen: Exposure = exposure(unique, [p.keep for p in points], [p.tokens for p in points])
        self.measured = np.array([p.loss for p in points])
        self.runs = np.unique([p.run for p in points], return_inverse=True)[1]
        self.repeated = np.asarray(((self.seen.passes > 1)[:, None] & (self.seen.weights > 0)).any(axis=0))
        self.spread = _spread(points)
        k = len(unique)
        self.groups = {name: np.arange(k) if name in separate else np.zeros(k, int) for name in NAMES}
        if not self.repeated.all():  # what nothing was repeated for has no number: group -1
            numbers = np.cumsum(self.repeated) - 1 if "tau" in separate else np.zeros(k, int)
            self.groups["tau"] = np.where(self.repeated, numbers, -1)
        counts = {name: int(self.groups[name].max()) + 1 for name in NAMES}
        ends = np.cumsum([0, *counts.values()])
        self.slices = {name: slice(int(ends[i]), int(ends[i + 1])) for i, name in enumerate(NAMES)}
        self.size = int(ends[-1])
        self.freedom = len(self.measured) - self.size
        low: dict[Name, float] = {"a": -60.0, "b": np.log(_B[0]), "tau": np.log(TAU[0]), "d": 0.0}
        least = float(self.measured.min())
        high: dict[Name, float] = {"a": 60.0, "b": np.log(_B[1]), "tau": np.log(TAU[1]), "d": 0.999 * least}
        self.bounds = [self._vector(low), self._vector(high)]
        self.best = np.zeros(self.size)

    def _vector(self, values: dict[Name, float]) -> Array:
        """One number for each parameter, the same in each of its groups."""
        widths = [self.slices[name].stop - self.slices[name].start for name in NAMES]
        return np.repeat([values[name] for name in NAMES], widths)

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected, of the best numbers; infinite where there are too few losses for it."""
        n, p = len(self.measured), self.size + 1  # the noise is a parameter, too
        if n - p - 1 <= 0:
            return float("inf")
        mean_square = max(float(np.mean(self.residuals() ** 2)), 1e-30)
        return n * float(np.log(mean_square)) + 2 * p + 2 * p * (p + 1) / (n - p - 1)

    def law(self, x: Array, unseen: float | None = None) -> Law:
        """The law of the free numbers; `unseen` stands for every tau that no training bears on."""
        a, b, d = (x[self.slices[n]][self.groups[n]] for n in ("a", "b", "d"))
        middle = float(np.sqrt(TAU_UNSEEN[0] * TAU_UNSEEN[1]))
        numbers = np.append(np.exp(x[self.slices["tau"]]), middle if unseen is None else unseen)  # group -1 is the last
        tau = numbers[self.groups["tau"]]
        return Law(self.unique, np.exp(a), -np.exp(b), tau, d)

    def residuals(self) -> Array:
        law = self.law(self.best)
        return np.asarray(self.measured - reducible(law, self.seen) - self.seen.weights @ law.d)

    def noise(self) -> float:
        """Standard deviation of one loss."""
        return float(np.sqrt(np.sum(self.residuals() ** 2) / max(self.freedom, 1)))

    def _value(self, x: Array, measured: Array) -> Array:
        law = self.law(x)
        return np.asarray((reducible(law, self.seen) + self.seen.weights @ law.d - measured) / self.spread)

    def _slopes(self, x: Array, _: Array) -> Array:
        """(P, size): derivatives of the residuals."""
        law, seen = self.law(x), self.seen
        left = decayed(law.tau, seen)
        above = reducible(law, seen)[:, None] * seen.weights
        growth = np.einsum("pe,pek->pk", seen.steps, left)
        before = np.arange(seen.steps.shape[1])
        slower = np.einsum("pe,e,pek->pk", seen.steps, before, left) * seen.weights / law.tau * np.log(2)
        by_bucket: dict[Name, Array] = {"a": above, "b": above * law.b * growth, "d": seen.weights}
        by_bucket["tau"] = above * law.b * slower
        found = np.zeros((len(above), self.size))
        for name in NAMES:
            for bucket, group in enumerate(self.groups[name]):
                if group >= 0:
                    found[:, self.slices[name].start + group] += by_bucket[name][:, bucket]
        return found / self.spread

    def _minimise(self, start: Array, measured: Array) -> Any:
        from scipy.optimize import least_squares

        inside = np.clip(start, self.bounds[0] + 1e-9, self.bounds[1] - 1e-9)
        return least_squares(
            self._value, inside, self._slopes, self.bounds, args=(measured,), loss="soft_l1", f_scale=3.0,
            x_scale="jac", ftol=1e-12, xtol=1e-10, gtol=1e-12, max_nfev=500,
        )  # fmt: skip

    def solve(self) -> None:
        """Find the best numbers from several starts. PhialError where there are more of them than losses."""
        if self.freedom < 1:
            raise PhialError(
                f"{len(self.measured)} losses for a law of {self.size} parameters",
                "more budgets, more seeds, or fewer keep-rates",
            )
        found = [self._minimise(start, self.measured) for start in self._starts()]
        self.best = min(found, key=lambda result: float(result.cost)).x

    def _starts(self) -> list[Array]:
        starts = []
        tokens = np.sum(self.seen.steps, axis=1)
        for share in (0.1, 0.7):
            d = share * self.measured.min()
            slope, above = np.polyfit(tokens, np.log(self.measured - d), 1)
            for tau in (2.0, 20.0):
                values: dict[Name, float] = {"a": above, "b": np.log(np.clip(-slope, *_B)), "tau": np.log(tau), "d": d}
                starts.append(self._vector(values))
        return starts

    def bootstrap(self, draws: int, seed: int) -> list[Law]:
        """Laws fitted to what the best one predicts with new errors, of the size that was seen.

        An error is one of the run, in all of its losses, and one of each loss. Their sizes are themselves estimates, so
        each draw scales them by Student's root of degrees over chi square.
        """
        rng = np.random.default_rng(seed)
        alone, by_run = _errors(self.points, self.noise())
        runs = len(set(self.runs.tolist()))
        degrees = max(self.freedom if not by_run else min(self.freedom, runs - len(self.unique)), 3)
        middle = self.measured - self.residuals()
        laws = []
        for _ in range(draws):
            errors = rng.normal(0, alone, len(middle)) + rng.normal(0, by_run, runs)[self.runs]
            errors *= np.sqrt(degrees / rng.chisquare(degrees))
            unseen = float(np.exp(rng.uniform(*np.log(TAU_UNSEEN))))
            laws.append(self.law(self._minimise(self.best, middle + errors).x, unseen))
        return laws


def _deviations(points: Sequence[Point]) -> tuple[Array, int]:
    """Each loss less the mean of equal trainings, and how many of these numbers are free."""
    cells = np.unique([(point.keep, point.tokens) for point in points], axis=0, return_inverse=True)[1].reshape(-1)
    losses = np.array([point.loss for point in points])
    counts = np.bincount(cells)
    return losses - (np.bincount(cells, losses) / counts)[cells], len(points) - len(counts)


def _spread(points: Sequence[Point]) -> float:
    """Standard deviation of the losses of equal trainings; a thousandth of the losses where there are none."""
    away, degrees = _deviations(points)
    typical = 1e-3 * float(np.mean([point.loss for point in points]))
    return max(float(np.sqrt(np.sum(away**2) / degrees)), 1e-2 * typical) if degrees else typical


def _errors(points: Sequence[Point], noise: float) -> tuple[float, float]:
    """Standard deviations of what is a loss's own and of what a run's losses share; `noise`: that of their sum.

    The shared part is the mean product of deviations of one run; without equal trainings it is taken to be half.
    """
    away, degrees = _deviations(points)
    runs = np.unique([point.run for point in points], return_inverse=True)[1]
    pairs = np.bincount(runs) * (np.bincount(runs) - 1)
    if not pairs.any():
        return noise, 0.0
    if not degrees:
        return noise / np.sqrt(2), noise / np.sqrt(2)
    products = np.bincount(runs, away) ** 2 - np.bincount(runs, away**2)
    shared = max(float(products.sum() / pairs.sum()) * len(points) / degrees, 0.0)
    total = max(noise**2, float(np.sum(away**2) / degrees))
    shared = min(shared, total)
    return float(np.sqrt(total - shared)), float(np.sqrt(shared))
