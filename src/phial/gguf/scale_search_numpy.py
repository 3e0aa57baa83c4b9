"""The search for block scales in numpy: the definition that the native one must match.

For every group of values it minimises the weighted squared error sum_j w_j (x_j - code_j * step - low)^2:

1. Trials. Codes are rounded under each of the plan's trial steps, then step and low are refitted to those codes by
   weighted least squares; the best fit wins.
2. K blocks. The groups' steps and lows become small integers times the block's d and m; the plan's moves of these
   integers are tried, d and m refitted to the codes of the whole block, several times over.
3. Codes are rounded last, under the scales as they are stored.

Sums are taken over residuals, not over values: at 8 bits the difference of two large sums would be mostly rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.gguf.blocks import half, store_codes
from phial.gguf.formats import BlockFormat, Codes

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]

SMALLEST_STEP = np.float32(2.0**-24)  # float16's smallest
_TINY = np.float32(1e-30)  # steps below have no inverse
_SINGULAR = np.float32(1e-5)  # below, the codes are as good as equal


@dataclass(frozen=True)
class Plan:
    """What is tried for one type.

    trials: (n, 2). Symmetric types: the value of largest magnitude is mapped onto trials[:, 0]. Affine types: the
        smallest and the largest value are mapped to trials[:, 0] below code 0 and trials[:, 1] above the last code
        (negative: inside).
    moves: (n, 2) of a K group's scale and minimum, tried `rounds` times.
    """

    trials: Floats
    moves: Codes = field(default_factory=lambda: np.empty((0, 2), np.int32))
    rounds: int = 0


class Fit(NamedTuple):
    """value = code * step + low, each (blocks, groups), and the weighted squared error it leaves."""

    step: Floats
    low: Floats
    error: Floats

    def or_better(self, other: Fit) -> Fit:
        """Group by group whichever leaves the smaller error; this one where they are equal."""
        better = other.error < self.error
        return Fit(*(np.where(better, theirs, ours) for ours, theirs in zip(self, other, strict=True)))


class Sums(NamedTuple):
    """Weighted sums over the residuals r and codes q of a group: all that a least-squares step needs."""

    rr: Floats
    rq: Floats
    qq: Floats
    r: Floats
    q: Floats
    one: Floats

    def error(self, step: Floats, low: Floats) -> Floats:
        """The error left after step and low have changed by these amounts."""
        by_step = step * (self.qq * step - 2 * self.rq)
        by_low = low * (self.one * low - 2 * self.r)
        error: Floats = self.rr + by_step + by_low + 2 * self.q * step * low
        return error

    def total(self) -> Sums:
        """The sums over all groups of a block."""
        return Sums(*(sums.sum(axis=1, keepdims=True) for sums in self))

    def solve(self) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """The changes of step and low that minimise the error, and where there are such: not where codes are equal."""
        determinant = self.qq * self.one - self.q * self.q
        regular = determinant > _SINGULAR * self.qq * self.one
        over = np.where(regular, np.float32(1) / np.where(regular, determinant, 1), 0)
        step = (self.rq * self.one - self.r * self.q) * over
        return regular, step, (self.r * self.qq - self.rq * self.q) * over

    def solve_step(self, low: Floats | float = 0) -> Floats:
        """The change of step that minimises the error where low changes by a given amount."""
        divisor: Floats = np.where(self.qq > 0, self.qq, np.float32(1))
        step: Floats = np.divide(self.rq - self.q * low, divisor)
        return step


def inverse(step: Floats) -> Floats:
    """1 / step, 0 where the step is as good as 0."""
    usable = np.abs(step) >= _TINY
    return np.where(usable, np.float32(1) / np.where(usable, step, 1), 0)


def stored(x: Floats) -> Floats:
    """x as float16 keeps it. ArgumentError where it is too large."""
    return half(x).astype(np.float32)


def stored_step(x: Floats) -> Floats:
    """As `stored`, but no step is rounded to zero: at the bottom of float16 a coarse step beats none."""
    return np.where((x != 0) & (np.abs(x) < SMALLEST_STEP), np.copysign(SMALLEST_STEP, x), stored(x))


class Groups:
    """Values and their weights, both (blocks, groups, values per group)."""

    def __init__(self, form: BlockFormat, x: Floats, w: Floats) -> None:
        self.x, self.w = x, w
        self.low_code, self.high_code = form.code_range
        if form.low[0] == 8:  # Q8_0 by convention leaves -128 out
            self.low_code = -self.high_code
        self.is_affine = form.is_affine
        self.plain = (0, 0) if form.is_affine else (self.low_code, 0)  # the trial that fills the range of codes
        self.has_ceiling = form.is_affine and form.scales is not None  # K blocks only subtract their minimums

    def codes(self, step: Floats, low: Floats) -> Floats:
        q: Floats = np.rint((self.x - low[..., None]) * inverse(step)[..., None])
        return q.clip(self.low_code, self.high_code)

    def residuals(self, q: Floats, step: Floats, low: Floats) -> Floats:
        return self.x - low[..., None] - q * step[..., None]

    def error(self, step: Floats, low: Floats) -> Floats:
        r = self.residuals(self.codes(step, low), step, low)
        error: Floats = (self.w * r * r).sum(axis=-1)
        return error

    def sums(self, step: Floats, low: Floats) -> Sums:
        q = self.codes(step, low)
        r = self.residuals(q, step, low)
        wr, wq = self.w * r, self.w * q
        terms = (wr * r, wr * q, wq * q, wr, wq, self.w)
        return Sums(*(term.sum(axis=-1) for term in terms))

    def refit(self, step: Floats, low: Floats) -> Fit:
        """Round codes, then fit step and low to them. The error is that of these codes; rounding anew only helps."""
        sums = self.sums(step, low)
        if not self.is_affine:
            change = sums.solve_step()
            return Fit(step + change, low, sums.error(change, np.zeros_like(low)))
        regular, by, low_by = sums.solve()
        low_by = np.where(regular, low_by, sums.r / sums.one)
        if self.has_ceiling:
            capped = low + low_by > 0
            low_by = np.where(capped, -low, low_by)
            by = np.where(capped, sums.solve_step(low_by), by)
        by = np.maximum(by, -step)
        return Fit(step + by, low + low_by, sums.error(by, low_by))

    def trial(self, below: float, above: float) -> tuple[Floats, Floats]:
        """The step and low that a trial of the plan starts from."""
        low, high = self.x.min(axis=-1), self.x.max(axis=-1)
        if not self.is_affine:
            step = np.where(-low > high, low, high) * np.float32(1 / below)
            return step, np.zeros_like(step)
        if self.has_ceiling:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        step = (high - low) * np.float32(1 / (self.high_code + below + above))
        low = low + np.float32(below) * step
        return step, np.minimum(low, 0) if self.has_ceiling else low

    def search(self, plan: Plan) -> Fit:
        """The best fit of every group on its own."""
        trials = [(float(below), float(above)) for below, above in plan.trials]
        best = self.refit(*self.trial(*trials[0]))
        for trial in trials[1:]:
            best = best.or_better(self.refit(*self.trial(*trial)))
        return best


def _encode_groups(groups: Groups, fit: Fit, blocks: Blocks) -> tuple[Codes, Floats]:
    """Blocks of one group: a step fitted under the stored low, or plain rounding where that is better."""
    low = stored(fit.low)
    step = stored_step(fit.step + groups.sums(fit.step, low).solve_step())
    best = Fit(step, low, groups.error(step, low))
    step, low = groups.trial(*groups.plain)
    step, low = stored_step(step), stored(low)
    best = best.or_better(Fit(step, low, groups.error(step, low)))
    blocks["d"] = best.step[:, 0]
    if groups.is_affine:
        blocks["m"] = best.low[:, 0]
    return groups.codes(best.step, best.low).astype(np.int32), best.error


class SuperBlock:
    """A K block's scales: value = code * (d * scale) - m * minimum, scale and minimum integers of each group."""

    def __init__(self, form: BlockFormat, groups: Groups, fit: Fit) -> None:
        assert form.scales is not None
        self.groups = groups
        largest = form.scales.largest
        # The signed scales' range has one more value below: the largest is mapped onto it.
        self.range = (0, largest) if form.is_affine else (-largest - 1, largest)
        at = np.abs(fit.step).argmax(axis=1)[:, None]
        peak = np.take_along_axis(fit.step, at, axis=1)
        self.d = stored_step(peak * np.float32(1 / (largest if form.is_affine else -largest - 1)))
        self.m = stored_step((-fit.low).max(axis=1, keepdims=True) * np.float32(1 / largest))
        self.scale = self.clip(np.rint(fit.step * inverse(self.d)))
        self.minimum = self.clip(np.rint(-fit.low * inverse(self.m)))
        self.error = groups.error(self.step, self.low)

    def clip(self, integers: Floats) -> Floats:
        return np.clip(integers, *self.range)

    @property
    def step(self) -> Floats:
        return self.d * self.scale

    @property
    def low(self) -> Floats:
        return -(self.m * self.minimum)

    def move(self, moves: Codes) -> None:
        """Every group takes the best of the moves from where it stands."""
        start, best = Fit(self.scale, self.minimum, self.error), Fit(self.scale, self.minimum, self.error)
        for by, minimum_by in moves:
            scale = self.clip(start.step + np.float32(by))
            minimum = self.clip(start.low + np.float32(minimum_by))
            error = self.groups.error(self.d * scale, -(self.m * minimum))
            best = best.or_better(Fit(scale, minimum, error))
        self.scale, self.minimum, self.error = best

    def fit(self) -> None:
        """d and m by least squares over the whole block, kept where they help once stored."""
        each = self.groups.sums(self.step, self.low)
        scale, minimum = self.scale, -self.minimum
        whole = Sums(
            rr=each.rr,
            rq=scale * each.rq,
            qq=scale * scale * each.qq,
            r=minimum * each.r,
            q=scale * minimum * each.q,
            one=minimum * minimum * each.one,
        ).total()
        regular, by, m_by = whole.solve()
        by = np.where(regular, by, whole.solve_step())  # no minimum in the block
        d, m = stored_step(self.d + by), stored(np.maximum(self.m + m_by, 0))
        error = self.groups.error(d * scale, m * minimum)
        better = error.sum(axis=1, keepdims=True) < self.error.sum(axis=1, keepdims=True)
        self.d, self.m = np.where(better, d, self.d), np.where(better, m, self.m)
        self.error = np.where(better, error, self.error)


def _encode_super_blocks(
    form: BlockFormat, groups: Groups, fit: Fit, plan: Plan, blocks: Blocks
) -> tuple[Codes, Floats]:
    assert form.scales is not None
    block = SuperBlock(form, groups, fit)
    for _ in range(plan.rounds):
        block.move(plan.moves)
        block.fit()
    blocks["d"] = block.d[:, 0]
    if form.is_affine:
        blocks["m"] = block.m[:, 0]
    minimum = block.minimum.astype(np.int32) if form.is_affine else None
    blocks["scales"] = form.scales.pack(block.scale.astype(np.int32), minimum)
    return groups.codes(block.step, block.low).astype(np.int32), block.error


def encode_blocks(form: BlockFormat, x: Floats, w: Floats, plan: Plan, blocks: Blocks) -> float:
    """Fill blocks (n,) with the best encoding found of x, weighted by w, both (n, elements).

    Returns the weighted sum of squared errors that it leaves.
    """
    shape = (len(blocks), form.groups, -1)
    groups = Groups(form, x.reshape(shape), w.reshape(shape))
    with np.errstate(over="ignore", invalid="ignore"):  # a scale that comes out infinite or NaN is refused when stored
        fit = groups.search(plan)
        if form.scales is None:
            codes, error = _encode_groups(groups, fit, blocks)
        else:
            codes, error = _encode_super_blocks(form, groups, fit, plan, blocks)
    store_codes(form, blocks, codes.reshape(len(blocks), form.elements))
    return float(error.sum(dtype=np.float64))
