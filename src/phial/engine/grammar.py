"""What a text must look like: a JSON schema, a GBNF or Lark grammar, or a regular expression, checked when it is made.

LlamaGrammar is llama-cpp-python's name and its constructors'; behind it stands one grammar in llguidance's Lark
dialect. Forced tokens are switched off there: where only one text can follow, the model still chooses how to spell it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from phial.errors import ArgumentError

# JSON on one line, as json.dumps writes it, with or without the blanks. JSON itself allows any number of blanks and
# line breaks anywhere, and a small model that has begun to write them spends its tokens on them.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
LARGEST_NUMBER = 2**53
MOST_PARTS = 1000  # a chain of 1,500 has crashed the process
_RULE = re.compile(r"^[ \t]*[?!]?\w+[^\n:/\"]*:", re.MULTILINE)
_QUOTED_LINE = re.compile(r" *\d+ \| ")
_OPTIONS = re.compile(r"^[ \t]*%llguidance[ \t]*(\{.*\})[ \t]*$", re.MULTILINE)


class LlamaGrammar:
    """A grammar for `grammar=`; it holds no state, so one may serve any number of texts.

    Attributes:
        lark: the grammar in llguidance's Lark dialect.
    """

    def __init__(self, lark: str, described: str = "the grammar", hint: str = "") -> None:
        """`described` and `hint` go into the error. Raises ArgumentError where it is no grammar."""
        from llguidance import LLMatcher  # here: only constrained texts need it

        _check_size(len(_RULE.findall(lark)), described, "rules")
        self.lark = _without_forcing(lark)
        failed, messages = LLMatcher.validate_grammar_with_warnings(self.lark)
        if failed:
            raise ArgumentError(f"{described} cannot be followed: {_short(messages[0])}", hint or "mend the grammar")

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar in GBNF (`root ::= ...`) or Lark (`start: ...`). Raises ArgumentError where it is neither."""
        from llguidance.gbnf_to_lark import any_to_lark

        if not isinstance(grammar, str) or not grammar.strip():
            raise ArgumentError(f"the grammar is {grammar!r}", 'pass text, say \'root ::= "yes" | "no"\'')
        try:
            lark = any_to_lark(grammar)
        except Exception as error:  # its own error class, but also ValueError and IndexError
            raise ArgumentError(f"the grammar is no GBNF: {_short(str(error))}", "rules read `name ::= ...`") from error
        return cls(lark, hint="rules read `name ::= ...` (GBNF, from `root`) or `name: ...` (Lark, from `start`)")

    @classmethod
    def from_file(cls, file: str | PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """As from_string, from a UTF-8 file. Raises ArgumentError where it cannot be read."""
        try:
            text = Path(file).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise ArgumentError(f"cannot read the grammar {file}: {error}", "pass the path of a text file") from error
        return cls.from_string(text, verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str | Mapping[str, Any], verbose: bool = True) -> LlamaGrammar:
        """JSON documents that satisfy a schema, given as text or as a dict.

        Keywords that cannot be kept are errors, never ignored. Properties come in the schema's order, all on one line;
        llguidance's own options are taken from "x-guidance" in the schema, {"whitespace_flexible": True} say.

        Raises:
            ArgumentError: it is no schema, or holds a keyword that cannot be kept.
        """
        schema = _as_schema(json_schema)
        own = schema.get("x-guidance", {})
        if not isinstance(own, Mapping):
            raise ArgumentError(f"x-guidance is {own!r}", "an object of llguidance's options, or leave it out")
        schema["x-guidance"] = LAYOUT | dict(own)
        # U+2028 and its kin would end a line of the grammar; escaped JSON is one line of ASCII.
        return cls(
            f"start: %json {json.dumps(schema)}",
            "the JSON schema",
            "leave out what is named; a caller can still check it on the finished text",
        )

    @classmethod
    def from_regex(cls, regex: str) -> LlamaGrammar:
        r"""Texts that match a regular expression as a whole (Rust's syntax; \d, \w and \s are ASCII's).

        Raises:
            ArgumentError: it is no such expression: no look-around, no back references.
        """
        from llguidance import regex_to_lark

        if not isinstance(regex, str) or not regex:
            raise ArgumentError(f"the regular expression is {regex!r}", "pass text of at least one character")
        return cls(
            f"start: /{regex_to_lark(regex, 'dws')}/",
            f"the regular expression {regex!r}",
            "look-around, anchors and back references are not supported",
        )


def as_grammar(grammar: object) -> LlamaGrammar | None:
    """The grammar that a caller passed; a foreign LlamaGrammar is read through its text.

    Raises:
        ArgumentError: it is none.
    """
    if grammar is None or isinstance(grammar, LlamaGrammar):
        return grammar
    text = getattr(grammar, "_grammar", None)  # where llama_cpp.LlamaGrammar keeps it
    if isinstance(text, str):
        return LlamaGrammar.from_string(text)
    raise ArgumentError(
        f"grammar={grammar!r} is no grammar", "pass LlamaGrammar.from_string(...), from_json_schema(...) or from_regex"
    )


def response_grammar(response_format: object) -> LlamaGrammar | None:
    """The grammar of a chat's `response_format`; None for text.

    Takes {"type": "json_object"}, with llama-cpp-python's "schema" too, and OpenAI's {"type": "json_schema",
    "json_schema": {"schema": ...}}.

    Raises:
        ArgumentError: it is none of these, or the schema cannot be kept.
    """
    if response_format is None:
        return None
    hint = '{"type": "json_object"}, with or without "schema"; {"type": "json_schema", "json_schema": {"schema": ...}}'
    wanted = response_format if isinstance(response_format, Mapping) else {}
    if wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        schema = wanted.get("schema")
        return LlamaGrammar.from_json_schema({"type": "object"} if schema is None else schema)
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        if isinstance(inner, Mapping) and "schema" in inner:
            return LlamaGrammar.from_json_schema(inner["schema"])
    raise ArgumentError(f"response_format={response_format!r} is not supported", hint)


def _as_schema(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A copy that JSON can hold."""
    try:
        schema = json.loads(given if isinstance(given, str) else json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"the JSON schema is no JSON: {error}", "pass a dict of plain values, or its text"
        ) from error
    if not isinstance(schema, dict):
        raise ArgumentError(f"the JSON schema is {schema!r}", "an object, for example {'type': 'object'}")
    _check_size(_check_numbers(schema), "the JSON schema", "subschemas")
    return schema


def _check_numbers(value: object) -> int:
    """How many objects there are; ArgumentError for numbers that llguidance would round, or overflow with."""
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
        raise ArgumentError(f"the JSON schema holds the number {value!r}", "numbers up to 2^53 can be kept exactly")
    if isinstance(value, dict):
        _check_exclusive(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict) + sum(map(_check_numbers, inner))


def _check_exclusive(schema: Mapping[str, Any]) -> None:
    """Raise ArgumentError for bounds that llguidance gets wrong: above 0 up to 0.5, it lets 0 itself pass."""
    bounds = {key: schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")}
    known = {key: bound for key, bound in bounds.items() if isinstance(bound, (int, float))}
    low = max((known[key] for key in ("minimum", "exclusiveMinimum") if key in known), default=-math.inf)
    high = min((known[key] for key in ("maximum", "exclusiveMaximum") if key in known), default=math.inf)
    if schema.get("type") != "integer" and any("exclusive" in key for key in known) and 0 <= high - low < 1:
        raise ArgumentError(
            f"the JSON schema bounds a number to {low} to {high}, one of them excluded",
            "bounds less than 1 apart can be kept with minimum and maximum only",
        )


def _check_size(n: int, what: str, parts: str) -> None:
    """Raise ArgumentError for more than llguidance's recursive compiler has stack for."""
    if n > MOST_PARTS:
        raise ArgumentError(f"{what} has {n} {parts}, more than {MOST_PARTS}", "split it, or leave the details out")


def _without_forcing(lark: str) -> str:
    """The grammar with llguidance's option no_forcing, beside whatever options it has."""
    found = _OPTIONS.search(lark)
    if not found:
        return lark + '\n%llguidance {"no_forcing": true}\n'  # behind it: complaints count lines
    try:
        options = json.loads(found.group(1)) | {"no_forcing": True}
    except ValueError as error:
        raise ArgumentError(f"the line {found.group(0).strip()!r} holds no JSON: {error}", "mend it") from error
    return lark[: found.start()] + f"%llguidance {json.dumps(options)}" + lark[found.end() :]


def _short(message: str) -> str:
    """A parser's complaint on one line, without the grammar it repeats behind it."""
    lines = message.removesuffix("\n").splitlines()
    kept = [line.strip() for line in lines if not _QUOTED_LINE.match(line) and line.strip(" ^")]
    return " ".join(kept).replace("failed to compile JSON schema: ", "")[:300]
