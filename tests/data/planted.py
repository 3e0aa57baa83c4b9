"""Documents with planted duplicates, and with what only looks like one; deterministic, made of invented words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datatrove.data import Document

from phial.data.dedup import DedupConfig, DropDuplicates, Embed, dedup_stage

_SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo yu zan bre cli dro flu gra sti tor ple".split()


class Planted(NamedTuple):
    """A corpus in two sources, and for each kind of plant the (original, copy) ids."""

    documents: list[Document]
    pairs: dict[str, list[tuple[str, str]]]


def vocabulary(rng: random.Random, size: int = 4000) -> list[str]:
    return ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(size)]


def sentence(rng: random.Random, words: Sequence[str]) -> str:
    chosen = rng.choices(words, k=rng.randint(8, 22))
    return " ".join(chosen).capitalize() + rng.choice(".?!.") + " "


def paragraphs(rng: random.Random, words: Sequence[str], count: int = 5) -> list[str]:
    return ["".join(sentence(rng, words) for _ in range(4)).strip() for _ in range(count)]


COPIES = ("exact", "white space and case", "one sentence changed", "paragraph appended")
LOOKALIKES = ("boilerplate shared", "template shared")


def planted(seed: int, each: int) -> Planted:
    """`each` originals with a copy for every kind in COPIES, and `each` pairs for every kind in LOOKALIKES."""
    rng = random.Random(seed)
    words = vocabulary(rng)
    boilerplate = paragraphs(rng, words, 2)
    template = paragraphs(rng, words, 3)
    documents: list[Document] = []
    pairs: dict[str, list[tuple[str, str]]] = {}

    def add(text: str, source: str) -> str:
        identifier = f"{source}/{len(documents):06d}"
        documents.append(Document(text, identifier, metadata={"source": source}))
        return identifier

    for kind in COPIES:
        for _ in range(each):
            text = paragraphs(rng, words)
            original = add("\n\n".join(text), "books")
            pairs.setdefault(kind, []).append((original, add(changed(rng, words, text, kind), "web")))
    for kind in LOOKALIKES:
        for _ in range(each):
            two = [lookalike(rng, words, boilerplate, template, kind) for _ in range(2)]
            pairs.setdefault(kind, []).append((add(two[0], "books"), add(two[1], "web")))
    rng.shuffle(documents)
    return Planted(documents, pairs)


def changed(rng: random.Random, words: Sequence[str], text: list[str], kind: str) -> str:
    """The paragraphs as a copy of this kind."""
    if kind == "white space and case":
        return "\n \n".join(text).upper().replace(" ", "  ") + "\n"
    if kind == "one sentence changed":
        place = rng.randrange(len(text))
        sentences = re.split(r"(?<=[.?!]) ", text[place])
        sentences[rng.randrange(len(sentences))] = sentence(rng, words).strip()
        return "\n\n".join([*text[:place], " ".join(sentences), *text[place + 1 :]])
    if kind == "paragraph appended":
        return "\n\n".join([*text, paragraphs(rng, words, 1)[0][:300]])
    return "\n\n".join(text)


def lookalike(rng: random.Random, words: Sequence[str], boilerplate: list[str], template: list[str], kind: str) -> str:
    """A page of its own between the same navigation and footer, or the same form filled with other words."""
    if kind == "boilerplate shared":
        return "\n\n".join([boilerplate[0], *paragraphs(rng, words, 3), boilerplate[1]])
    fixed = re.split(r"(?<=[.?!]) ", " ".join(template))
    return " ".join(f"{line} {sentence(rng, words).strip()}" for line in fixed)


def shares(documents: Sequence[Document], tasks: int) -> list[list[Document]]:
    """The documents as `tasks` readers would give them, copies, so that a run does not mark the originals."""
    return [
        [Document(d.text, d.id, metadata=dict(d.metadata)) for d in documents[task::tasks]] for task in range(tasks)
    ]


class Dropped:
    """An exclusion writer that keeps what it is given."""

    def __init__(self) -> None:
        self.documents: list[Document] = []

    def __enter__(self) -> Dropped:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.documents.append(document)


def deduplicate(
    config: DedupConfig,
    folder: Path,
    documents: Sequence[Document],
    tasks: int = 3,
    sources: Sequence[str] = ("books", "web"),
    embed: Embed | None = None,
    ranks: Iterable[int] | None = None,
) -> tuple[list[Document], list[Document]]:
    """Runs all passes in this process; (kept, dropped). `ranks`: the order in which the tasks of a pass are run."""
    kept: list[Document] = []
    dropped = Dropped()
    for phase in dedup_stage(config, folder, tasks, sources, embed):
        order = list(ranks) if ranks is not None and phase.tasks == tasks else range(phase.tasks)
        for rank in order:
            data = iter(shares(documents, tasks)[rank]) if phase.reads else None
            for step in phase.steps:
                if isinstance(step, DropDuplicates):
                    step.exclusion_writer = dropped
                data = step.run(data, rank, phase.tasks)
            kept += list(data or ())
    return kept, dropped.documents
