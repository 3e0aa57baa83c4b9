"""Checks of answers: what passes and what does not, each fault by name."""

from __future__ import annotations

from typing import Any

import pytest

from phial.data import sandbox
from phial.data.asking import executor
from phial.data.format_tasks import FORMAT_KINDS, format_tasks
from phial.data.format_words import CATEGORIES, KEYS, THINGS, in_words
from phial.data.identity import IdentityConfig, identity_tasks
from phial.data.preference_prompts import PromptRow, prompt_of, templates
from phial.data.request_journal import RequestJournal
from phial.data.verifiers import problems
from phial.errors import ArgumentError, PhialError

WEAK = not sandbox.DOORS <= sandbox.closable_doors()
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}


def never(*_: Any) -> Any:
    raise AssertionError("nothing is executed")


def faults(check: dict[str, Any], text: str, execute: Any = never) -> list[str]:
    return problems(PromptRow.model_validate({"prompt": "?", "checks": [check]}).checks, text, execute)


RIGHT_AND_WRONG: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"check": "number", "value": 1234.5},
        ["1234.5", "It costs $1,234.50.", "3 + 4 is not it; 1234.5", "**1234.50**"],
        ["1234", "-1234.5", "1234.5 or 7", "none", "v1234.5", "9" * 5000],
    ),
    ({"check": "number", "value": -3, "alone": True}, ["-3", " −3. "], ["3", "It is -3", "10 - 13 = -3", "-3\n-3"]),
    (
        {"check": "choice", "value": "B"},
        ["B", "(B)", "The answer is B.", "A cat says B", "I think it is (B)"],
        ["A", "A or B", "b", "", "Both", "(A) is wrong, (B) is right"],
    ),
    ({"check": "choice", "value": "A"}, ["A", "A is right", "I choose A."], ["A cat", "I", "B"]),
    ({"check": "exact", "values": ["forty-two", "42"]}, ["Forty-two.", " 42 "], ["forty two", "42, sure", "42 42"]),
    (
        {"check": "json", "keys": ["a", "b"]},
        ['{"a": 1, "b": "x"}', '\n{"b": [1], "a": 0}\n', '{"a": false, "b": 0}'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', '```json\n{"a": 1, "b": 2}\n```', 'Sure: {"a": 1, "b": 2}']
        + ['[{"a": 1, "b": 2}]', '{"a": "", "b": 2}', '{"a": NaN, "b": 2}', '{"a": 1, "a": 2, "b": 3}', "[" * 100_000]
        + ['{"a": ' + "[" * 300 + "]" * 300 + ', "b": 1}', '{"a": 1, "b": ' + "1" * 5000 + "}"],
    ),
    (
        {"check": "json", "schema": SCHEMA, "fenced": True},
        ['{"n": 3}', '```json\n{"n": 4}\n```', '{"n": 3, "more": true}'],
        ['{"n": 2}', '{"n": "3"}', "{}", "3", '```json\n{"n": 4}\n``` there'],
    ),
    ({"check": "json", "schema": {"$ref": "http://127.0.0.1:9/s.json"}}, [], ["{}"]),
    ({"check": "json", "schema": {"$ref": "#"}}, [], ["{}"]),
    ({"check": "json", "schema": {"multipleOf": 0.5}}, ["1.5"], ["1e400", "1.3"]),
    ({"check": "words", "least": 2, "most": 3}, ["one two", "a b  c\n"], ["one", "a b c d"]),
    (
        {"check": "list", "style": "numbered", "items": 2},
        ["1. one\n2. two", "1. one\n\n2. two\n"],
        ["1. one", "1. one\n2. two\n3. three", "Here:\n1. one\n2. two", "1. one\n3. two", "1. one\n2. One", "- a\n- b"],
    ),
    ({"check": "list", "style": "bullets", "items": 2}, ["- a\n- b"], ["* a\n* b", "- a", "-a\n-b", "a\nb"]),
    (
        {"check": "list", "style": "commas", "items": 3},
        ["red, blue, dark green.", "a,b,c"],
        ["Here they are: red, blue, green", "red, blue", "red, red, blue", "red,\nblue, green", "a, b, c,"],
    ),
    ({"check": "letters", "only": "upper"}, ["ÄPFEL, 3 OF THEM!"], ["Apples", "123"]),
    ({"check": "letters", "only": "lower"}, ["all small"], ["All small"]),
    ({"check": "letters", "only": "no_digits"}, ["seven"], ["7 of them", "..."]),
    (
        {"check": "edges", "begins": "Well,", "ends": "so."},
        ["Well, it is so.", " Well, so. "],
        ["well, so.", "Well, no."],
    ),
    ({"check": "lines", "begin": ["a:", "b:"]}, ["a: 1\nb: 2", "a: 1\n\nb: 2"], ["b: 2\na: 1", "a: 1", "a:\nb: 2"]),
    (
        {"check": "mentions", "every": ["C++", "phial"], "none": ["GPT"]},
        ["Phial is in C++.", "c++ (PHIAL)"],
        ["phials, C++", "phial", "phial C++ gpt"],
    ),
    ({"check": "repetition", "most": 0.1}, ["the quick brown fox jumps"], ["on and on and on and on and on"]),
]


@pytest.mark.parametrize(("check", "right", "wrong"), RIGHT_AND_WRONG, ids=lambda value: str(value)[:40])
def test_right_answers_pass_and_wrong_ones_are_told_why(
    check: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [text for text in right if faults(check, text)] == []
    assert [text[:60] for text in wrong if not faults(check, text)] == []
    assert faults(check, " \n") == [f"{check['check']}: empty"]
    assert all(fault.startswith(f"{check['check']}: ") for text in wrong for fault in faults(check, text))


def test_code_is_executed_against_its_tests_once(tmp_path: Any) -> None:
    check = {"check": "tests", "tests": "assert double(4) == 8"}
    answer = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles."
    with RequestJournal(tmp_path / "journal.jsonl") as journal:
        execute = executor(journal, WEAK)
        assert faults(check, answer, execute) == []
        assert faults(check, "def double(x): return x + 4", execute) == []  # the tests' fault, not the check's
        assert faults(check, "def double(x): return x", execute)[0].startswith("tests: failed")
        assert faults(check, "That is easy.", execute)[0].startswith("tests: solution_error")
        executed = len(journal.entries)
        faults(check, answer, execute)
        assert len(journal.entries) == executed == 4


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ({"check": "nmber", "value": 1}, "checks"),
        ({"check": "number", "value": "one"}, "is no number"),
        ({"check": "number", "value": 1, "alon": True}, "alon"),
        ({"check": "json", "schema": {"type": "objct"}}, "no json schema"),
        ({"check": "json", "schema": {}, "keys": ["a"]}, "give one"),
        ({"check": "list", "style": "numbered", "items": 0}, "items"),
    ],
)
def test_a_check_that_is_none_is_refused_with_its_place(check: dict[str, Any], told: str) -> None:
    with pytest.raises(PhialError) as error:
        prompt_of({"prompt": "Well?", "checks": [check]}, "file.jsonl, row 3")
    assert "file.jsonl, row 3" in error.value.message
    assert told in f"{error.value.message}".lower()


@pytest.mark.parametrize("kind", FORMAT_KINDS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_templates_write_right_answers_that_pass_and_broken_ones_that_do_not(kind: Any, split: Any) -> None:
    made = list(templates({kind: 40}, None, split, seed=3))
    assert len({prompt.key for prompt in made}) == 40
    assert [p.right for p in made if problems(p.checks, p.right, never)] == []
    assert [p.broken for p in made if not problems(p.checks, p.broken, never)] == []
    assert made == list(templates({kind: 40}, None, split, seed=3)) != list(templates({kind: 40}, None, split, seed=4))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_identity_knows_its_name_and_its_maker_even_where_they_hold_anothers(split: Any) -> None:
    for name, maker in (("Phial", "the phial project"), ("Llama Nova", "Nova at Google")):
        tasks = identity_tasks(IdentityConfig(name=name, maker=maker, prompts=30), split, seed=1)
        for task in tasks:
            checks = PromptRow.model_validate({"prompt": "?", "checks": task.checks}).checks
            assert not problems(checks, task.right, never), task.right
            assert problems(checks, task.broken, never), task.broken
        assert any(len(task.messages) == 3 for task in tasks)


def test_the_halves_of_the_templates_have_no_prompt_topic_or_key_in_common() -> None:
    def words(split: Any) -> set[str]:
        members = " ".join([*CATEGORIES[split].values(), *CATEGORIES[split], *KEYS[split]]).split()
        assert len(members) == len(set(members))
        return {*members, *THINGS[split]}

    assert words("train") & words("held_out") == {"musical"} & words("train")
    for kind in FORMAT_KINDS:
        halves = [{t.prompt for t in format_tasks(kind, 40, split, 0)} for split in ("train", "held_out")]
        assert not halves[0] & halves[1]
    config = IdentityConfig(name="Phial", maker="us", prompts=40)
    halves = [{t.messages[-1]["content"] for t in identity_tasks(config, s, 0)} for s in ("train", "held_out")]
    assert not halves[0] & halves[1]


def test_more_prompts_than_the_templates_make_are_refused_with_the_number_there_is() -> None:
    with pytest.raises(ArgumentError, match="500 prompts of the kind number_words") as error:
        format_tasks("number_words", 500, "train", 0)
    assert "about 150" in error.value.hint  # 50 even numbers in three phrasings


def test_numbers_in_words() -> None:
    assert [in_words(n) for n in (0, 7, 13, 20, 47, 99)] == [
        "zero", "seven", "thirteen", "twenty", "forty-seven", "ninety-nine",
    ]  # fmt: skip
