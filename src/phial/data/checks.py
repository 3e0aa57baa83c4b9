"""What synthetic text must pass before it counts: each check has a name, the reason why a document was dropped.

In order, the cheap ones first: cut_off, not_json, schema, empty, refusal, prompt_echoed, too_short, too_long,
repetition, off_topic; those of the kind (one_speaker, unanswered, no_question, answer_unsupported, copied, strayed);
arithmetic; and last the execution of Python exercises: no_assert, python_failed, python_solution_error,
python_tests_error, python_timeout, python_memory, python_output, python_exited, python_killed, tests_prove_nothing.

None of them tells whether a statement is true: arithmetic and executed tests are the only facts checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from phial.data.arithmetic import wrong_equations
from phial.data.asking import Execute
from phial.data.synthetic_kinds import Kind
from phial.data.topics import Cell
from phial.language_model import Reply

_REFUSALS = re.compile(
    r"\bas an ai\b|\bai language model\b|\bi(?:'m| am) (?:sorry|unable)\b|\bi can(?:no|')t (?:help|assist|provide)\b",
    re.I,
)
_ASKS = re.compile(
    r"\?|\b(?:answer|arrange|calculate|choose|compare|complete|compute|construct|convert|correct|count|decide|define"
    r"|derive|describe|design|determine|discuss|draw|estimate|evaluate|explain|find|give|how|identify|imagine|list|match"
    r"|measure|name|plan|predict|prove|rank|rewrite|show|simplify|sketch|solve|sort|state|suggest|suppose|translate|use"
    r"|what|when|where|which|who|why|work out|write)\b",
    re.I,
)
_COPIED, _STRAYED = 0.8, 0.2
_GRAM, _COPY_GRAM = 3, 8


class Bounds(NamedTuple):
    """Words a document may have, and the share of repeated word trigrams."""

    min_words: int
    max_words: int
    max_repetition: float


class Verdict(NamedTuple):
    """The document's text (of a reply that cannot be read, the reply itself), and why it was dropped or ""."""

    text: str
    reason: str = ""
    detail: str = ""


def judge(kind: Kind, cell: Cell, source: str, reply: Reply, bounds: Bounds, execute: Execute) -> Verdict:
    """Run all checks of a reply until one fails."""
    answer, problem = parse(kind, reply)
    if answer is None:
        return Verdict(reply.text, *problem)
    text = kind.render(answer)
    reason, detail = _general(text, cell, bounds, source)
    if not reason:
        reason, detail = _OF_KIND[kind.name](answer, source) if kind.name in _OF_KIND else ("", "")
    if not reason and kind.name != "python" and (wrong := wrong_equations(text)):
        reason, detail = "arithmetic", wrong[0]
    if not reason and kind.name == "python":
        reason, detail = _python(answer, execute)
    return Verdict(text, reason, detail)


def parse(kind: Kind, reply: Reply) -> tuple[dict[str, Any] | None, tuple[str, str]]:
    """The answer, or the reason why there is none. Held against the schema: an endpoint may ignore it."""
    if reply.finish_reason == "length":
        return None, ("cut_off", f"after {reply.completion_tokens} tokens")
    try:
        answer = json.loads(reply.text)
        json.dumps(answer, ensure_ascii=False).encode()  # "\\ud800" is JSON but no text
    except (ValueError, RecursionError) as error:
        return None, ("not_json", str(error))
    if problem := schema_problem(answer, kind.schema, "answer"):
        return None, problem
    return answer, ("", "")


def schema_problem(value: Any, schema: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """What is wrong with a value, as (reason, detail): schema, or empty for blank text. None where nothing is.

    Knows what the schemas of synthetic_kinds use; an upper length is the teacher's bound alone, not a fault.
    """
    types = {"object": dict, "array": list, "string": str}
    if not isinstance(value, types[schema["type"]]):
        return "schema", f"{where} is no {schema['type']}"
    if isinstance(value, str):
        if not value.strip():
            return "empty", where
        return ("schema", f"{where} is {value[:40]!r}") if value not in schema.get("enum", [value]) else None
    if isinstance(value, list):
        if len(value) < schema["minItems"]:
            return "schema", f"{where} has {len(value)} items"
        problems = (schema_problem(item, schema["items"], f"{where}[{n}]") for n, item in enumerate(value))
        return next((problem for problem in problems if problem), None)
    if set(value) != set(schema["required"]):
        return "schema", f"{where} has the fields {', '.join(sorted(value)) or 'none'}"
    problems = (schema_problem(value[name], part, f"{where}.{name}") for name, part in schema["properties"].items())
    return next((problem for problem in problems if problem), None)


def _general(text: str, cell: Cell, bounds: Bounds, source: str) -> tuple[str, str]:
    words = _words(text)
    if found := _REFUSALS.search(text):
        return "refusal", found.group()
    if " ".join(_words(cell.style)) in " ".join(words):
        return "prompt_echoed", cell.style
    if len(words) < bounds.min_words:
        return "too_short", f"{len(words)} words"
    if len(words) > bounds.max_words:
        return "too_long", f"{len(words)} words"
    if (share := repetition(text)) > bounds.max_repetition:
        return "repetition", f"{100 * share:.0f} % of the word trigrams are repeats"
    if not source and not _mentions(words, cell.topic.path[-1]):
        return "off_topic", cell.topic.path[-1]
    return "", ""


def repetition(text: str) -> float:
    """The share of word trigrams that stood in the text before."""
    grams = _grams(_words(text), _GRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mentions(words: list[str], topic: str) -> bool:
    """Whether a word of the topic occurs, in any form: five letters decide."""
    wanted = {word[:5] for word in _words(topic) if len(word) > 3} or {word[:5] for word in _words(topic)}
    return any(word[:5] in wanted for word in words)


def _exercise(answer: dict[str, Any], source: str) -> tuple[str, str]:
    if not _ASKS.search(answer["problem"]):
        return "no_question", answer["problem"][:80]
    numbers = _numbers(answer["answer"])
    known = _numbers(" ".join(answer["steps"]))
    if numbers and not numbers & known:
        return "answer_unsupported", answer["answer"][:80]
    return "", ""


def _qa(answer: dict[str, Any], source: str) -> tuple[str, str]:
    for pair in answer["pairs"]:
        asked, answered = set(_words(pair["question"])), set(_words(pair["answer"]))
        if answered <= asked or pair["answer"].rstrip().endswith("?"):
            return "unanswered", pair["question"][:80]
    return "", ""


def _dialogue(answer: dict[str, Any], source: str) -> tuple[str, str]:
    speakers = [turn["speaker"] for turn in answer["turns"]]
    if any(speaker == following for speaker, following in zip(speakers, speakers[1:], strict=False)):
        return "one_speaker", "two turns of one speaker after the other"
    if answer["turns"][-1]["text"].rstrip().endswith("?"):
        return "unanswered", answer["turns"][-1]["text"][-80:]
    return "", ""


def _rewrite(answer: dict[str, Any], source: str) -> tuple[str, str]:
    ours, theirs = _words(answer["text"]), _words(source)
    grams = set(_grams(ours, _COPY_GRAM))
    same = len(grams & set(_grams(theirs, _COPY_GRAM))) / max(len(grams), 1)
    if same > _COPIED:
        return "copied", f"{100 * same:.0f} % of the 8-grams are the source's"
    content = {word for word in ours if len(word) > 4}
    shared = len(content & set(theirs)) / max(len(content), 1)
    if shared < _STRAYED:
        return "strayed", f"{100 * shared:.0f} % of the longer words are the source's"
    if new := sorted(_numbers(answer["text"]) - _numbers(source)):
        return "strayed", f"the number {new[0]} is not in the source"
    return "", ""


def _python(answer: dict[str, Any], execute: Execute) -> tuple[str, str]:
    tests = "\n".join(answer["tests"])
    if not all(re.match(r"\s*assert\b", test) for test in answer["tests"]):
        return "no_assert", next(test for test in answer["tests"] if not re.match(r"\s*assert\b", test))[:80]
    outcome = execute(answer["solution"], tests, False)
    if not outcome.passed:
        return f"python_{outcome.name}", outcome.detail
    if execute(answer["solution"], tests, True).passed:
        return "tests_prove_nothing", "they pass with functions that return None"
    return "", ""


_OF_KIND: dict[str, Callable[[dict[str, Any], str], tuple[str, str]]] = {
    "exercise": _exercise,
    "qa": _qa,
    "dialogue": _dialogue,
    "rewrite": _rewrite,
}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)?", text.lower())


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[n : n + size]) for n in range(len(words) - size + 1)]


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)}
