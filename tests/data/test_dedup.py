"""Deduplication: what is found, what is left alone, which is kept, and within what memory."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from numpy.typing import NDArray
from tests.data import planted

from phial.data import duplicates
from phial.data.dedup import DedupConfig, dedup_stage
from phial.data.minhash import MinHash, exact_digest, likeness
from phial.data.word_hashes import BATCH_CHARACTERS, word_hashes
from phial.errors import ArgumentError, PhialError

BOUNDS = {"exact": 1.0, "white space and case": 1.0, "one sentence changed": 0.98, "paragraph appended": 0.98}


def document(identifier: str, text: str, source: str = "books") -> Document:
    return Document(text, identifier, metadata={"source": source})


def outcome(result: tuple[list[Document], list[Document]]) -> tuple[list[str], list[tuple[str, str, str]]]:
    kept, dropped = result
    return sorted(d.id for d in kept), sorted(
        (d.id, d.metadata["filter_reason"], d.metadata["duplicate_of"]) for d in dropped
    )


def test_planted_duplicates_are_found_and_lookalikes_are_not(tmp_path: Path) -> None:
    corpus = planted.planted(seed=1, each=100)
    _, dropped = planted.deduplicate(DedupConfig(), tmp_path, corpus.documents)
    found = {d.id: d.metadata["duplicate_of"] for d in dropped}
    for kind, bound in BOUNDS.items():
        hits = [found.get(copy) == original for original, copy in corpus.pairs[kind]]
        assert np.mean(hits) >= bound, kind
    right = {copy for kind in planted.COPIES for _, copy in corpus.pairs[kind]}
    assert set(found) <= right, "only copies are dropped: precision 1"


def test_reasons_tell_exact_from_near(tmp_path: Path) -> None:
    corpus = planted.planted(seed=2, each=20)
    _, dropped = planted.deduplicate(DedupConfig(), tmp_path, corpus.documents)
    reason = {d.id: d.metadata["filter_reason"] for d in dropped}
    for kind in planted.COPIES:
        expected = "duplicate: exact" if kind in ("exact", "white space and case") else "duplicate: near"
        assert {reason.get(copy, expected) for _, copy in corpus.pairs[kind]} == {expected}


def test_without_near_only_exact_copies_are_dropped(tmp_path: Path) -> None:
    corpus = planted.planted(seed=3, each=20)
    _, dropped = planted.deduplicate(DedupConfig(near=False), tmp_path, corpus.documents)
    exact = {copy for kind in ("exact", "white space and case") for _, copy in corpus.pairs[kind]}
    assert {d.id for d in dropped} == exact


@pytest.mark.parametrize("ranks", [[2, 0, 1], [1, 2, 0]])
def test_the_result_does_not_depend_on_which_task_ran_first(tmp_path: Path, ranks: list[int]) -> None:
    corpus = planted.planted(seed=4, each=20).documents
    first = outcome(planted.deduplicate(DedupConfig(), tmp_path / "a", corpus))
    again = outcome(planted.deduplicate(DedupConfig(), tmp_path / "b", corpus, ranks=ranks))
    assert first == again and first[1]


def test_the_result_depends_neither_on_the_order_of_the_documents_nor_on_the_number_of_tasks(tmp_path: Path) -> None:
    corpus = planted.planted(seed=5, each=20).documents
    first = outcome(planted.deduplicate(DedupConfig(), tmp_path / "a", corpus, tasks=1))
    again = outcome(planted.deduplicate(DedupConfig(), tmp_path / "b", corpus[::-1], tasks=5))
    assert first == again


def test_the_first_source_is_kept_then_the_lowest_id(tmp_path: Path) -> None:
    text = "The same text of more than five words stands in all of them."
    documents = [document(f"web/{n}", text, "web") for n in (3, 1)] + [
        document(f"z/{n}", text, "books") for n in (9, 2)
    ]
    expected = ["web/1", "web/3", "z/2", "z/9"]
    for sources, kept in ((("books", "web"), "z/2"), (("web", "books"), "web/1")):
        result = outcome(planted.deduplicate(DedupConfig(), tmp_path / kept[0], documents, sources=sources))
        dropped = [(i, "duplicate: exact", kept) for i in expected if i != kept]
        assert result == ([kept], dropped)


def chain(rng: random.Random) -> list[Document]:
    """a and b are alike, b and c are alike, a and c are not: each step changes a run of 30 words of 300."""
    words = [f"word{rng.randrange(10**6)}" for _ in range(300)]
    texts = []
    for step in range(3):
        texts.append(" ".join(words))
        words[60 * step : 60 * step + 30] = [f"new{rng.randrange(10**6)}" for _ in range(30)]
    return [document(name, text) for name, text in zip("abc", texts, strict=True)]


def test_in_a_chain_only_what_is_like_a_kept_document_is_dropped(tmp_path: Path) -> None:
    kept, dropped = outcome(planted.deduplicate(DedupConfig(threshold=0.74), tmp_path, chain(random.Random(1))))
    assert kept == ["a", "c"]
    assert dropped == [("b", "duplicate: near", "a")]


def test_texts_without_words_and_empty_ones_are_equal_only_to_the_same(tmp_path: Path) -> None:
    texts = {"a": "", "b": "  \n", "c": "?!", "d": "***", "e": "?!", "f": "word"}
    kept, dropped = outcome(
        planted.deduplicate(DedupConfig(), tmp_path, [document(name, text) for name, text in texts.items()])
    )
    assert kept == ["a", "c", "d", "f"]
    assert [(name, first) for name, _, first in dropped] == [("b", "a"), ("e", "c")]


def test_measured_likeness_is_the_jaccard_similarity() -> None:
    rng = random.Random(7)
    hashes = MinHash(5, 50, 10)
    errors = []
    for changes in range(0, 40, 4):
        words = [f"w{rng.randrange(5000)}" for _ in range(400)]
        other = list(words)
        for place in rng.sample(range(400), changes):
            other[place] = "changed" + str(place)
        one, two = ({tuple(text[i : i + 5]) for i in range(396)} for text in (words, other))
        sketches = hashes([" ".join(words), " ".join(other)]).sketches
        errors.append(likeness(sketches[0], sketches[1:])[0] - len(one & two) / len(one | two))
    assert max(map(abs, errors)) < 4 * np.sqrt(0.25 / 500), "four standard errors of 500 places"


def test_signatures_do_not_depend_on_the_batch() -> None:
    rng = random.Random(3)
    texts = ["", "one", "two words", "a b c d", "a b c d e"] + planted.paragraphs(rng, planted.vocabulary(rng), 20)
    hashes = MinHash(5, 4, 3)
    together = hashes(texts)
    for place, text in enumerate(texts):
        alone = hashes([text])
        assert (alone.sketches[0] == together.sketches[place]).all(), text
        assert (alone.keys[0] == together.keys[place]).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't stop, he said.", "DON’T stop -- he said!"),
        ("It cost 1,250,000 francs", "it cost 1250000 francs"),
        ("the café, naïve", "the cafe\u0301, NAI\u0308VE"),
        ("une café naïve", "une cafe naive"),
        ("five apples", "5 apples"),
        ("ﬁne print", "fine print"),
    ],
)
def test_words_are_the_same_but_for_writing(one: str, other: str) -> None:
    assert word_hashes([one]).hashes.tolist() == word_hashes([other]).hashes.tolist()


def test_words_differ_where_they_are_other_words() -> None:
    hashes = word_hashes(["cat act tac", "1,2 12 1.2", "日本語", "x,1 1,y"])
    assert np.diff(hashes.starts).tolist() == [3, 4, 3, 4]
    assert len(set(hashes.hashes[:3].tolist())) == 3


def test_a_text_longer_than_a_batch_has_the_words_of_its_parts() -> None:
    words = [f"word{n}" for n in range(BATCH_CHARACTERS // 4)]
    text = " ".join(words)
    assert len(text) > 1.5 * BATCH_CHARACTERS
    assert word_hashes([text]).hashes.tolist() == word_hashes(words).hashes.tolist()


def test_exact_digest_sees_every_letter() -> None:
    assert exact_digest("A  b\n") == exact_digest("a B") != exact_digest("a c")


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector by the first word: texts that begin alike mean the same; the rest turns it a little."""
    rows = np.zeros((len(texts), 32), np.float32)
    for row, text in zip(rows, texts, strict=True):
        rng = np.random.default_rng(zlib.crc32(text.split()[0].encode()))
        row[:] = rng.normal(size=32)
        row += 0.05 * np.random.default_rng(len(text)).normal(size=32)
    return rows


def test_semantic_duplicates_name_a_kept_document(tmp_path: Path) -> None:
    rng = random.Random(11)
    words = planted.vocabulary(rng)
    topics = [f"topic{n * n}" for n in range(40)]
    documents = [document(f"{n:03d}", f"{topics[n % 40]} " + planted.paragraphs(rng, words, 1)[0]) for n in range(120)]
    documents.append(document("200", documents[7].text))  # exact, of one that stays
    documents.append(document("201", documents[47].text))  # exact, of one that semantic dedup drops
    config = DedupConfig(semantic_threshold=0.9, semantic_cluster=30)
    kept, dropped = outcome(planted.deduplicate(config, tmp_path, documents, embed=embed))
    assert len(kept) == 40
    assert kept == [f"{n:03d}" for n in range(40)]
    found = {name: (reason, first) for name, reason, first in dropped}
    assert found["047"] == ("duplicate: semantic", "007")
    assert found["201"] == ("duplicate: exact", "007"), "follows 047 to the one that is kept"


def test_semantic_threshold_without_embeddings_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="needs embeddings"):
        dedup_stage(DedupConfig(semantic_threshold=0.9), tmp_path, 1, ["books"])


def test_an_unknown_source_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="'blog', which is not configured"):
        planted.deduplicate(DedupConfig(), tmp_path, [document("a", "text", "blog")])


def test_documents_that_changed_between_the_passes_are_noticed(tmp_path: Path) -> None:
    documents = [document("a", "the same text"), document("b", "the same text")]
    phases = dedup_stage(DedupConfig(), tmp_path, 1, ["books"])
    for phase in phases[:-1]:
        for rank in range(phase.tasks):
            list(phase.steps[0].run(iter(documents) if phase.reads else None, rank, phase.tasks))
    with pytest.raises(PhialError, match="changed between"):
        list(phases[-1].steps[0].run(iter([documents[0], document("c", "the same text")]), 0, 1))
    with pytest.raises(PhialError, match="changed between"):
        list(phases[-1].steps[0].run(iter(documents[:1]), 0, 1))


def test_more_tasks_than_files_may_be_open(tmp_path: Path) -> None:
    corpus = planted.planted(seed=8, each=60).documents
    few = outcome(planted.deduplicate(DedupConfig(bands=4, rows=4), tmp_path / "few", corpus, tasks=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        many = outcome(planted.deduplicate(DedupConfig(bands=4, rows=4), tmp_path / "many", corpus, tasks=300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert few == many


def test_keys_read_in_parts_and_rows_in_blocks_give_the_same_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = planted.planted(seed=6, each=20).documents
    copies = [document(f"copy {n}", d.text) for n, d in enumerate(corpus[:30] * 2)]  # keys that four and more share
    config = DedupConfig()
    planted.deduplicate(config, tmp_path, corpus + copies)
    with config.reader(tmp_path, 3) as files:

        def pairs(band: int, memory: int) -> list[tuple[int, int]]:
            found = np.concatenate(list(duplicates.similar_pairs(files, band, 0.7, memory)))
            return sorted(map(tuple, found.tolist()))

        whole = [pairs(band, 1 << 30) for band in (0, 1, 20)]
        monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 2)
        assert [pairs(band, 2000) for band in (0, 1, 20)] == whole
        assert min(map(len, whole)) > 60


def test_documents_that_meet_too_many_unlike_them_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    words = planted.vocabulary(rng)
    shared = "".join(planted.paragraphs(rng, words, 3))
    texts = [shared + "".join(planted.paragraphs(rng, words, 2)) for _ in range(60)]
    config = DedupConfig(bands=40, rows=1)
    planted.deduplicate(config, tmp_path, [document(f"{n:02d}", text) for n, text in enumerate(texts)], tasks=1)
    with config.reader(tmp_path, 1) as files:
        sizes = np.unique(np.concatenate([rows[:, 2] for _, rows in files.chunks("keys")]), return_counts=True)[1]
        monkeypatch.setattr(duplicates, "_ROUNDS", 3)
        found = list(duplicates.similar_pairs(files, 1, 1.0, 1 << 20))
    rest = [size - 3 for size in sizes.tolist() if size >= 5]  # no two are alike: each round takes one of each key
    assert found[-1] == duplicates.Uncompared(sum(rest)) and rest


MEMORY_PROGRAM = """
import json, random, sys
from pathlib import Path
from datatrove.data import Document
from phial.data.dedup import DedupConfig, dedup_stage
import sklearn.cluster
from phial.data.word_hashes import word_hashes
word_hashes(["the tables are made"])

def documents(count):
    rng = random.Random(1)
    words = [f"w{n}" for n in range(3000)]
    for n in range(count):
        if n % 10 == 0:
            text = " ".join(rng.choices(words, k=600))
        yield Document(text + f" copy {n}" if n % 10 < 2 else " ".join(rng.choices(words, k=600)), f"{n:08d}",
                       metadata={"source": "s"})

count, folder = int(sys.argv[1]), Path(sys.argv[2])
characters = sum(len(d.text) for d in documents(count))
def resident(kind):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0])

start = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
for phase in dedup_stage(DedupConfig(memory_mb=1, bands=8, rows=4), folder, 1, ["s"]):
    for rank in range(phase.tasks):
        out = phase.steps[0].run(documents(count) if phase.reads else None, rank, phase.tasks)
        kept = sum(1 for _ in out)
peak = resident("VmHWM") - start
print(json.dumps({"characters": characters, "kept": kept, "peak": peak * 1024}))
"""


def test_memory_stays_under_the_bound_on_a_corpus_larger_than_it(tmp_path: Path) -> None:
    count = 24_000
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(count), str(tmp_path)], check=True, capture_output=True, text=True
    )
    found = json.loads(run.stdout)
    bound = 33 * 2**20 + 32 * count + 120 * count // 5 + 1000  # the greatest of the passes: see phial.data.dedup
    assert found["characters"] > 1.5 * bound, "the corpus would not fit"
    assert found["peak"] < bound
    assert found["kept"] == count * 9 // 10
