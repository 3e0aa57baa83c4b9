"""Synthetic exercises from templates, for bench/recipe.py: short problems in words with their working.

A grid of kinds, people, things and numbers in place of a teacher model, which no machine at hand could run. What
hangs on numbers (in orderings: names) that a hash holds back never stands in a training sheet, so that a right
answer was not learnt by heart.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

PEOPLE = "Ann Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Rosa Sam Tom Vera".split()
THINGS = "apple book coin stone ticket card egg pencil shell button stamp orange cup letter flower bottle".split()
BOXES = "box bag basket shelf row drawer".split()
LARGER = (
    ("tall", "taller", "tallest"),
    ("old", "older", "oldest"),
    ("fast", "faster", "fastest"),
    (
        "strong",
        "stronger",
        "strongest",
    ),
)
HELD_BACK = 6  # one in so many
PROBLEMS = 10  # on a sheet


class Problem(NamedTuple):
    """A question; its answer with the working, as a text goes on; what the answer depends on."""

    question: str
    answer: str
    what: tuple[object, ...]


def _plural(word: str) -> str:
    return {"box": "boxes", "shelf": "shelves"}.get(word, word + "s")


def _gain(r: random.Random) -> Problem:
    a, b, who, thing = r.randint(1, 20), r.randint(1, 20), r.choice(PEOPLE), _plural(r.choice(THINGS))
    got = r.choice(["buys", "finds", "gets", "is given"])
    question = f"{who} has {a} {thing} and {got} {b} more. How many {thing} has {who} now?"
    return Problem(question, f"{a} + {b} = {a + b}. The answer is {a + b}.", ("+", a, b))


def _loss(r: random.Random) -> Problem:
    a, who, thing = r.randint(2, 30), r.choice(PEOPLE), _plural(r.choice(THINGS))
    b = r.randint(1, a - 1)
    lost = r.choice(["sells", "loses", "gives away", "breaks"])
    question = f"{who} has {a} {thing} and {lost} {b}. How many {thing} are left?"
    return Problem(question, f"{a} - {b} = {a - b}. The answer is {a - b}.", ("-", a, b))


def _times(r: random.Random) -> Problem:
    a, b, box, thing = r.randint(2, 10), r.randint(2, 10), r.choice(BOXES), _plural(r.choice(THINGS))
    question = f"There are {a} {_plural(box)} and in each {box} there are {b} {thing}. How many {thing} are there?"
    return Problem(question, f"{a} * {b} = {a * b}. The answer is {a * b}.", ("*", a, b))


def _two_steps(r: random.Random) -> Problem:
    a, b, who, thing = r.randint(1, 15), r.randint(1, 15), r.choice(PEOPLE), _plural(r.choice(THINGS))
    c = r.randint(1, a + b - 1)
    question = f"{who} has {a} {thing}, buys {b} more and gives {c} to a friend. How many {thing} has {who} now?"
    left = a + b - c
    return Problem(question, f"{a} + {b} = {a + b}. {a + b} - {c} = {left}. The answer is {left}.", ("+-", a, b, c))


def _sequence(r: random.Random) -> Problem:
    start, step = r.randint(1, 20), r.randint(1, 10)
    terms = [start + step * n for n in range(5)]
    question = f"What comes next: {', '.join(map(str, terms[:4]))}?"
    return Problem(question, f"Each is {step} more. {terms[3]} + {step} = {terms[4]}. The answer is {terms[4]}.",
                   ("next", start, step))  # fmt: skip


def _order(r: random.Random) -> Problem:
    (_, more, most), (a, b, c) = r.choice(LARGER), r.sample(PEOPLE, 3)
    facts = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
    r.shuffle(facts)
    answer = f"{a} is {more} than {b} and {b} is {more} than {c}. The answer is {a}."
    return Problem(f"{facts[0]} {facts[1]} Who is the {most}?", answer, ("order", a, b, c))


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "gain": _gain, "loss": _loss, "times": _times, "two steps": _two_steps, "sequence": _sequence, "order": _order,
}  # fmt: skip


def held_back(problem: Problem) -> bool:
    """Whether what the answer depends on is kept for the test."""
    return hashlib.sha256(repr(problem.what).encode()).digest()[0] % HELD_BACK == 0


def _draw(kind: str, r: random.Random, held: bool) -> Problem:
    while held_back(problem := KINDS[kind](r)) is not held:
        pass
    return problem


def sheet(seed: int) -> str:
    """A document: problems for training with their solutions."""
    r = random.Random(f"sheet {seed}")
    kinds = [r.choice(list(KINDS)) for _ in range(PROBLEMS)]
    return "\n\n".join(f"Question: {p.question}\nAnswer: {p.answer}" for p in (_draw(k, r, False) for k in kinds))


def test(n: int) -> dict[str, list[Problem]]:
    """n problems of each kind that no sheet holds."""
    r = random.Random("test")
    return {kind: [_draw(kind, r, True) for _ in range(n)] for kind in KINDS}
