"""The kinds of synthetic text: what is asked of the teacher, the JSON it must answer with, and the text made of it.

textbook: a section of a textbook; exercise: a problem, its solution in steps, the answer; python: a task, a solution,
tests that are executed; qa: questions and answers; dialogue: two people talk; rewrite: a web text put in better words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from phial.data.topics import Cell

KindName = Literal["textbook", "exercise", "python", "qa", "dialogue", "rewrite"]
KIND_NAMES: tuple[KindName, ...] = get_args(KindName)
_ROLE = "You write teaching material that is correct, clear and complete. Answer with one JSON object and nothing else."


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        ask: the request, with {topic}, {field}, {audience}, {style} to fill in; a rewrite's has {style} and {source}.
        schema: the JSON schema of the answer.
        render: the text of an answer that follows the schema.
    """

    name: KindName
    ask: str
    schema: dict[str, Any]
    render: Callable[[dict[str, Any]], str]

    def messages(self, cell: Cell, source: str = "") -> list[dict[str, str]]:
        """The conversation to send to the teacher."""
        *fields, topic = cell.topic.path
        words = {"topic": topic, "audience": cell.audience, "style": cell.style, "source": source}
        field = ", ".join(name.replace("_", " ") for name in fields) or "general"
        return [
            {"role": "system", "content": _ROLE},
            {"role": "user", "content": self.ask.format(field=field, **words)},
        ]


def _text(longest: int, shortest: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def _list(items: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _textbook(answer: dict[str, Any]) -> str:
    sections = [f"## {_line(part['heading'])}\n\n{part['text'].strip()}" for part in answer["sections"]]
    return "\n\n".join([f"# {_line(answer['title'])}", *sections])


def _exercise(answer: dict[str, Any]) -> str:
    steps = "\n".join(f"{number}. {_unnumbered(step)}" for number, step in enumerate(answer["steps"], 1))
    return f"Exercise. {answer['problem'].strip()}\n\nSolution.\n{steps}\n\nAnswer: {answer['answer'].strip()}"


def _python(answer: dict[str, Any]) -> str:
    tests = "\n".join(answer["tests"])
    return f"{answer['task'].strip()}\n\n```python\n{answer['solution'].strip()}\n```\n\n```python\n{tests}\n```"


def _qa(answer: dict[str, Any]) -> str:
    return "\n\n".join(f"Question: {p['question'].strip()}\nAnswer: {p['answer'].strip()}" for p in answer["pairs"])


def _dialogue(answer: dict[str, Any]) -> str:
    return "\n\n".join(f"{turn['speaker']}: {_line(turn['text'])}" for turn in answer["turns"])


def _rewrite(answer: dict[str, Any]) -> str:
    return f"# {_line(answer['title'])}\n\n{answer['text'].strip()}"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _unnumbered(step: str) -> str:
    """A step without the number that many a teacher writes before it."""
    return re.sub(r"^(?:(?:step\s+)?\d{1,2}[.):]\s+)+(?=\S)", "", _line(step), flags=re.I)


_SPEAKER = {"type": "string", "enum": ["Teacher", "Student"]}
KINDS: dict[KindName, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "textbook",
            "Write a section of a textbook about {topic} ({field}) for {audience}. How to write it: {style}. "
            "Give it a title and two or three parts, each with a heading and at least one full paragraph.",
            _object(title=_text(120), sections=_list(_object(heading=_text(120), text=_text(1800, 80)), 1, 4)),
            _textbook,
        ),
        Kind(
            "exercise",
            "Set an exercise about {topic} ({field}) for {audience}. How to write it: {style}. "
            "Give the problem with everything needed to solve it, the solution in steps, and the final answer alone.",
            _object(problem=_text(900, 30), steps=_list(_text(500, 5), 2, 8), answer=_text(300)),
            _exercise,
        ),
        Kind(
            "python",
            "Set a Python exercise about {topic} ({field}) for {audience}. How to write the task: {style}. "
            "Give the task, a solution (functions; the standard library only; nothing read or printed), "
            "and three to six tests, each one line such as: assert double(4) == 8",
            _object(task=_text(900, 30), solution=_text(1800, 20), tests=_list(_text(200, 8), 2, 8)),
            _python,
        ),
        Kind(
            "qa",
            "Write three questions about {topic} ({field}) that {audience} may ask, each with a complete answer. "
            "How to answer: {style}.",
            _object(pairs=_list(_object(question=_text(300, 10), answer=_text(1200, 2)), 1, 5)),
            _qa,
        ),
        Kind(
            "dialogue",
            "Write a dialogue between a teacher and a student, who is {audience}, about {topic} ({field}). "
            "How the teacher leads it: {style}. Six to ten turns; the student understands it in the end.",
            _object(turns=_list(_object(speaker=_SPEAKER, text=_text(600, 2)), 4, 12)),
            _dialogue,
        ),
        Kind(
            "rewrite",
            "Rewrite the text below for {audience}, in your own words, as a clear passage with a title. Keep every "
            "fact, add none, leave out advertising and navigation. How to write it: {style}.\n\nThe text:\n{source}",
            _object(title=_text(120), text=_text(4000, 80)),
            _rewrite,
        ),
    )
}
