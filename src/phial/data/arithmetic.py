"""Arithmetic in a text, checked: every "12 * 7 = 84" evaluated exactly, with fractions, and compared.

Read are chains of numbers joined by + - * / × · ÷ − ^ ** and brackets, followed by "=" and a number (or another such
chain, as in "2 * 3 + 4 = 6 + 4 = 10"). Numbers may have decimals, thousands commas, a leading $ € £ and a percent sign.
A decimal with n places on the right agrees when the exact value rounds to it; after "≈" a whole number too. Where a
letter takes part ("2x + 3 = 7", "f(2) = 4") nothing is judged, nor "100 + 20% = 120", whose meaning is disputed, nor
divisions with a remainder. A false alarm costs a good document, so what is doubtful is left alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_NUMBER = r"[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
_OPERATOR = r"(?:\*\*|[-+*/×·÷−^])"
_BEFORE = r"(?:[-−(] ?){0,8}"  # all repeats are bounded, so that no line takes long
_SIDE = rf"{_BEFORE}{_NUMBER}(?:[) ]{{0,8}}{_OPERATOR} ?{_BEFORE}{_NUMBER}){{0,40}}\){{0,8}}"
_EQUALS = r" ?[=≈] ?(?:about |approximately )?"
_CHAIN = re.compile(rf"(?<![\d.,]){_SIDE}(?:{_EQUALS}{_SIDE}){{1,20}}")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_BOLD = re.compile(r"(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,;:]|$)")
_LATEX = {r"\times": "×", r"\cdot": "·", r"\div": "÷"}
_PART_OF_MORE_BEFORE = re.compile(
    r"[\w.,)\]}√!%°:]$|\w\($"  # written together with something else
    rf"|{_OPERATOR}\s*$|√\s*$|(?<![\w'])[b-zB-HJ-Z]\s+$"  # an operand that is no number, or a name standing alone
)
_PART_OF_MORE_AFTER = re.compile(
    r"[\w\[{(°!%:]|[.,]\d"
    rf"|\s*{_OPERATOR}|\s*[a-zA-Z]\s*[-+*/^=(]"
    r"|,?\s*(?:with\s+)?(?:a\s+)?(?:remainder|rest|R|r)\b"
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "$": "", "€": "", "£": "", ",": ""})
_LARGEST_POWER = 64
_LONGEST = 400


class Equation(NamedTuple):
    """An equation that was read, and whether it holds."""

    text: str
    holds: bool


def equations(text: str) -> Iterator[Equation]:
    """Every arithmetic equation in a text. What cannot be evaluated (a division by zero too) does not hold."""
    for sign, plain in _LATEX.items():
        text = text.replace(sign, plain)
    for line in text.splitlines():
        line = re.sub(r"\s+", " ", _BOLD.sub("", _BULLET.sub("", line)))
        for match in _CHAIN.finditer(line):
            chain, before, after = _unwrapped(match.group(), line[: match.start()], line[match.end() :])
            if len(chain) <= _LONGEST and _is_arithmetic(chain, before, after):
                yield Equation(chain.strip(), _holds(chain))


def wrong_equations(text: str) -> list[str]:
    """The equations of a text that do not hold."""
    return [equation.text for equation in equations(text) if not equation.holds]


def _unwrapped(chain: str, before: str, after: str) -> tuple[str, str, str]:
    """The chain without brackets that enclose the whole equation, or its left end, and not one side of it."""
    while chain.startswith("(") and (first := re.split("[=≈]", chain)[0]).count("(") > first.count(")"):
        chain, before = chain[1:], before + "("
    while chain.endswith(")") and (last := re.split("[=≈]", chain)[-1]).count(")") > last.count("("):
        chain, after = chain[:-1], ")" + after
    return chain, before, after


def _is_arithmetic(chain: str, before: str, after: str) -> bool:
    """Whether the chain says something about numbers alone, and everything of it was read."""
    sides = re.split("[=≈]", chain)
    if not any(re.search(_OPERATOR, side.strip().lstrip("(-−")) for side in sides):
        return False
    if any(side.count("(") != side.count(")") for side in sides):
        return False
    if "%" in chain and re.search("[-+−]", chain):
        return False
    return not (_PART_OF_MORE_BEFORE.search(before) or _PART_OF_MORE_AFTER.match(after))


def _holds(chain: str) -> bool:
    sides = re.split("([=≈])", chain)
    try:
        values = [_value(side) for side in sides[::2]]
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    return all(
        _agree(values[n], values[n + 1], sides[2 * n + 2], rounded=sides[2 * n + 1] == "≈")
        for n in range(len(values) - 1)
    )


def _agree(left: Fraction, right: Fraction, written: str, *, rounded: bool) -> bool:
    """Whether two values agree, the right one as exactly as it is written: 2 / 3 = 0.67 does, 7 / 2 = 3 does not."""
    if left == right:
        return True
    number = re.fullmatch(rf"[(\s]*(?:about|approximately)?\s*[-−]?({_NUMBER})[)\s]*", written)
    if number is None or not (rounded or "." in number[1]):
        return False
    places = len(number[1].rstrip("%").partition(".")[2]) + (2 if "%" in number[1] else 0)
    return abs(left - right) <= Fraction(1, 2 * 10**places)


def _value(side: str) -> Fraction:
    text = re.sub(r"about|approximately", "", side).translate(_SIGNS).replace("^", "**")
    text = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # 007 is a number to people, not to Python
    return _evaluate(ast.parse(text.strip(), mode="eval").body, text.strip())


def _evaluate(node: ast.expr, text: str) -> Fraction:
    """The exact value of a tree of numbers and operators; ValueError for anything else or too large a power."""
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(text, node) or "")  # as written, not as a float
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, text)
    if not isinstance(node, ast.BinOp):
        raise ValueError(text)
    left, right = _evaluate(node.left, text), _evaluate(node.right, text)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    if isinstance(node.op, ast.Pow) and right.denominator == 1 and abs(right) <= _LARGEST_POWER:
        if max(left.numerator.bit_length(), left.denominator.bit_length()) <= _LARGEST_POWER:
            return left ** int(right)
    raise ValueError(text)
