"""Decontamination: which leaks are caught, what is left alone, what the index takes."""

from __future__ import annotations

import gzip
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from tests.data import leaks

from phial.data.benchmarks import ANSWER_FIELDS, QUESTION_FIELDS, Benchmark, Item, items_of, read_items
from phial.data.decontaminate import CountCommon, Decontaminate, DecontaminateConfig, decontaminate_stage
from phial.data.overlap import Matcher, count_texts
from phial.data.question_index import Index
from phial.errors import ArgumentError, PhialError

RECALL = {"verbatim": 1.0, "question only": 1.0, "other case, punctuation and numbers": 1.0, "lightly paraphrased": 0.9}
QUESTION = "How many litres of milk does a farmer sell in a week when his nine cows give eleven litres each every day?"


def matcher(*questions: str, coverage: float = 0.5) -> Matcher:
    return Matcher(Index(items_of("exam", questions)), coverage)


def test_planted_leaks_are_caught_and_lookalikes_are_not(tmp_path: Path) -> None:
    corpus = leaks.leaks(seed=1, each=40)
    documents = list(chain(*corpus.documents.values()))
    _, dropped = leaks.decontaminate(DecontaminateConfig(), tmp_path, documents, corpus.items)
    found = {document.id for document in dropped}
    for kind, bound in RECALL.items():
        assert np.mean([d.id in found for d in corpus.documents[kind]]) >= bound, kind
    for kind in leaks.CLEAN:
        assert [d.id for d in corpus.documents[kind] if d.id in found] == [], "precision 1"


def test_a_dropped_document_names_the_question(tmp_path: Path) -> None:
    document = Document(f"A page.\n{QUESTION}\nMore.", "page", metadata={})
    items = list(items_of("exam", ["What else is there to know about the age of the universe and its size?", QUESTION]))
    _, dropped = leaks.decontaminate(DecontaminateConfig(), tmp_path, [document], items, tasks=1)
    assert dropped[0].metadata == {
        "filter_reason": "contaminated: exam",
        "contaminated_by": "exam#1",
        "contamination": 1.0,
    }


def test_the_result_does_not_depend_on_the_number_of_tasks(tmp_path: Path) -> None:
    corpus = leaks.leaks(seed=2, each=10)
    documents = list(chain(*corpus.documents.values()))
    results = []
    for tasks in (1, 3):
        folder = tmp_path / str(tasks)
        kept, dropped = leaks.decontaminate(DecontaminateConfig(), folder, documents, corpus.items, tasks)
        results.append((sorted(d.id for d in kept), sorted((d.id, str(d.metadata)) for d in dropped)))
    assert results[0] == results[1]


def test_a_short_question_counts_only_as_a_whole() -> None:
    short = matcher("who sang the song about the yellow river")
    assert [one.coverage for one in short.find(["He asked: Who sang the song about the Yellow River?"])] == [1.0]
    assert short.find(["Who sang the song about the yellow moon?"]) == []


def test_words_of_a_question_scattered_over_a_long_text_are_no_leak() -> None:
    words = QUESTION.split()
    parts = [" ".join(words[at : at + 5]) for at in range(0, len(words), 5)]
    near, far = " and ".join(parts), (" filler" * 60 + " ").join(parts)
    assert len(matcher(QUESTION).find([near])) == 1
    assert matcher(QUESTION).find([far]) == []


def test_a_phrase_that_a_question_repeats_covers_it_once() -> None:
    question = "colander can be used as a receptacle when washing fruit can be used as a receptacle when washing cars"
    assert matcher(question).find(["This can be used as a unit of length, and the other as well."]) == []
    assert len(matcher(question).find([question])) == 1


def test_copies_of_a_question_do_not_make_it_common() -> None:
    index = Index(items_of("exam", [QUESTION]))
    copies = [f"page {n}: {QUESTION}" for n in range(50)]
    parts = [f"page {n}: {' '.join(QUESTION.split()[:12])}" for n in range(50)]
    assert count_texts(index, copies).max() == 0
    counts = count_texts(index, parts)
    assert counts.max() == 50
    assert len(Matcher(index, 0.5, counts > 10).find(copies[:1])) == 1
    assert len(Matcher(index, 0.5).find(parts[:1])) == 1
    assert Matcher(index, 0.5, counts > 10).find(parts[:1]) == []


def test_a_whole_question_is_found_though_all_its_words_are_common() -> None:
    index = Index(items_of("exam", [QUESTION]))
    halves = [" ".join(QUESTION.split()[part]) for part in (slice(None, 14), slice(7, None))]
    common = count_texts(index, halves * 11) > 10
    assert common.all()
    found = Matcher(index, 0.5, common)
    assert found.find(halves) == []
    assert [one.coverage for one in found.find([f"A page: {QUESTION}"])] == [1.0]


def test_ngrams_do_not_span_two_texts() -> None:
    index = Index(items_of("exam", [QUESTION]))
    words = QUESTION.split()
    parts = [" ".join(words[:10]), " ".join(words[10:])]
    together = index.hits(parts)
    assert [len(index.hits([part]).texts) for part in parts] == np.bincount(together.texts).tolist()


def test_a_question_too_common_by_itself_is_found_with_its_answers() -> None:
    stem = "Which of the following statements about the matter is the most accurate one?"
    items = [
        Item("exam", f"exam#{n}", stem, f"answer{n} one two\nother{n} three four\nlast{n} five") for n in range(30)
    ]
    found = Matcher(Index(items), 0.5)
    assert found.find([stem]) == []
    assert [found.index.labels[one.item] for one in found.find([f"{stem} {items[7].answers}"])] == ["exam#7"]


def test_questions_that_cannot_be_found_are_told() -> None:
    index = Index(items_of("exam", ["Why not?", QUESTION, QUESTION]))
    assert (index.unmatched, index.labels) == (["exam#0"], ["exam#1"])


def test_an_index_takes_no_more_than_it_says_and_is_read_back(tmp_path: Path) -> None:
    corpus = leaks.leaks(seed=3, each=200)
    index = Index(corpus.items)
    assert 0 < index.nbytes <= 48 * len(index.outside) + 300 * len(index.labels)
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz")
    texts = [d.text for d in corpus.documents["verbatim"]]
    assert Matcher(loaded, 0.5).find(texts) == Matcher(index, 0.5).find(texts)
    assert (loaded.labels, loaded.benchmarks, loaded.ngrams) == (index.labels, index.benchmarks, index.ngrams)


def test_batches_do_not_change_what_is_found() -> None:
    corpus = leaks.leaks(seed=4, each=10)
    texts = [d.text for d in chain(*corpus.documents.values())]
    found = Matcher(Index(corpus.items), 0.5)
    together = found.find(texts)
    alone = [one._replace(text=n) for n, text in enumerate(texts) for one in found.find([text])]
    assert together == alone and together


RECORDS = [{"question": "What is it?", "choices": ["a", "b"], "id": 1}, {"question": "And this?", "choices": ["c"]}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("a.json", json.dumps(RECORDS)),
        ("b.json", json.dumps({"version": 1, "examples": RECORDS})),
        ("a.csv", 'question,choices\nWhat is it?,"a\nb"\nAnd this?,c\n'),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_benchmark_files_of_every_kind(tmp_path: Path, name: str, content: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    items = list(read_items(Benchmark(name="exam", files=(str(path),))))
    assert items == [Item("exam", "exam#0", "What is it?", "a\nb"), Item("exam", "exam#1", "And this?", "c")]


def test_fields_may_be_named_with_dots(tmp_path: Path) -> None:
    record = {"question": {"stem": "Why?", "choices": [{"label": "A", "text": "so"}]}, "note": "unused"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    known = list(read_items(Benchmark(name="exam", files=(str(tmp_path / "*.jsonl"),))))
    assert known == [Item("exam", "exam#0", "Why?", "so")]
    named = Benchmark(
        name="exam", files=(str(tmp_path / "a.jsonl"),), fields=("note",), answer_fields=("question.stem",)
    )
    assert list(read_items(named)) == [Item("exam", "exam#0", "unused", "Why?")]
    assert not set(QUESTION_FIELDS) & set(ANSWER_FIELDS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"unknown": "x"}', "has no text in a known name of a question; it has unknown"),
        ("a.jsonl", b"{", "not JSON"),
        ("a.json", b'{"a": 1}', "no list of records"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.parquet", b"x", "files are not read"),
    ],
)
def test_a_file_that_is_no_benchmark_is_a_mistake(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhialError, match=message):
        list(read_items(Benchmark(name="exam", files=(str(tmp_path / name),))))


def test_missing_files_and_passes_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="no file is"):
        list(read_items(Benchmark(name="exam", files=(str(tmp_path / "*.jsonl"),))))
    with pytest.raises(ArgumentError, match="no benchmark"):
        decontaminate_stage(DecontaminateConfig(), tmp_path, 1)
    with pytest.raises(ArgumentError, match="n-grams of"):
        Index(items_of("exam", [QUESTION]), [2])
    with pytest.raises(PhialError, match="index.npz is missing"):
        list(CountCommon(tmp_path).run(iter(()), 0, 1))
    Index(items_of("exam", [QUESTION])).save(tmp_path / "index.npz")
    with pytest.raises(PhialError, match="00000.bin is missing"):
        list(Decontaminate(DecontaminateConfig(), tmp_path, 1).run(iter(()), 0, 1))
