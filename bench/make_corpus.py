"""Builds the corpus of bench/data.py: over 200 MB of real and constructed text, labelled, the same for a seed.

python bench/make_corpus.py FOLDER --texts DATA [--size 1.0] [--seed 1] [--packages CACHE]

DATA is a folder with corpus/, instruct/, safety/ and bench/ (see corpus_texts.py); what is missing there is left out
and named. Debian's documentation packages are fetched with apt-get. FOLDER then holds a folder a source, with JSON
lines (text, id, metadata) in zstandard files or HTML pages, and

corpus.json          sources with licence, tier, documents and bytes; versions of the packages; sha256 of the whole
corpus.toml          the sources, as phial data run reads them
labels.jsonl         of the HTML pages that were made: file, kind, tier, of which text, and that text
benchmarks/          the items that leaks were drawn from, as JSON lines
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from corpus_noise import Known, as_text, noise
from corpus_planted import duplicates, leaks, questions
from corpus_texts import SOURCES, Text, read_source, unpacked

NOISE = 9000  # documents at size 1
DUPLICATES, LEAKS = 1600, 700
_PART = 4000  # documents in a file of JSON lines
_KNOWN = 6000  # texts remembered, that noise and duplicates are made from
_SURE = 1500  # characters such a text has at least


@dataclass
class Corpus:
    """The folder under construction."""

    folder: Path
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: list[Known] = field(default_factory=list)
    labels: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, licence: str, tier: str, texts: Iterable[tuple[Text, dict[str, Any]]]) -> None:
        """Write a source: JSON lines for texts, files for pages; `tier` "" where each document has its own."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        lines: list[bytes] = []
        documents = n_bytes = parts = 0
        for text, metadata in texts:
            documents += 1
            n_bytes += len(text.text.encode("utf-8", "surrogatepass"))
            if text.html:
                (folder / f"{documents:05}.html").write_text(text.text, "utf-8", errors="surrogatepass")
                if metadata:
                    self.labels.append({"file": f"{name}/{documents:05}.html", **metadata})
                continue
            identity = f"{name}-{documents:06}"
            self._remember(identity, tier, text.text)
            own = {"source": name, "licence": licence, "tier": tier, "path": text.path, "corpus_id": identity}
            record = {"text": text.text, "id": identity, "metadata": own | metadata}
            lines.append((json.dumps(record, sort_keys=True) + "\n").encode())
            if len(lines) == _PART:
                parts, lines = _write(folder, parts, lines)
        if lines:
            _write(folder, parts, lines)
        self.sources[name] = {"licence": licence, "tier": tier, "documents": documents, "bytes": n_bytes}
        print(f"{name}: {documents} documents, {n_bytes / 1e6:.1f} MB", file=sys.stderr)

    def _remember(self, identity: str, tier: str, text: str) -> None:
        """Keep an even sample of the good texts, by the order of a hash of their names."""
        if tier in {"textbook", "encyclopedia", "reference", "literature"} and _SURE < len(text) < 20000:
            self.known.append(Known(identity, tier, text))
            if len(self.known) > 2 * _KNOWN:
                self.settle()

    def settle(self) -> None:
        self.known.sort(key=lambda one: hashlib.sha256(one.id.encode()).digest())
        del self.known[_KNOWN:]

    def digest(self) -> str:
        """sha256 over the names and contents of all files."""
        whole = hashlib.sha256()
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            whole.update(path.relative_to(self.folder).as_posix().encode() + b"\0" + path.read_bytes())
        return whole.hexdigest()


def _write(folder: Path, part: int, lines: list[bytes]) -> tuple[int, list[bytes]]:
    (folder / f"{part:03}.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=3).compress(b"".join(lines)))
    return part + 1, []


def _real(corpus: Corpus, options: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """The real sources; versions of the packages, and what was not to be had."""
    versions: dict[str, str] = {}
    missing: list[str] = []
    for source in SOURCES:
        folder = options.texts
        if source.package:
            folder, versions[source.package] = unpacked(source.package, options.packages)
        if not any(folder.glob(source.files)):
            missing.append(source.name)
            print(f"{source.name}: no {source.files} in {folder}, left out", file=sys.stderr)
            continue
        limit = int(source.megabytes * options.size * 1e6)
        texts = read_source(source, folder, limit, options.seed)
        corpus.add(source.name, source.licence, source.tier, ((text, {}) for text in texts))
    return versions, missing


def _constructed(corpus: Corpus, options: argparse.Namespace) -> None:
    corpus.settle()
    random.Random(options.seed).shuffle(corpus.known)
    known, seed = list(corpus.known), options.seed
    made = noise(known, int(NOISE * options.size), seed)
    rows = []
    for number, one in enumerate(made):
        metadata = {"kind": one.kind, "tier": one.tier, "of": one.of}
        rows.append((as_text(one, number), metadata | ({"clean": one.clean} if one.html and one.clean else {})))
    licence = "Apache-2.0, and that of the text it was made from"
    corpus.add("noise", licence, "", [row for row in rows if not row[0].html])
    corpus.add("pages", licence, "", [row for row in rows if row[0].html])
    for name, planted in (
        ("planted-duplicates", duplicates(known, int(DUPLICATES * options.size), seed)),
        ("planted-leaks", leaks(questions(options.texts / "bench"), known, int(LEAKS * options.size), seed)),
    ):
        rows = [
            (Text(one.text, one.how), {"planted": one.how, "planted_of": one.of, "planted_found": one.found})
            for one in planted
        ]
        corpus.add(name, licence, "planted", rows)


def _settings(corpus: Corpus) -> str:
    rows = [
        f'[[sources]]\nname = "{name}"\npaths = ["{name}"]\nlicence = "{entry["licence"]}"\n'
        for name, entry in corpus.sources.items()
    ]
    benchmark = '[[decontaminate.benchmarks]]\nname = "planted"\nfiles = ["benchmarks/items.jsonl"]\n'
    return "\n".join(["tasks = 8\n", *rows, benchmark])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--packages", type=Path, default=Path.home() / ".cache/phial-bench/packages")
    parser.add_argument("--size", type=float, default=1.0, help="1.0 is about 250 MB")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already; remove it or name another folder")
    partial = options.folder.with_name(options.folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    corpus = Corpus(partial)
    versions, missing = _real(corpus, options)
    _constructed(corpus, options)
    (partial / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in corpus.labels), "utf-8")
    (partial / "corpus.toml").write_text(_settings(corpus), "utf-8")
    (partial / "benchmarks").mkdir()
    items = [json.dumps(item._asdict()) + "\n" for item in questions(options.texts / "bench")]
    (partial / "benchmarks" / "items.jsonl").write_text("".join(items), "utf-8")
    total = {key: sum(entry[key] for entry in corpus.sources.values()) for key in ("documents", "bytes")}
    result = {"seed": options.seed, "size": options.size, **total, "sources": corpus.sources, "missing": missing}
    result |= {"packages": versions, "sha256": corpus.digest()}
    (partial / "corpus.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    partial.rename(options.folder)
    print(json.dumps({"sha256": result["sha256"], **total}))


if __name__ == "__main__":
    main()
