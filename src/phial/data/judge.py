"""A language model as judge of two answers: asked in both orders, held to a JSON schema, its bias for a place measured.

A judge that prefers whatever stands first says so in half of its verdicts about any two answers. So each two answers
are shown twice, and an answer wins only where it wins in both orders; the share of verdicts for the first place is
reported with its interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from phial.data.asking import Ask, ask_of
from phial.data.checks import schema_problem
from phial.intervals import wilson
from phial.language_model import Reply

RUBRIC = (
    "You compare two answers to a conversation. The better one does what was asked, exactly in the form that was asked "
    "for, is correct, and is no longer than needed. Do not prefer an answer for its place or its length."
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["first", "second", "same"]}},
    "required": ["better"],
    "additionalProperties": False,
}
_TOKENS = 32  # enough for the schema's longest document


class Comparison(NamedTuple):
    """Answers `first` and `second`, by number, shown in this order; and the question that shows them."""

    first: int
    second: int
    ask: Ask


def comparisons(
    judge: str, conversation: Sequence[Mapping[str, str]], answers: Sequence[str], rubric: str
) -> list[Comparison]:
    """Every two different answers, in both orders."""
    places = [place for place, answer in enumerate(answers) if answer not in answers[:place]]
    return [
        Comparison(
            a,
            b,
            ask_of(
                judge,
                _messages(conversation, answers[a], answers[b], rubric),
                seed=0,
                max_tokens=_TOKENS,
                temperature=0.0,
                schema=SCHEMA,
            ),
        )
        for a, b in permutations(places, 2)
    ]


def _messages(conversation: Sequence[Mapping[str, str]], first: str, second: str, rubric: str) -> list[dict[str, str]]:
    """The judge's conversation. Texts stand in it as JSON, so that none can pretend to be another part of it."""
    shown = {"conversation": list(conversation), "first answer": first, "second answer": second}
    ask = (
        f'{json.dumps(shown, ensure_ascii=False)}\n\nWhich answer is better? {{"better": "first", "second" or "same"}}'
    )
    return [{"role": "system", "content": rubric}, {"role": "user", "content": ask}]


def verdict(reply: Reply) -> str:
    """first, second or same; "" for a reply that is none of these: an endpoint may ignore the schema."""
    try:
        value = json.loads(reply.text)
    except (ValueError, RecursionError):
        return ""
    return "" if schema_problem(value, SCHEMA, "verdict") else str(value["better"])


def scores(answers: Sequence[str], shown: Sequence[tuple[int, int, str]]) -> list[float] | None:
    """Of each answer the share of its comparisons that it won, half of those that nobody won; None without any.

    Args:
        shown: (first, second, verdict) of each comparison; those without a verdict count for nobody.
    """
    winners: dict[tuple[int, int], list[int | None]] = {}
    for first, second, said in shown:
        if said:
            winner = {"first": first, "second": second}.get(said)
            winners.setdefault((min(first, second), max(first, second)), []).append(winner)
    points: dict[int, list[float]] = {}
    for both, said_by_order in winners.items():
        agreed = said_by_order[0] if len(said_by_order) == 2 and len(set(said_by_order)) == 1 else None
        for answer in both:
            points.setdefault(answer, []).append(0.5 if agreed is None else float(answer == agreed))
    if not points:
        return None
    found = [points.get(answers.index(answer), []) for answer in answers]
    return [sum(parts) / len(parts) if parts else 0.5 for parts in found]


class Bias:
    """How a judge's verdicts depend on the order."""

    def __init__(self) -> None:
        self._first = self._second = self._same = self._unreadable = 0
        self._orders: dict[tuple[Any, int, int], int | None] = {}
        self._both = self._agreed = 0

    def add(self, prompt: int, first: int, second: int, said: str) -> None:
        """Count the verdict of a comparison of two of a prompt's answers."""
        if not said:
            self._unreadable += 1
            return
        self._first += said == "first"
        self._second += said == "second"
        self._same += said == "same"
        winner = {"first": first, "second": second}.get(said)
        key = (prompt, min(first, second), max(first, second))
        if key in self._orders:
            self._both += 1
            self._agreed += self._orders.pop(key) == winner
        else:
            self._orders[key] = winner

    def report(self) -> dict[str, Any]:
        """Counts; share of decided verdicts for the first place, with its interval; whether 1/2 lies outside of it."""
        decided = self._first + self._second
        low, high = wilson(self._first, decided)
        return {
            "comparisons": decided + self._same + self._unreadable,
            "unreadable": self._unreadable,
            "same": self._same,
            "first_place": round(self._first / decided, 4) if decided else None,
            "first_place_interval": [round(low, 4), round(high, 4)],
            "position_bias": decided > 0 and not low <= 0.5 <= high,
            "agreement_of_orders": round(self._agreed / self._both, 4) if self._both else None,
        }
