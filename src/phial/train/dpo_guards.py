"""What goes wrong in preference tuning while its loss looks well, watched over the last pairs; with examples.

    collapse     the chosen answers themselves become unlikely: log pi - log ref of a chosen token falls, on average,
                 below -collapse nats. Some fall is usual, as the margin counts and not the answer (arXiv 2402.13228).
    length       the answers with the higher reward are longer, or shorter, than both the chosen ones and a toss between
                 the two sides would be, by the factor `length`: length has become what is rewarded.
    repetition   they repeat themselves more than both, by `repetition`: the share of an answer's runs of four tokens
                 that it has had before.

    samples      what the model writes, the likeliest token every time, after the first held-out prompts: where runs of
                 four tokens repeat by `sampled` more than they did before training, it has begun to loop.

A window has the last `window` pairs at least; until there are as many, the first three say nothing. The last one looks
when held-out pairs are measured. A run that goes on remembers its earlier steps; one that a guard has stopped at its
last step stays stopped.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.errors import PhialError
from phial.train.metrics import METRICS, Row, read_metrics
from phial.train.preference import Seen

_SHOWN = 3  # examples


class GuardConfig(BaseModel):
    """How much is too much. A guard that is 0 is off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["stop", "warn", "off"] = "stop"
    window: int = Field(64, gt=0, description="pairs that are looked at together")
    collapse: float = Field(0.5, ge=0, description="nats a token")
    length: float = Field(1.2, ge=0, description="times as long, or as short")
    repetition: float = Field(0.1, ge=0, description="of the runs of four tokens, more than otherwise")
    sampled: float = Field(0.3, ge=0, description="the same, of what the model writes")
    samples: int = Field(4, gt=0, description="held-out prompts that it is given")
    sample_tokens: int = Field(32, gt=0, description="that it writes at most; each costs a pass over all samples")


SAMPLED = "validation/repetition/sampled"


class Example(NamedTuple):
    """A pair of the window: its number, log-ratios a token and rewards of both sides."""

    pair: int
    ratio: tuple[float, float]
    rewards: tuple[float, float]


class Guards:
    """Looks at each step's row, and keeps the pairs that its process has seen, for examples.

    Args:
        describe: a pair's text, given its number and whether the chosen answer is meant.
        folder: of the run, whose metrics say what was before it was resumed.
        warn: is told what a guard found where the action is "warn", once for each guard.

    Attributes:
        samples: what the model wrote when last asked, and how much of each is repeated.
        before: the mean of that before training; None where nothing was sampled.
    """

    def __init__(
        self,
        config: GuardConfig,
        describe: Callable[[int, bool], str],
        folder: Path,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self.config, self.describe, self.folder, self.warn = config, describe, folder, warn
        self._rows: deque[Row] = deque()
        self._last = 0
        self._examples: deque[Example] = deque(maxlen=config.window)
        self._warned: set[str] = set()
        self.samples: list[tuple[str, float]] = []
        self.before: float | None = None

    def see(self, seen: Seen) -> None:
        """Keep a micro-batch's pairs."""
        if self.config.action != "off":
            for pair, ratio, rewards in zip(
                seen.pairs.tolist(), seen.ratio.tolist(), seen.rewards.tolist(), strict=True
            ):
                self._examples.append(Example(pair, tuple(ratio), tuple(rewards)))

    def check(self, row: Row) -> None:
        """Take a step's row. Raises PhialError, with examples, for what a guard finds where the action is "stop"."""
        if not self._last:
            self._remember(row["step"])
        self._add(row)
        if self.config.action == "off":
            return
        full = sum(r["count"] for r in self._rows) >= self.config.window
        for guard in (self._samples, *((self._collapse, self._length, self._repetition) if full else ())):
            found = guard()
            if found and self.config.action == "stop":
                raise PhialError(f"step {row['step']}: {found}", _HINT)
            if found and guard.__name__ not in self._warned:
                self._warned.add(guard.__name__)
                self.warn(f"warning: step {row['step']}: {found}")

    def finish(self) -> None:
        """At the end of a run. Raises PhialError as check() for the last step, where an earlier process did it."""
        rows = read_metrics(self.folder / METRICS)
        if rows and not self._last:
            self.check(rows[-1])

    def _remember(self, step: int) -> None:
        """The steps before this one, which an earlier process did."""
        for row in read_metrics(self.folder / METRICS):
            if row["step"] < step:
                self._add(row)

    def _add(self, row: Row) -> None:
        self._last = row["step"]
        self._rows.append(row)
        while sum(r["count"] for r in self._rows) - self._rows[0]["count"] >= self.config.window:
            self._rows.popleft()

    def _mean(self, name: str) -> float:
        """Over the pairs of the window."""
        return float(sum(r[name] * r["count"] for r in self._rows) / sum(r["count"] for r in self._rows))

    def _collapse(self) -> str:
        fall = -self._mean("ratio/chosen")
        if not self.config.collapse or fall <= self.config.collapse:
            return ""
        worst = sorted(self._examples, key=lambda example: example.ratio[0])
        texts = [f"{e.ratio[0]:+.2f} nats a token: {self.describe(e.pair, True)}" for e in worst]
        return f"chosen answers collapse: {fall:.2f} nats a token less likely than they were{_listed(texts)}"

    def _length(self) -> str:
        preferred, chosen, toss = self._trait("length")
        factor = self.config.length
        if not factor or min(chosen, toss) / factor <= preferred <= max(chosen, toss) * factor:
            return ""
        return (
            f"rewards follow length: the answers they prefer have {preferred:.0f} tokens, the chosen ones "
            f"{chosen:.0f}, a toss {toss:.0f}{_listed(self._misjudged())}"
        )

    def _repetition(self) -> str:
        preferred, chosen, toss = self._trait("repetition")
        if not self.config.repetition or preferred <= max(chosen, toss) + self.config.repetition:
            return ""
        return (
            f"rewards follow repetition: {preferred:.0%} of the answers they prefer is repeated, {chosen:.0%} of the "
            f"chosen ones, {toss:.0%} of both{_listed(self._misjudged())}"
        )

    def _samples(self) -> str:
        now = self._rows[-1].get(SAMPLED)
        if not self.config.sampled or now is None or self.before is None or now <= self.before + self.config.sampled:
            return ""
        texts = [f"{share:.0%}: {text}" for text, share in sorted(self.samples, key=lambda sample: -sample[1])]
        return f"the model repeats itself: {now:.0%} of what it writes, {self.before:.0%} before{_listed(texts)}"

    def _trait(self, name: str) -> tuple[float, float, float]:
        """Of the preferred answers, of the chosen ones, and of a toss between the two sides."""
        preferred, chosen, rejected = (self._mean(f"{name}/{kind}") for kind in ("preferred", "chosen", "rejected"))
        return preferred, chosen, (chosen + rejected) / 2

    def _misjudged(self) -> list[str]:
        """The rejected answers whose rewards are most above those of the chosen ones."""
        worst = sorted(self._examples, key=lambda example: example.rewards[0] - example.rewards[1])
        wrong = [example for example in worst if example.rewards[0] < example.rewards[1]]
        return [f"margin {e.rewards[0] - e.rewards[1]:+.2f}: {self.describe(e.pair, False)}" for e in wrong]


def _listed(texts: Sequence[str]) -> str:
    return "".join(f"\n  {text}" for text in texts[:_SHOWN])


_HINT = (
    'lower optimizer.lr, raise beta or sft_weight, mend the pairs; the state is saved: guards.action = "warn" goes on'
)
