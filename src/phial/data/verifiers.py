"""Checks of an answer that need no judgement: exact answers, unit tests, JSON schemas, formats.

Each is a table {"check": NAME, ...} of a prompts file or a configuration, and says of a text what is wrong with it, or
nothing. They read the whole answer: "Sure! Here is the JSON:" before an object is a fault, since a program that reads
the answer would fail on it. Of these only `tests` runs code (sandbox.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from phial.data.asking import Execute
from phial.data.checks import repetition

_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?\d{1,99}(?:,\d{3}){0,33}(?:\.\d{1,99})?")
_FENCED = re.compile(r"```[ \t]*(?:[Pp]ython|py)?[ \t]*\n(.*?)```", re.DOTALL)
_LETTER = re.compile(
    r"(?<![\w'’])([B-HJ]|A(?!\s+(?!(?:is|or|and)\b)[a-z])|I(?!\s+[a-z]))(?![\w'’])"
)  # "A cat", "I think" are none
_NESTING = 100  # of JSON; deeper is no answer, and would overflow the stack of a validator
LONGEST = 100_000  # characters of an answer that is read at all


class _Check(BaseModel):
    """One check; `problem` is empty for an answer that passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NumberCheck(_Check):
    """The last number is this one; with `alone`, nothing but the number is there, save a full stop."""

    check: Literal["number"]
    value: str
    alone: bool = False

    @field_validator("value", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> str:
        if isinstance(value, bool) or not _NUMBER.fullmatch(str(value)):
            raise ValueError("is no number")
        return str(value)

    def problem(self, text: str, execute: Execute) -> str:
        found = [match.group() for match in _NUMBER.finditer(text)]
        if not found:
            return "no number"
        if _exact(found[-1]) != _exact(self.value):
            return f"{found[-1]} instead of {self.value}"
        return "" if not self.alone or _bare(text) == found[-1] else "more than the number"


class ChoiceCheck(_Check):
    """One letter is chosen, and it is this one: "B", "(B)", "The answer is B." Two different letters choose nothing."""

    check: Literal["choice"]
    value: str = Field(pattern="^[A-J]$")
    alone: bool = False

    def problem(self, text: str, execute: Execute) -> str:
        if self.alone and not re.fullmatch(r"\W*[A-J]\W*", text):
            return "more than the letter"
        letters = set(_LETTER.findall(text))
        if len(letters) != 1:
            return f"{len(letters)} letters chosen"
        return "" if letters == {self.value} else f"{letters.pop()} instead of {self.value}"


class ExactCheck(_Check):
    """The answer is one of these texts, whatever its case, outer white space and full stop."""

    check: Literal["exact"]
    values: tuple[str, ...] = Field(min_length=1)

    def problem(self, text: str, execute: Execute) -> str:
        said = _bare(text).casefold()
        return "" if said in {_bare(value).casefold() for value in self.values} else "another text"


class JsonCheck(_Check):
    """The answer is JSON and nothing else; held to a schema, or to an object with exactly these keys."""

    check: Literal["json"]
    keys: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    fenced: bool = False  # whether ``` around it are allowed

    @model_validator(mode="after")
    def _one_of_both(self) -> JsonCheck:
        if self.keys and self.json_schema is not None:
            raise ValueError("keys and schema are two ways to say it; give one")
        if self.json_schema is not None:
            from jsonschema import Draft202012Validator
            from jsonschema.exceptions import SchemaError

            try:
                Draft202012Validator.check_schema(self.json_schema)
            except SchemaError as error:
                raise ValueError(f"is no JSON schema: {error.message}") from error
        return self

    def problem(self, text: str, execute: Execute) -> str:
        if self.fenced and (fence := re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)```\s*", text, re.DOTALL)):
            text = fence[1]
        try:
            value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
        except (ValueError, RecursionError):
            return "not JSON"
        if _depth(value) > _NESTING:
            return "nested too deeply"
        if self.keys:
            if not isinstance(value, dict):
                return "no object"
            if set(value) != set(self.keys):
                return "other keys"
            return "" if all(part not in ("", None, [], {}) for part in value.values()) else "an empty value"
        return "" if self.json_schema is None else self._schema_problem(value)

    def _schema_problem(self, value: Any) -> str:
        from jsonschema import Draft202012Validator
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        validator = Draft202012Validator(self.json_schema, registry=Registry())  # an address is never fetched
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except Unresolvable as unknown:
            return f"the schema refers to {unknown.ref}"
        except RecursionError:
            return "the schema refers to itself"
        except ArithmeticError:  # whether 1e400, infinity to us, is a multiple of something
            return "a number beyond what can be compared"
        return "" if error is None else f"schema: {error.message}"[:200]


class TestsCheck(_Check):
    """The code, that of the fences where there are some, passes these tests."""

    __test__ = False  # not a test class
    check: Literal["tests"]
    tests: str = Field(min_length=1)

    def problem(self, text: str, execute: Execute) -> str:
        fenced = _FENCED.findall(text)
        code = "\n".join(fenced) if fenced else text
        outcome = execute(code, self.tests, False)
        return "" if outcome.passed else f"{outcome.name}: {outcome.detail}"[:200]


class WordsCheck(_Check):
    """So many words."""

    check: Literal["words"]
    least: int = Field(1, ge=0)
    most: int = Field(10**9, ge=0)

    def problem(self, text: str, execute: Execute) -> str:
        count = len(text.split())
        return "" if self.least <= count <= self.most else f"{count} words"


class ListCheck(_Check):
    """A list of exactly so many items and nothing else: "1. ..." in order, "- ..." a line, or parted by commas."""

    check: Literal["list"]
    style: Literal["numbered", "bullets", "commas"]
    items: int = Field(ge=1)

    def problem(self, text: str, execute: Execute) -> str:
        if self.style == "commas":
            parts = [part.strip() for part in _bare(text).split(",")]
            if "\n" in text.strip() or any(len(part.split()) not in (1, 2, 3) for part in parts):
                return "not items parted by commas"
        else:
            lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
            marks = [f"{n}." for n in range(1, len(lines) + 1)] if self.style == "numbered" else ["-"] * len(lines)
            if any(not line.startswith(mark + " ") for line, mark in zip(lines, marks, strict=True)):
                return "a line that is no item"
            parts = [line[len(mark) :].strip() for line, mark in zip(lines, marks, strict=True)]
        if len(parts) != self.items:
            return f"{len(parts)} items"
        return "" if len({part.casefold() for part in parts}) == len(parts) else "an item twice"


class LettersCheck(_Check):
    """All letters large, all small, or no digit at all; there is at least one letter."""

    check: Literal["letters"]
    only: Literal["upper", "lower", "no_digits"]

    def problem(self, text: str, execute: Execute) -> str:
        if not any(c.isalpha() for c in text):
            return "no letters"
        if self.only == "no_digits":
            return "digits" if any(c.isdigit() for c in text) else ""
        same = text == (text.upper() if self.only == "upper" else text.lower())
        return "" if same else f"not {self.only} case"


class EdgesCheck(_Check):
    """The answer begins and ends with these words, whatever its outer white space."""

    check: Literal["edges"]
    begins: str = ""
    ends: str = ""

    def problem(self, text: str, execute: Execute) -> str:
        if not text.strip().startswith(self.begins):
            return "another beginning"
        return "" if text.strip().endswith(self.ends) else "another end"


class LinesCheck(_Check):
    """Lines that begin so, in this order, each with something behind its beginning, and no others but empty ones."""

    check: Literal["lines"]
    begin: tuple[str, ...] = Field(min_length=1)

    def problem(self, text: str, execute: Execute) -> str:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) != len(self.begin):
            return f"{len(lines)} lines"
        fits = all(
            line.startswith(start) and len(line) > len(start) for line, start in zip(lines, self.begin, strict=True)
        )
        return "" if fits else "a line that begins differently"


class MentionsCheck(_Check):
    """All of these words or phrases are there and none of those, as words, whatever their case."""

    check: Literal["mentions"]
    every: tuple[str, ...] = ()
    none: tuple[str, ...] = ()

    def problem(self, text: str, execute: Execute) -> str:
        missing = next((phrase for phrase in self.every if not _has(text, phrase)), "")
        if missing:
            return f"no {missing}"
        return next((f"{phrase} is there" for phrase in self.none if _has(text, phrase)), "")


class RepetitionCheck(_Check):
    """At most this share of word trigrams that stood in the answer before."""

    check: Literal["repetition"]
    most: float = Field(ge=0, le=1)

    def problem(self, text: str, execute: Execute) -> str:
        share = repetition(text)
        return "" if share <= self.most else f"{100 * share:.0f} % repeated"


Check = Annotated[
    NumberCheck
    | ChoiceCheck
    | ExactCheck
    | JsonCheck
    | TestsCheck
    | WordsCheck
    | ListCheck
    | LettersCheck
    | EdgesCheck
    | LinesCheck
    | MentionsCheck
    | RepetitionCheck,
    Field(discriminator="check"),
]


def problems(checks: Sequence[Check], text: str, execute: Execute) -> list[str]:
    """What each check finds wrong, as "check: what"; nothing of those that pass. An empty answer passes none."""
    if not text.strip():
        return [f"{check.check}: empty" for check in checks]
    if len(text) > LONGEST:
        return [f"{check.check}: {len(text)} characters" for check in checks]
    found = ((check.check, check.problem(text, execute)) for check in checks)
    return [f"{name}: {what}" for name, what in found if what]


def _exact(number: str) -> Fraction:
    return Fraction(re.sub(r"[$€£,]", "", number).replace("−", "-"))


def _bare(text: str) -> str:
    """The text without outer white space and one full stop."""
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") else text


def _has(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    level, depth = [value], 0
    while level:
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [item for part in inner for item in part]
        depth += 1
    return depth - 1
