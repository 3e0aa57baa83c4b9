"""Questions for the speculation benchmark, made of the texts in the data folder; the same ones on every run.

Grounded: most of the answer stands in the prompt (summarise a passage, answer out of passages, edit a program).
Free: nothing of it does. Texts are cut at whole sentences, programs are those long enough to be worth an edit.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSAGE_CHARACTERS = 1500
NO_PROSE = r"https?:|doi|#|\(\d{4}\)|\\"  # references, headings, formulas


@dataclass(frozen=True)
class Prompt:
    """One question: what kind it is of, and the user's message."""

    kind: str
    text: str


def grounded(data: Path, each: int = 8) -> list[Prompt]:
    """`each` questions of every grounded kind."""
    return [*_summaries(data, each), *_answers(data, each), *_edits(data, each)]


def free(data: Path, count: int = 12) -> list[Prompt]:
    """Questions that bring no text along: first turns of MT-Bench that ask for writing, knowledge and opinion."""
    rows = _lines(data / "bench" / "mt_bench" / "question.jsonl")
    wanted = [row for row in rows if row["category"] in {"writing", "roleplay", "stem", "humanities"}]
    return [Prompt("free", row["turns"][0]) for row in _sample(wanted, count)]


def _summaries(data: Path, count: int) -> Iterator[Prompt]:
    books = ("world-history", "us-history", "microbiology", "astronomy")
    for book in books:
        rows = _lines(data / "corpus" / "openstax-ccby" / f"{book}.jsonl.gz")
        passages = [_passage(row["text"][PASSAGE_CHARACTERS:]) for row in rows]
        prose = [text for text in passages if len(text) > PASSAGE_CHARACTERS * 0.8 and not re.search(NO_PROSE, text)]
        for passage in _sample(prose, count // len(books)):
            yield Prompt("summarise", f"Summarize the following text.\n\n{passage}")


def _answers(data: Path, count: int) -> Iterator[Prompt]:
    rows = _lines(data / "bench" / "agieval" / "lsat-rc.jsonl.gz")
    by_passage = {row["passage"]: row for row in rows}
    for row in _sample(list(by_passage.values()), count):
        passage, question = _passage(row["passage"]), row["question"]
        yield Prompt(
            "answer from passages",
            f"Passage:\n{passage}\n\nQuestion: {question}\n"
            "Quote the sentences of the passage that answer the question.",
        )


def _edits(data: Path, count: int) -> Iterator[Prompt]:
    rows = _lines(data / "bench" / "mbpp" / "mbpp.jsonl.gz")
    programs = [row["code"].replace("\r\n", "\n").replace("\t", "    ") for row in rows]
    editable = [(code, name) for code in programs if 10 <= code.count("\n") <= 30 and (name := _variable(code))]
    for code, name in _sample(editable, count):
        yield Prompt(
            "edit code",
            f"Rename the variable `{name}` to `{name}_value` in this program and print the whole program.\n\n"
            f"```python\n{code}\n```",
        )


def _variable(code: str) -> str | None:
    """The variable a program assigns to most often; None where it is no valid Python or has none."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    stored = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return stored.most_common(1)[0][0] if stored else None


def _passage(text: str) -> str:
    """The first sentences of a text, about PASSAGE_CHARACTERS of them."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    passage = ""
    for sentence in sentences[1:]:  # the first may begin in the middle
        if len(passage) + len(sentence) > PASSAGE_CHARACTERS:
            break
        passage += sentence + " "
    return passage.strip()


def _lines(path: Path) -> list[dict[str, Any]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _sample(rows: list[Any], count: int) -> list[Any]:
    return random.Random(1).sample(rows, min(count, len(rows)))
