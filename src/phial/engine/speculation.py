"""Several tokens per pass over the weights: evaluate a guess along with the token, and keep its logits for later.

Nothing else changes, so nothing can: the caller still evaluates one token after the other, draws each from its own
logits with its own random numbers, and sees the same bits (the core gives a row the same bits in any company). Where
the token it then evaluates is the one guessed, its logits are there already; where not, the guess is forgotten. For
guesses that are single tokens this accepts as often as the schemes that draw twice (Leviathan et al., 2023).

How much to guess is decided for every pass, from what passes of n tokens have cost on this machine and how often such
guesses were right. Where no guess pays, none is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phial.engine.lookup import Lookup
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.engine.session import Session

MOST_DRAFTS = 15
MARGIN = 1.03  # a guess must promise this much more speed: figures are noisy and no guess costs nothing
FASTER, SLOWER = 0.5, 0.1  # how far one measurement moves a cost down or up: what disturbs a pass makes it slower
TRUSTED = 2  # measurements of which the smallest counts: one alone may have been disturbed
OPTIMISM = 0.1  # what a token more is thought to cost, of a plain pass, beyond what was measured: so it will be
FORGET = 1000  # passes after which a cost that was not seen again is measured anew

Speculate: TypeAlias = Literal["auto", "off"] | int
Clock: TypeAlias = Callable[[], float]


class Drafter(Protocol):
    """Guesses how a text goes on."""

    @property
    def seconds(self) -> float:
        """What one draft costs."""
        ...

    def begin(self, tokens: Sequence[int]) -> None:
        """The text is this now."""
        ...

    def extend(self, token: int) -> None:
        """The text has grown by this token."""
        ...

    def chances(self, most: int) -> Sequence[float]:
        """Of each of the next drafts, at most `most`: the chance to be right if those before it are."""
        ...

    def draft(self, n: int) -> Sequence[int]:
        """At most n drafts."""
        ...


class PassCosts:
    """What a pass of n tokens costs, in plain passes of one token; learned from the passes themselves.

    Attributes:
        single: seconds of a plain pass, 0 before the first.
    """

    def __init__(self) -> None:
        self.single = 0.0
        self._known: dict[int, _Cost] = {}
        self._passes = 0
        self._relative: list[float] = []

    def observe(self, n: int, seconds: float) -> None:
        """A pass of n tokens took this long."""
        self._passes += 1
        if n == 1:
            self.single = _towards(self.single, seconds)
        elif self.single:
            self._known.setdefault(n, _Cost()).observe(seconds / self.single, self._passes)
        if n > 1 or self._passes % 64 == 0:
            self._relative = []

    def relative(self) -> list[float]:
        """Costs of passes of 1, 2, … tokens; where a number was not measured lately, what the others suggest.

        A larger pass never costs less than a smaller one: that mends a disturbed measurement.
        """
        if not self._relative:
            self._relative = self._estimate(MOST_DRAFTS + 1)
        return self._relative

    def _estimate(self, most: int) -> list[float]:
        known = {1: 1.0} | {n: c.value for n, c in self._known.items() if c.seen > self._passes - FORGET}
        for n in sorted(known):  # what follows a known number is thought to be cheap, and so it is tried
            known.setdefault(n + 1, known[n] + OPTIMISM)
        known.setdefault(most + 1, max(known.values()) + OPTIMISM * most)
        numbers = sorted(known)
        costs = [known[n] for n in numbers]
        for i in range(len(costs) - 2, 0, -1):
            costs[i] = min(costs[i], costs[i + 1])
        return [max(1.0, cost) for cost in np.interp(range(1, most + 1), numbers, costs).tolist()]


@dataclass
class _Cost:
    """A running estimate that one disturbed measurement moves little, and when it was measured last."""

    value: float = 0.0
    seen: int = 0
    times: int = 0

    def observe(self, cost: float, now: int) -> None:
        if self.times < TRUSTED:  # what disturbs a pass makes it slower
            self.value = min(self.value, cost) if self.times else cost
        else:
            self.value = _towards(self.value, cost)
        self.seen, self.times = now, self.times + 1


@dataclass
class Statistics:
    """Counts of one generation, from its second token on.

    Attributes:
        passes: over the weights.
        drafted: tokens guessed and evaluated in them.
        accepted: guesses that were the token drawn.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0


class Speculation:
    """Session.eval for one token after the other, with guesses.

    Attributes:
        statistics: what was done so far.
    """

    def __init__(
        self,
        session: Session,
        drafter: Drafter,
        costs: PassCosts,
        fixed: int | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """fixed: always guess this many tokens, where there is a guess at all; None: as many as pay."""
        self.statistics = Statistics()
        self._session, self._drafter, self._costs, self._fixed, self._clock = session, drafter, costs, fixed, clock
        self._followed = 0  # length of the text the drafter has seen

    def eval(self, tokens: Sequence[int], *, all_logits: bool = False, most: int = MOST_DRAFTS) -> NDArray[np.float32]:
        """Session.eval(tokens, all_logits=all_logits); at most `most` tokens behind them are guessed."""
        session = self._session
        if len(tokens) != 1:
            return session.eval(tokens, all_logits=all_logits)
        if session.foresees(tokens[0]):
            self.statistics.accepted += 1
            self._follow(tokens[0])
            return session.eval(tokens, all_logits=all_logits)
        self._follow(tokens[0])
        n = self._how_many(min(most, MOST_DRAFTS))
        drafts = self._drafter.draft(n) if n else ()
        started = self._clock()
        logits = session.eval(tokens, all_logits=all_logits, drafts=drafts)
        drafted = session.n_foreseen
        self._costs.observe(1 + drafted, self._clock() - started)
        self.statistics.passes += 1
        self.statistics.drafted += drafted
        return logits

    def _follow(self, token: int) -> None:
        """Tell the drafter what it has not seen: this token, or all where the caller went another way."""
        if self._followed != self._session.n_past:
            self._drafter.begin([*self._session.tokens, token])
        else:
            self._drafter.extend(token)
        self._followed = self._session.n_past + 1

    def _how_many(self, most: int) -> int:
        """How many drafts promise the most tokens per second."""
        if self._fixed is not None:
            return min(self._fixed, most)
        chances = self._drafter.chances(most)
        if not self._costs.single or not chances:
            return 0
        each = self._drafter.seconds / self._costs.single
        best, best_speed, tokens, all_right = 0, MARGIN, 1.0, 1.0
        costs = self._costs.relative()
        for n, chance in enumerate(chances, 1):
            all_right *= chance
            tokens += all_right
            speed = tokens / (costs[n] + each * n)
            if speed > best_speed:
                best, best_speed = n, speed
        return best


def speculation_for(session: Session, speculate: Speculate, drafter: Drafter | None) -> Speculation | None:
    """What session.generate was asked for; None for no speculation.

    Raises:
        ArgumentError: it is none of "auto", "off" and 1 to MOST_DRAFTS, or cannot be without effect on the text.
    """
    whole = isinstance(speculate, int) and not isinstance(speculate, bool)
    if speculate not in ("auto", "off") and not (whole and 1 <= int(speculate) <= MOST_DRAFTS):
        raise ArgumentError(
            f"speculate is {speculate!r}", f'use "auto", "off", or a number of drafts from 1 to {MOST_DRAFTS}'
        )
    if speculate == "off":
        return None
    if not session.engine.batch_invariant:
        if speculate == "auto" and drafter is None:
            return None
        raise ArgumentError(
            f"the {session.engine.backend_name} backend cannot speculate: its logits change with the batch",
            'use the native backend, or speculate="off"',
        )
    fixed = None if speculate == "auto" else int(speculate)
    return Speculation(session, drafter or Lookup(), session.engine.pass_costs, fixed)


def _towards(old: float, new: float) -> float:
    """A running estimate that one disturbed measurement moves little; the first is taken as it is."""
    return old + (FASTER if new < old else SLOWER) * (min(new, 2 * old) - old) if old else new
