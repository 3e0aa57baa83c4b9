"""Texts made on the spot: what the library's documentation holds, and that every problem's answer is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phial.data.arithmetic import equations
from phial.data.python_docs import python_docs
from phial.data.word_problems import Problem, word_problems
from phial.errors import PhialError

WORDS = "Words that say at some length what this does, so that the document is long enough to be one of those kept."


def test_a_module_is_a_document_of_its_public_parts(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(
        f'"""A shop. {WORDS}"""\n'
        f'def sell(thing, price=3, *, to=None) -> int:\n    """Sell it. {WORDS}"""\n'
        'def _hidden():\n    """Not this."""\n'
        'class Till:\n    """Where money goes."""\n'
        '    def open(self):\n        """Open it."""\n    def dumb(self): pass\n'
    )
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {{'a': '''{WORDS * 2}''', 'b': 'short'}}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_shop.py").write_text(f'"""{WORDS * 3}"""')
    (tmp_path / "broken.py").write_text("def (")
    topic, module = python_docs(tmp_path)
    assert topic == WORDS * 2
    assert module == (
        f"shop\n\nA shop. {WORDS}\n\nsell(thing, price=3, *, to=None)\n\nSell it. {WORDS}\n\n"
        "Till\n\nWhere money goes.\n\nTill.open(self)\n\nOpen it."
    )


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="holds no source of the standard library"):
        list(python_docs(tmp_path))


def _solved(problem: Problem) -> str:
    """The last word of the right answer that matters, from the question alone."""
    numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
    if "Who is" in problem.question:
        pairs = re.findall(r"(\w+) is \w+ than (\w+)", problem.question)
        return ({winner for winner, _ in pairs} - {loser for _, loser in pairs}).pop()
    if "Who has" in problem.question:
        owners = re.findall(r"(\w+) has \d+", problem.question)
        return owners[numbers.index(max(numbers))]
    if " in each" in problem.question:
        return str(numbers[0] * numbers[1])
    if "in the end" in problem.question:
        return str(numbers[0] + numbers[1] - numbers[2])
    return str(numbers[0] - numbers[1] if "left" in problem.question else numbers[0] + numbers[1])


def test_every_answer_is_right() -> None:
    problems, _ = word_problems(2000)
    checked = 0
    for problem in problems:
        assert re.search(rf"\b{_solved(problem)}\b", problem.answer.rsplit(". ", 1)[-1]), problem
        found = list(equations(problem.answer))
        assert all(equation.holds for equation in found)
        checked += len(found)
    assert checked > 1000
    assert all(int(n) >= 2 for problem in problems for n in re.findall(r"\d+", problem.text))  # "1 apples"


def test_held_out_problems_are_in_no_text() -> None:
    problems, held_out = word_problems(3000, 200, seed=4)
    texts = "\n\n".join(problem.text for problem in problems)
    assert (len(problems), len(held_out)) == (3000, 200)
    assert len({p.question for p in problems + held_out}) == 3200
    assert not any(p.question in texts for p in held_out)
    assert word_problems(3000, 200, seed=4) == (problems, held_out)
    assert word_problems(3000, 200, seed=5) != (problems, held_out)


def test_more_problems_than_there_are_is_refused() -> None:
    with pytest.raises(PhialError, match="at most 100,000"):
        word_problems(100_000, 1)
