"""Benchmark questions, documents with planted leaks of them, and documents that only look like it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datatrove.data import Document
from tests.data import planted

from phial.data.benchmarks import Item
from phial.data.decontaminate import Decontaminate, DecontaminateConfig, decontaminate_stage

LEAKS = ("verbatim", "lightly paraphrased", "question only", "other case, punctuation and numbers")
CLEAN = ("boilerplate shared", "quotation shared", "rare quotation shared", "one phrase shared", "nothing shared")
_INSTRUCTION = "Read the following problem with care and choose the one answer that fits it best among those below."


class Leaks(NamedTuple):
    """Questions, and for each kind of document those of that kind."""

    items: list[Item]
    documents: dict[str, list[Document]]


def leaks(seed: int, each: int) -> Leaks:
    """A benchmark of 6 x `each` questions, `each` documents for every kind in LEAKS and CLEAN."""
    rng = random.Random(seed)
    words = planted.vocabulary(rng)
    famous = "it was the best of times it was the worst of times it was the age of wisdom"
    rare = [" ".join(rng.choices(words, k=14)) for _ in range(each)]
    questions = [
        " ".join(rng.choices(words, k=rng.randint(14, 60))) + f" {rng.randint(10, 99)} apples?" for _ in range(4 * each)
    ]
    about = [f'Which {words[n]} wrote "{famous}" in {1800 + n} and {words[n + 1]} {words[n + 2]}?' for n in range(each)]
    about += [
        f'In which {words[n]} does "{quote}" stand, and who {words[n + 9]} says it?' for n, quote in enumerate(rare)
    ]
    items = [
        Item("exam", f"exam#{n}", f"{_INSTRUCTION}\n{question}", "one\ntwo\nthree")
        for n, question in enumerate([*questions, *about])
    ]
    around = [planted.paragraphs(rng, words, 2) for _ in range(each * (len(LEAKS) + len(CLEAN)))]
    pages = iter(around)
    found: dict[str, list[Document]] = {}
    for kind in (*LEAKS, *CLEAN):
        for n in range(each):
            question = questions[LEAKS.index(kind) * each + n] if kind in LEAKS else questions[n]
            inside = _inside(rng, words, kind, question, famous, rare[n], items[n])
            page = next(pages)
            document = Document(f"{page[0]}\n{inside}\n{page[1]}", f"{kind}/{n}", metadata={"source": "web"})
            found.setdefault(kind, []).append(document)
    return Leaks(items, found)


def _inside(
    rng: random.Random, words: Sequence[str], kind: str, question: str, famous: str, rare: str, item: Item
) -> str:
    """What a document of this kind has between its own paragraphs."""
    if kind == "verbatim":
        return f"{_INSTRUCTION}\n{question}\none\ntwo\nthree"
    if kind == "lightly paraphrased":
        return _paraphrased(rng, words, question)
    if kind == "other case, punctuation and numbers":
        return "«" + question.upper().replace(" ", " - ") + "»"
    if kind == "boilerplate shared":
        return f"{_INSTRUCTION}\n{' '.join(rng.choices(words, k=30))}"
    if kind == "quotation shared":
        return f"As everybody knows, {famous}, and so on."
    if kind == "rare quotation shared":
        return f"There we read: {rare}. A strange line."
    if kind == "one phrase shared":
        return f"{planted.sentence(rng, words)} {' '.join(question.split()[2:9])} {planted.sentence(rng, words)}"
    return question if kind == "question only" else ""


def _paraphrased(rng: random.Random, words: Sequence[str], question: str) -> str:
    """One word in twelve replaced, one left out, one put in."""
    changed = question.split()
    for place in rng.sample(range(len(changed)), max(1, len(changed) // 12)):
        changed[place] = rng.choice(words)
    if len(changed) > 24:
        del changed[len(changed) // 2]
        changed.insert(3, rng.choice(words))
    return " ".join(changed)


def decontaminate(
    config: DecontaminateConfig,
    folder: Path,
    documents: Sequence[Document],
    items: Sequence[Item],
    tasks: int = 2,
) -> tuple[list[Document], list[Document]]:
    """Runs all passes in this process; (kept, dropped)."""
    kept: list[Document] = []
    dropped = planted.Dropped()
    for phase in decontaminate_stage(config, folder, tasks, items):
        for rank in range(phase.tasks):
            data = iter(planted.shares(documents, tasks)[rank]) if phase.reads else None
            for step in phase.steps:
                if isinstance(step, Decontaminate):
                    step.exclusion_writer = dropped
                data = step.run(data, rank, phase.tasks)
            kept += list(data or ())
    return kept, dropped.documents
