"""`phial data dedup` and `phial data decontaminate`: a stage's folder in, a stage's folder out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from tests.cli.conftest import Phial
from tests.data import leaks, planted

from phial.data.document import read_documents
from phial.data.stage import Keep, dropped_files, summary
from phial.manifest import write_json


def finished(folder: Path, documents: Sequence[Document], tasks: int = 2) -> Path:
    """A stage that kept these documents."""
    for rank, share in enumerate(planted.shares(documents, tasks)):
        list(Keep(folder).run(iter(share), rank, tasks))
    write_json(folder / "stage.json", {"name": "clean", **summary(folder), "config": {}})
    return folder


def reasons(folder: Path) -> dict[str, tuple[str, str]]:
    """Of each dropped document the reason, and what it names."""
    documents = [d for path in dropped_files(folder) for d in read_documents(path)]
    named = ("duplicate_of", "contaminated_by")
    return {
        d.id: (d.metadata["filter_reason"], next(d.metadata[key] for key in named if key in d.metadata))
        for d in documents
    }


def test_dedup_drops_copies_and_says_how_many(phial: Phial, tmp_path: Path) -> None:
    corpus = planted.planted(seed=1, each=3)
    folder = finished(tmp_path / "clean", corpus.documents)
    ended = phial("data", "dedup", str(folder), "-o", str(tmp_path / "dedup"), "--json")
    assert ended.status == 0, ended.err
    result: dict[str, Any] = json.loads(ended.out)
    assert result["dropped"] == {"duplicate: exact": 6, "duplicate: near": 6}
    assert result["config"]["sources"] == ["books", "web"]
    found = reasons(tmp_path / "dedup")
    assert {copy: original for copy, (_, original) in found.items()} == {
        copy: original for kind in planted.COPIES for original, copy in corpus.pairs[kind]
    }


def test_dedup_keeps_the_sources_named_first(phial: Phial, tmp_path: Path) -> None:
    corpus = planted.planted(seed=2, each=2)
    folder = finished(tmp_path / "clean", corpus.documents)
    ended = phial("data", "dedup", str(folder), "-o", str(tmp_path / "dedup"), "--sources", "web", "--exact")
    assert ended.status == 0, ended.err
    assert {name.split("/")[0] for name in reasons(tmp_path / "dedup")} == {"books"}
    assert "duplicate: exact 4" in ended.out


def test_decontaminate_names_the_question(phial: Phial, tmp_path: Path) -> None:
    corpus = leaks.leaks(seed=1, each=3)
    documents = [d for kind in corpus.documents.values() for d in kind]
    folder = finished(tmp_path / "clean", documents)
    questions = tmp_path / "exam.jsonl"
    records = [{"question": item.question, "answer": item.answers} for item in corpus.items]
    questions.write_text("\n".join(map(json.dumps, [*records, {"question": "Why?"}])))
    command = ["data", "decontaminate", str(folder), "-o", str(tmp_path / "out"), "-b", f"exam={questions}"]
    ended = phial(*command)
    assert ended.status == 0, ended.err
    assert "1 of 19 questions are too short or too common to be found: exam#18" in ended.err
    found = reasons(tmp_path / "out")
    assert found["verbatim/2"] == ("contaminated: exam", "exam#2")
    assert {name.split("/")[0] for name in found} == set(leaks.LEAKS)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["dedup", "nowhere", "-o", "out"], "holds no finished stage"),
        (["dedup", "clean", "-o", "out", "--sources", "blog"], "no source is blog"),
        (["decontaminate", "clean", "-o", "out", "-b", "gsm8k"], "--benchmark gsm8k"),
        (["decontaminate", "clean", "-o", "out", "-b", "gsm8k=none*.jsonl"], "no file is"),
    ],
)
def test_mistakes_are_told_in_a_line(phial: Phial, tmp_path: Path, command: list[str], message: str) -> None:
    finished(tmp_path / "clean", [Document("text", "a", metadata={"source": "books"})])
    places = [str(tmp_path / part) if part in ("nowhere", "clean", "out") else part for part in command]
    ended = phial("data", *places)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert not (tmp_path / "out").exists()
