"""Prompt lookup: drafts copied from where the text, prompt or answer, has said the last tokens before.

Summaries, edits and quotations repeat what they were given, and loops repeat themselves. The drafter follows the
latest earlier occurrence of the longest n-gram the text ends with (Saxena, 2023, prompt lookup decoding) for as long
as the text agrees with it. How long it has agreed says how far to trust it: the chance that the next token agrees too
is learned by that length, from every token, drafted or not. That costs microseconds, no pass over the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2, 1)  # n-grams that are looked up, longest first
LONGEST = 16  # agreements of this length and more count as one
MEMORY = 0.95  # how much a trial's weight shrinks with the next one of its length
# Share of tokens that agreed after n agreements, greedy answers of SmolLM2-135M (docs/LOG.md, 2026-11-25); n = 1, 2, …
PRIOR = (0.2, 0.45, 0.6, 0.7, 0.75, 0.8, 0.83, 0.86, 0.87, 0.88, 0.89, 0.9, 0.91, 0.92, 0.93, 0.95)
PRIOR_TRIALS = 6.0


class Lookup:
    """The text so far, its n-grams, and a pointer to the place it is thought to repeat. A Drafter (speculation.py).

    Attributes:
        seconds: what drafting a token costs; nothing worth counting.
    """

    seconds = 0.0

    def __init__(self, sizes: Sequence[int] = SIZES, most: int = LONGEST) -> None:
        """sizes: of the n-grams that are looked up, longest first. most: drafts at a time."""
        self._sizes, self._most = sizes, most
        self._text: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in sizes]  # n-gram → position after its latest end
        self._next: int | None = None  # the position the text seems to go on from
        self._agreed = 0  # how many tokens before it are those the text ends with, up to LONGEST
        self._hits = [rate * PRIOR_TRIALS for rate in PRIOR]
        self._trials = [PRIOR_TRIALS] * LONGEST

    def begin(self, tokens: Sequence[int]) -> None:
        """Start from this text; the chances learned stay."""
        *self._text, last = tokens
        self._after = [
            dict(zip(zip(*(self._text[i:] for i in range(size)), strict=False), range(size, len(tokens)), strict=False))
            for size in self._sizes
        ]
        self._next = None
        self.extend(last)

    def extend(self, token: int) -> None:
        """The text has grown by this token: learn from it, follow on or look for another place."""
        found = self._next
        if found is not None:
            right = self._text[found] == token
            self._learn(right)
            self._next = found + 1 if right else None
            self._agreed = min(self._agreed + 1, LONGEST)
        text, search = self._text, self._next is None
        text.append(token)
        end = len(text)
        for size, after in zip(self._sizes, self._after, strict=True):
            if end >= size:
                gram = tuple(text[end - size :])
                if search and gram in after:
                    self._follow(after[gram])
                    search = False
                after[gram] = end

    def chances(self, most: int) -> list[float]:
        """The chance of each of the next tokens to be as drafted, if those before it are; at most `most` of them."""
        if self._next is None:
            return []
        lengths = (min(self._agreed + i, LONGEST) - 1 for i in range(min(most, self._most)))
        return [self._hits[n] / self._trials[n] for n in lengths]

    def draft(self, n: int) -> list[int]:
        """The next n tokens if the text goes on as it did there; past its end, as it does here (a loop)."""
        if self._next is None:
            return []
        drafts = self._text[self._next : self._next + n]
        while len(drafts) < n:
            drafts += drafts[: n - len(drafts)]
        return drafts

    def _follow(self, position: int) -> None:
        text, end, agreed = self._text, len(self._text), 1
        while agreed < min(LONGEST, position) and text[position - 1 - agreed] == text[end - 1 - agreed]:
            agreed += 1
        self._next, self._agreed = position, agreed

    def _learn(self, right: bool) -> None:
        n = self._agreed - 1
        self._hits[n] = self._hits[n] * MEMORY + right
        self._trials[n] = self._trials[n] * MEMORY + 1
