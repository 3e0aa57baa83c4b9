"""What the report counts: one pass over every document of a run, in memory that does not grow with the corpus.

Every document that came in is either among what the last stage kept or among what some stage dropped, so these files
together hold the corpus once. Examples are the documents whose ids hash lowest, so the same run shows the same ones.

Memory: histograms by source, at most `_BUCKETS` times `_EACH` excerpts of `_SHOWN` characters, at most `_GROUPS` groups
of duplicates (a sample by hash beyond that), and one document.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from phial.data.document import Document, read_documents
from phial.data.stage import dropped_files, kept_files

THRESHOLDS = (1.0, 2.0, 3.0, 4.0)
SCORE_BIN = 0.2  # of the score's 0 to 5
NEAR = 0.5  # how far from a threshold its examples lie
_BUCKETS, _EACH, _SHOWN = 400, 3, 600
_GROUPS = 100_000
_OTHER = "other reasons"


class Example(NamedTuple):
    """A document as the page shows it: the beginning of its text, and how long the whole is in characters."""

    id: str
    text: str
    length: int
    metadata: dict[str, str]


class Pair(NamedTuple):
    """A duplicate and the document that it is a duplicate of, None where that was not met."""

    duplicate: Example
    of: Example | None


class Samples:
    """A few examples a bucket, chosen by the hash of their ids; at most `_BUCKETS` buckets."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[int, str, Example]]] = {}

    def add(self, bucket: str, document: Document) -> None:
        """Consider a document for a bucket."""
        if bucket not in self._heaps and len(self._heaps) >= _BUCKETS:
            bucket = _OTHER
        heap = self._heaps.setdefault(bucket, [])
        key = -_place(document.id)  # heapq keeps the smallest on top, which is the one to go
        if len(heap) < _EACH:
            heapq.heappush(heap, (key, document.id, _example(document)))
        elif key > heap[0][0]:
            heapq.heapreplace(heap, (key, document.id, _example(document)))

    def of(self, bucket: str) -> list[Example]:
        """The examples of a bucket, in the order of their hashes."""
        return [example for _, _, example in sorted(self._heaps.get(bucket, []), reverse=True)]

    def buckets(self) -> list[str]:
        return sorted(self._heaps)


class Groups:
    """How many duplicates a document has: counted for all, or for an even sample of the documents where too many.

    `share` is 1 where all were counted, else the share of the documents in the sample.
    """

    def __init__(self, most: int = _GROUPS) -> None:
        self._most, self._bits = most, 0
        self._counts: Counter[int] = Counter()

    @property
    def share(self) -> float:
        return float(2.0**-self._bits)

    def add(self, identifier: str) -> None:
        """Count a duplicate of this document."""
        place = _place(identifier)
        if place >> (64 - self._bits):
            return
        self._counts[place] += 1
        while len(self._counts) > self._most:
            self._bits += 1
            self._counts = Counter({p: n for p, n in self._counts.items() if not p >> (64 - self._bits)})

    def sizes(self) -> Counter[int]:
        """Number of groups by size, the kept document counted in."""
        return Counter(n + 1 for n in self._counts.values())


@dataclass
class Counts:
    """All that the page shows beside the stages' own records.

    Lengths are by power of the square root of two of characters, scores by steps of `SCORE_BIN`; keys of `lengths` and
    `languages` are "kept" or "dropped".
    """

    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {"kept": Counter(), "dropped": Counter()})
    languages: dict[str, Counter[str]] = field(default_factory=lambda: {"kept": Counter(), "dropped": Counter()})
    scores: dict[str, Counter[int]] = field(default_factory=dict)  # by source
    score_characters: Counter[int] = field(default_factory=Counter)
    duplicates: dict[str, Counter[str]] = field(default_factory=dict)  # reason by source
    groups: Groups = field(default_factory=Groups)
    contaminated: Counter[str] = field(default_factory=Counter)
    samples: Samples = field(default_factory=Samples)
    pairs: list[Pair] = field(default_factory=list)
    documents: int = 0

    def add(self, document: Document, dropped: bool) -> None:
        """Count one document."""
        where, metadata = "dropped" if dropped else "kept", document.metadata
        source = str(metadata.get("source", ""))
        self.documents += 1
        self.lengths[where][length_bin(len(document.text))] += 1
        if "language" in metadata:
            self.languages[where][str(metadata["language"])] += 1
        score = metadata.get("quality")
        if isinstance(score, (int, float)):
            self._score(document, source, float(score))
        if dropped:
            self._dropped(document, source, str(metadata.get("filter_reason", "")))

    def _score(self, document: Document, source: str, score: float) -> None:
        place = min(int(score / SCORE_BIN + 1e-9), round(5 / SCORE_BIN) - 1)
        self.scores.setdefault(source, Counter())[place] += 1
        self.score_characters[place] += len(document.text)
        for threshold in THRESHOLDS:
            if threshold - NEAR <= score < threshold + NEAR:
                self.samples.add(threshold_bucket(threshold, score >= threshold), document)

    def _dropped(self, document: Document, source: str, reason: str) -> None:
        self.samples.add(f"reason {reason}", document)
        of = document.metadata.get("duplicate_of")
        if of is not None:
            self.duplicates.setdefault(source, Counter())[reason] += 1
            self.groups.add(str(of))
            self.samples.add(_PAIR + reason, document)
        if reason.startswith("contaminated"):
            self.contaminated[reason.partition(":")[2].strip() or "unnamed"] += 1


_PAIR = "pair "


def threshold_bucket(threshold: float, above: bool) -> str:
    """The samples' bucket of documents just above or just below a threshold."""
    return f"score {threshold} {'kept' if above else 'dropped'}"


def length_bin(characters: int) -> int:
    """Half powers of two: a text of n characters lies in bin floor(2 log2 n); an empty one in bin 0."""
    return (characters * characters).bit_length() - 1 if characters else 0


def count_run(stages: list[Path], tick: Callable[[], None] = lambda: None) -> Counts:
    """Read what each of the stages dropped and what the last one kept; `tick` is called after each file.

    Raises FormatError for a damaged file, PhialError for a stage that is not finished.
    """
    counts = Counts()
    wanted: dict[str, Example | None] = {}
    pairs: list[Example] = []
    for path, dropped, last in _files(stages):
        for document in read_documents(path):
            counts.add(document, dropped)
            if document.id in wanted and wanted[document.id] is None:
                wanted[document.id] = _example(document)
        if last:  # of this stage's drops: its examples are final, look for what they are copies of from here on
            buckets = [name for name in counts.samples.buckets() if name.startswith(_PAIR)]
            pairs = [example for name in buckets for example in counts.samples.of(name)]
            for example in pairs:
                wanted.setdefault(example.metadata["duplicate_of"], None)
        tick()
    counts.pairs = [Pair(example, wanted[example.metadata["duplicate_of"]]) for example in pairs]
    return counts


def files_of(stages: list[Path]) -> int:
    """How many files `count_run` reads."""
    return sum(1 for _ in _files(stages))


def _files(stages: list[Path]) -> Iterator[tuple[Path, bool, bool]]:
    """(file, whether dropped, whether the last of a stage's drops), drops in the order of the stages, then the kept."""
    for stage in stages:
        files = dropped_files(stage)
        yield from ((path, True, path == files[-1]) for path in files)
    if stages:
        yield from ((path, False, False) for path in kept_files(stages[-1]))


def _place(identifier: str) -> int:
    """64 bits that follow from an id."""
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _example(document: Document) -> Example:
    shown: dict[str, Any] = {key: value for key, value in document.metadata.items() if key in _METADATA}
    metadata = {key: str(value)[:300] for key, value in shown.items()}
    return Example(document.id, document.text[:_SHOWN], len(document.text), metadata)


_METADATA = (
    "source", "path", "url", "language", "quality", "filter_reason", "duplicate_of", "contaminated_by", "contamination",
)  # fmt: skip
