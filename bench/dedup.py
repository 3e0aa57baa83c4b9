"""Deduplication and decontamination: documents a second on one core, precision and recall on what is planted.

    python bench/dedup.py [--documents 20000] [--benchmark gsm8k=FILES ...] [--text FILE.jsonl.gz ...]

Times are processor time. With --text the documents are 2,000-character pages of real text, each tenth one planted as a
copy; without it they are invented words. With --benchmark, questions of real benchmarks are planted in such pages,
unchanged and with every tenth word replaced.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from datatrove.data import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.data import leaks, planted

from phial.data.benchmarks import Benchmark, Item, read_items
from phial.data.decontaminate import DecontaminateConfig
from phial.data.dedup import DedupConfig, dedup_stage
from phial.data.minhash import MinHash, exact_digest
from phial.data.overlap import Matcher, count_texts
from phial.data.question_index import Index
from phial.data.word_hashes import word_hashes

_PAGE = 2000  # characters
_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME=FILES")
    parser.add_argument("--text", action="append", default=[], type=Path, metavar="FILE.jsonl.gz")
    arguments = parser.parse_args()
    word_hashes(["the tables are made"])
    pages = pages_of(arguments.text, arguments.documents)
    signature_speed(pages[:4096])
    pass_speed(pages)
    planted_duplicates()
    planted_leaks()
    if arguments.benchmark:
        benchmark_leaks(arguments.benchmark, pages)


def pages_of(files: Sequence[Path], count: int) -> list[str]:
    """Pages of real text, or of invented words."""
    if not files:
        rng = random.Random(1)
        words = planted.vocabulary(rng)
        return ["\n\n".join(planted.paragraphs(rng, words))[:_PAGE] for _ in range(count)]
    pages: list[str] = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                pages += [text[at : at + _PAGE] for at in range(0, len(text) - _PAGE, _PAGE)]
    return pages[:count]


def timed(name: str, count: int, work: Callable[[], object]) -> float:
    """Prints and gives documents a second of processor time."""
    start = time.process_time()
    work()
    rate = count / (time.process_time() - start)
    print(f"{name:44} {rate:10,.0f} documents/s")
    return rate


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH))


def signature_speed(pages: Sequence[str]) -> None:
    """Signatures against datatrove's, both of 20 bands of 6 rows over 5 words split at white space."""
    hashes = MinHash(5, 20, 6)
    timed("exact digests", len(pages), lambda: [exact_digest(page) for page in pages])
    ours = timed("exact digests and MinHash signatures", len(pages), lambda: [hashes(part) for part in batches(pages)])
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashes.sha1 import sha1_hash64
    from datatrove.utils.text import ngrams, simplify_text

    config = MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=6)
    step = MinhashDedupSignature.__new__(MinhashDedupSignature)  # its constructor wants a word tokenizer of its own
    step.config, step._parameters, step.num_hashes = config, None, 120

    def theirs() -> None:
        for page in pages[:512]:
            words = simplify_text(page, config.norm_config).split()
            values = [sha1_hash64(" ".join(gram)) for gram in ngrams(words, 5)]
            step.get_signature(np.fromiter(values, np.uint64).reshape(-1, 1))

    peer = timed("datatrove's MinHash signatures", min(512, len(pages)), theirs)
    print(f"{'ratio':44} {ours / peer:10.1f}")


def pass_speed(pages: Sequence[str]) -> None:
    """The whole of deduplication, pass by pass; each tenth page is there a second time, with a sentence more."""
    texts = [*pages, *(page + " A sentence that the other page does not have." for page in pages[::10])]
    documents = [Document(text, f"{n:08d}", metadata={"source": "web"}) for n, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for phase in dedup_stage(DedupConfig(), Path(folder), 1, ["web"]):
            before, kept = time.process_time(), 0
            for rank in range(phase.tasks):
                data = iter(documents) if phase.reads else None
                kept += sum(1 for _ in phase.steps[0].run(data, rank, phase.tasks))
            print(f"dedup, {phase.name:37} {1e6 * (time.process_time() - before) / len(documents):10.1f} µs/document")
        rate = len(documents) / (time.process_time() - start)
        print(f"{'dedup, all passes':44} {rate:10,.0f} documents/s  ({len(documents):,} documents, {kept:,} kept)")


def planted_duplicates(each: int = 1000) -> None:
    """Recall by kind of copy, and how many of what only looks like one are dropped."""
    corpus = planted.planted(seed=1, each=each)
    with tempfile.TemporaryDirectory() as folder:
        _, dropped = planted.deduplicate(DedupConfig(), Path(folder), corpus.documents)
    found = {document.id: document.metadata["duplicate_of"] for document in dropped}
    right = 0
    for kind in planted.COPIES:
        hits = sum(found.get(copy) == original for original, copy in corpus.pairs[kind])
        right += hits
        print(f"duplicates, {kind:32} {hits / each:10.3f} found")
    for kind in planted.LOOKALIKES:
        wrong = sum(found.get(copy) == original for original, copy in corpus.pairs[kind])
        print(f"no duplicates, {kind:29} {wrong / each:10.3f} dropped")
    print(f"{'duplicates: precision':44} {right / max(1, len(found)):10.4f}")


def planted_leaks(each: int = 300) -> None:
    """The same for leaks of invented questions."""
    corpus = leaks.leaks(seed=1, each=each)
    documents = list(chain(*corpus.documents.values()))
    with tempfile.TemporaryDirectory() as folder:
        _, dropped = leaks.decontaminate(DecontaminateConfig(), Path(folder), documents, corpus.items)
    found = {document.id for document in dropped}
    for kind, pages in corpus.documents.items():
        word = "leaks" if kind in leaks.LEAKS else "no leaks"
        print(f"{word + ', ' + kind:44} {sum(d.id in found for d in pages) / each:10.3f} dropped")
    right = sum(name.rpartition("/")[0] in leaks.LEAKS for name in found)
    print(f"{'leaks: precision':44} {right / max(1, len(found)):10.4f}")


def benchmark_leaks(told: Sequence[str], pages: Sequence[str], each: int = 600) -> None:
    """Recall of real questions in real pages by the length of the question, and the clean pages that are dropped."""
    items: list[Item] = []
    for one in told:
        name, _, files = one.partition("=")
        items += read_items(Benchmark(name=name, files=(files,)))
    start = time.process_time()
    index = Index(items)
    print(
        f"index of {len(items):,} questions: {time.process_time() - start:.1f} s, {index.nbytes / 1e6:.1f} MB, ", end=""
    )
    print(f"{len(index.outside):,} words, {len(index.unmatched)} questions cannot be found")
    counts = np.zeros(len(index.grams), np.uint32)
    timed("decontaminate, count", len(pages), lambda: [count_texts(index, part, counts) for part in batches(pages)])
    matcher = Matcher(index, 0.5, counts > 10)
    timed("decontaminate, find", len(pages), lambda: [matcher.find(part) for part in batches(pages)])
    flagged = [index.labels[one.item] for part in batches(pages) for one in matcher.find(part)]
    print(f"clean pages dropped: {len(flagged)} of {len(pages):,}: {', '.join(flagged[:8])}")
    rng = random.Random(3)
    words = sorted({word for page in pages[:2000] for word in page.lower().split() if word.isalpha() and len(word) > 3})
    known = set(index.labels)
    for low, high in ((1, 10), (10, 20), (20, 50), (50, 100), (100, 10**6)):
        some = [item for item in items if item.label in known and low <= len(item.question.split()) < high]
        some = rng.sample(some, min(each, len(some)))
        row = []
        for rate in (0.0, 0.05, 0.1, 0.15):
            texts = [inserted(rng, pages, changed(rng, words, item.question, rate)) for item in some]
            found = {at * _BATCH + one.text for at, part in enumerate(batches(texts)) for one in matcher.find(part)}
            row.append(f"{len(found) / max(1, len(some)):.3f}")
        print(f"questions of {low:3} to {high - 1:6} words ({len(some)}): found as they are {row[0]}, ", end="")
        print(f"5 % of words replaced {row[1]}, 10 % {row[2]}, 15 % {row[3]}")


def changed(rng: random.Random, words: Sequence[str], question: str, rate: float) -> str:
    """The question with this share of its words replaced, at least one."""
    parts = question.split()
    for place in rng.sample(range(len(parts)), min(len(parts), max(1, round(rate * len(parts))) if rate else 0)):
        parts[place] = rng.choice(words)
    return " ".join(parts)


def inserted(rng: random.Random, pages: Sequence[str], question: str) -> str:
    """A page with the question in it."""
    page = rng.choice(pages)
    cut = page.find(" ", rng.randrange(_PAGE // 2))
    return f"{page[:cut]}\n{question}\n{page[cut:]}"


if __name__ == "__main__":
    main()
