"""Duplicates and leaked benchmark questions planted in the corpus of bench/data.py, with decoys to be left alone.

Each carries how it was planted, so that precision and recall are counted by kind.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

from corpus_noise import Known

QUOTATIONS = [
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, "
    "and dedicated to the proposition that all men are created equal.",
    "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator "
    "with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles.",
    "Congress shall make no law respecting an establishment of religion, or prohibiting the free exercise thereof; or "
    "abridging the freedom of speech, or of the press.",
]
FORMS = [
    "Choose the best answer to each of the following questions. For each question, mark A, B, C or D on your sheet.",
    "Question: Which of the following statements is correct? A. B. C. D. All of the above. None of the above.",
    "This question refers to the following information. Read the passage and answer the questions below.",
    "Show your work step by step and write the final answer after four hash signs. Calculators are not allowed.",
]
_WORDS = {
    "how many": "what number of", "each": "every", "buys": "purchases", "also": "too", "then": "afterwards",
    "per day": "a day", "total": "sum", "which of the following": "which one of these", "most likely": "probably",
    "because": "since", "gives": "hands", "costs": "is priced at", "find": "determine", "start": "begin",
}  # fmt: skip


class Planted(NamedTuple):
    """A planted document: `how`, and `of` what (a corpus_id, or a benchmark's item); whether it must be found."""

    text: str
    how: str
    of: str
    found: bool


def _edited(text: str, share: float, rng: random.Random) -> str:
    """A share of the words replaced by other words of the same text, the white space kept."""
    pieces = re.split(r"(\s+)", text)
    words = [p for p in pieces if p and not p.isspace()]
    for i in range(0, len(pieces), 2):
        if pieces[i] and rng.random() < share:
            pieces[i] = rng.choice(words)
    return "".join(pieces)


def duplicates(known: list[Known], count: int, seed: int) -> list[Planted]:
    """Copies of `known` texts in eight ways; `found` is whether a definition of sameness at 0.7 should see it."""
    rng = random.Random(f"{seed} duplicates")
    made: list[Planted] = []
    for number, one in enumerate(rng.sample(known, min(count, len(known)))):
        other = rng.choice(known)
        banner = rng.choice(FORMS)
        half = len(one.text) // 2
        ways = [
            ("exact", one.text, True),
            ("case and space", re.sub(r"\s+", " ", one.text).upper(), True),
            ("edited 1 %", _edited(one.text, 0.01, rng), True),
            ("edited 3 %", _edited(one.text, 0.03, rng), True),
            ("header and footer", f"{banner}\n\n{one.text}\n\n{banner}", True),
            ("first 90 %", one.text[: len(one.text) * 9 // 10], True),
            ("decoy: half of it", one.text[:half] + "\n\n" + other.text[len(other.text) // 2 :], False),
            ("decoy: same words", " ".join(rng.sample(one.text.split(), len(one.text.split()))), False),
        ]
        how, text, found = ways[number % len(ways)]
        made.append(Planted(text, how, one.id, found))
    return made


class Question(NamedTuple):
    """A benchmark's item: its question, and its answer as a page would print it."""

    id: str
    question: str
    answer: str


def questions(folder: Path) -> list[Question]:
    """Items of GSM8K and MMLU below a folder, those whose question is long enough to be told apart (12 words)."""
    found: list[Question] = []
    for name in ("gsm8k", "mmlu"):
        path = folder / name / "test.jsonl.gz"
        if not path.exists():
            continue
        for number, line in enumerate(gzip.decompress(path.read_bytes()).decode("utf-8").strip().split("\n")):
            item = json.loads(line)
            answer = item["answer"]
            if "choices" in item:
                answer = "\n".join(f"{'ABCD'[i]}. {choice}" for i, choice in enumerate(item["choices"]))
            if len(item["question"].split()) >= 12:
                found.append(Question(f"{name}/{number}", item["question"], str(answer)))
    return found


def _paraphrased(text: str, rng: random.Random) -> str:
    """Lightly: some phrases for others, numbers kept, one word in twenty dropped."""
    for old, new in _WORDS.items():
        text = re.sub(rf"\b{old}\b", new, text, flags=re.IGNORECASE)
    return " ".join(word for word in text.split(" ") if word[:1].isdigit() or rng.random() > 0.05)


def _reflowed(text: str, rng: random.Random) -> str:
    """Other quotes, case and line breaks, as a scraped page would have it."""
    text = text.replace("'", "\u2019").replace('"', "\u201d")
    words = (text.upper() if rng.random() < 0.5 else text.lower()).split()
    return "\n".join(" ".join(words[i : i + 6]) for i in range(0, len(words), 6))


def leaks(items: list[Question], hosts: list[Known], count: int, seed: int) -> list[Planted]:
    """Pages with an item of a benchmark in their middle, in four ways, and three kinds that only look like it."""
    rng = random.Random(f"{seed} leaks")
    made: list[Planted] = []
    for number in range(count if items else 0):
        item, host = rng.choice(items), rng.choice(hosts)
        ways = [
            ("verbatim", f"{item.question}\n{item.answer}", True),
            ("question only", item.question, True),
            ("paraphrased", _paraphrased(item.question, rng), True),
            ("reflowed", _reflowed(item.question, rng), True),
            ("decoy: form", "\n".join(rng.sample(FORMS, 3)), False),
            ("decoy: quotation", rng.choice(QUOTATIONS), False),
            ("decoy: same words", " ".join(rng.sample(item.question.split(), len(item.question.split()))), False),
        ]
        how, text, found = ways[number % len(ways)]
        cut = min(1500, len(host.text) // 2)
        page = f"{host.text[:cut]}\n\n{text}\n\n{host.text[cut : 2 * cut]}"
        made.append(Planted(page, how, item.id, found))
    return made
