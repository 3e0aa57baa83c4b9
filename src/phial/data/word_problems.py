"""Small word problems with one right answer, from a grammar: synthetic text for models of a million parameters.

Six kinds: adding, taking away, both in a row, equal groups, who has more, and who is first in an order. Every answer
shows its step before it says the result. Names, things and numbers are drawn; no two problems are the same, and the
held-out ones are in no training text. A problem is a document of its own: five in one taught a small model to mix up
who has what (docs/LOG.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from phial.errors import ArgumentError

LICENCE = "CC0-1.0"
SMALLEST, LARGEST = 2, 20  # of a number drawn; what is left is 2 or more, so that things stay in the plural
_NAMES = "Ada Ben Cora Dan Eva Finn Gina Hugo Iris Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tina Will".split()
_THINGS = "apples books coins cards eggs shells stones pencils marbles stamps plums keys cups balls nuts bells".split()
_BOXES = "boxes bags baskets jars drawers".split()
_MORE = (("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"), ("stronger", "strongest"))
_MOST = 100_000  # so that drawing without repeats ends soon


class Problem(NamedTuple):
    """A question, and the answer that is right."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a model continues with the answer."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}"


def word_problems(count: int, held_out: int = 0, seed: int = 0) -> tuple[list[Problem], list[Problem]]:
    """`count` problems to train on and `held_out` others. Raises ArgumentError for more than there are."""
    if count < 1 or held_out < 0 or count + held_out > _MOST:
        raise ArgumentError(f"{count} + {held_out} word problems", f"there are at most {_MOST:,}")
    dice, made = random.Random(seed), dict[str, Problem]()
    while len(made) < count + held_out:
        problem = dice.choice(_KINDS)(dice)
        made.setdefault(problem.question, problem)
    problems = list(made.values())
    return problems[held_out:], problems[:held_out]


def _adding(dice: random.Random) -> Problem:
    name, thing, a, b = *_who_and_what(dice), _number(dice), _number(dice)
    gets = dice.choice(("gets", "finds", "buys"))
    question = f"{name} has {a} {thing} and {gets} {b} more. How many {thing} does {name} have now?"
    return Problem(question, f"{a} + {b} = {a + b}. {name} has {a + b} {thing}.")


def _taking(dice: random.Random) -> Problem:
    name, thing, a = *_who_and_what(dice), dice.randint(4, LARGEST)
    b = dice.randint(SMALLEST, a - SMALLEST)
    loses = dice.choice(("loses", "gives away", "sells"))
    question = f"{name} has {a} {thing} and {loses} {b} of them. How many {thing} does {name} have left?"
    return Problem(question, f"{a} - {b} = {a - b}. {name} has {a - b} {thing} left.")


def _both(dice: random.Random) -> Problem:
    name, thing, a, b = *_who_and_what(dice), dice.randint(2, 10), dice.randint(2, 10)
    c = dice.randint(SMALLEST, a + b - SMALLEST)
    question = (
        f"{name} has {a} {thing}, finds {b} more and then loses {c}. How many {thing} does {name} have in the end?"
    )
    return Problem(question, f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}. {name} has {a + b - c} {thing}.")


def _groups(dice: random.Random) -> Problem:
    name, thing, a, b = *_who_and_what(dice), dice.randint(2, 6), dice.randint(2, 6)
    box = dice.choice(_BOXES)
    question = f"{name} has {a} {box} with {b} {thing} in each. How many {thing} does {name} have?"
    return Problem(question, f"{a} * {b} = {a * b}. {name} has {a * b} {thing}.")


def _comparing(dice: random.Random) -> Problem:
    first, second = dice.sample(_NAMES, 2)
    thing, (a, b) = dice.choice(_THINGS), dice.sample(range(SMALLEST, LARGEST + 1), 2)
    question = f"{first} has {a} {thing} and {second} has {b} {thing}. Who has more?"
    return Problem(question, f"{max(a, b)} is more than {min(a, b)}. {first if a > b else second} has more.")


def _ordering(dice: random.Random) -> Problem:
    names, (more, most) = dice.sample(_NAMES, 3), dice.choice(_MORE)
    facts = [f"{names[0]} is {more} than {names[1]}.", f"{names[1]} is {more} than {names[2]}."]
    dice.shuffle(facts)
    return Problem(f"{' '.join(facts)} Who is the {most}?", f"{names[0]} is the {most}.")


def _who_and_what(dice: random.Random) -> tuple[str, str]:
    return dice.choice(_NAMES), dice.choice(_THINGS)


def _number(dice: random.Random) -> int:
    return dice.randint(SMALLEST, LARGEST)


_KINDS: tuple[Callable[[random.Random], Problem], ...] = (_adding, _taking, _both, _groups, _comparing, _ordering)
