"""Trains the classifier shipped as src/phial/data/quality_default.npz, from tiers of freely licensed texts.

    apt-get download python3.11-doc rust-doc ...      # the packages named in SOURCES; dpkg-deb -x each into DEBS/NAME
    python bench/train_quality.py labels DEBS DATA OUT   # OUT/labels.jsonl, OUT/unseen.jsonl
    python bench/train_quality.py train OUT              # the classifier, its figures as JSON on stdout

DATA is the folder of corpora (classic-books, flan_cot...), DEBS/vader the unpacked sdist of vaderSentiment 3.3.2 with
its hutto_ICWSM_2014 archive. A tier stands in for labels by a language model: the source decides, not the single text.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from quality_noise import CHATTER, NOISE, SPOILT
from quality_passages import windows

Texts = Iterator[tuple[str, str]]  # (group, text)
SHORTEST = 120
NONFICTION = (
    "Mill/,Machiavelli,Aristotle/Poetics,Federalist,Book of Tea,Book of Were,Origin of Species,Art of War,Nietzsche,"
    "Kant,Voltaire,Tacitus,Fossil Hunter"
).split(",")


DOC = "usr/share/doc"
INDEX = r"^(index|genindex.*|search|py-modindex|contents|print|modules|toc)\.html$"
TUTORIALS = r"perl(\w*tut|intro|style|faq4|reguts)"
PAGES: tuple[Any, ...] = (  # name, tier, licence, most chunks, package, pages
    ("Python tutorial and how-tos", 5, "PSF-2.0", 450, "python3.11-doc",
     f"{DOC}/python3.11/html/tutorial/*.html", f"{DOC}/python3.11/html/howto/*.html"),
    ("The Rust book, Rust by example", 5, "MIT OR Apache-2.0", 450, "rust-doc",
     f"{DOC}/rust-doc/html/book/ch*.html", f"{DOC}/rust-doc/html/rust-by-example/**/*.html"),
    ("scikit-learn user guide", 5, "BSD-3-Clause", 450, "python-sklearn-doc",
     f"{DOC}/python-sklearn-doc/html/modules/*.html"),
    ("SciPy tutorial", 5, "BSD-3-Clause", 250, "python-scipy-doc", f"{DOC}/python-scipy-doc/html/tutorial/*.html"),
    ("SymPy tutorials and explanations", 5, "BSD-3-Clause", 250, "python-sympy-doc",
     f"{DOC}/python-sympy-doc/html/tutorials/**/*.html", f"{DOC}/python-sympy-doc/html/explanation/*.html",
     f"{DOC}/python-sympy-doc/html/modules/physics/mechanics/*.html"),
    ("Django introduction and topics", 5, "BSD-3-Clause", 250, "python-django-doc",
     f"{DOC}/python-django-doc/html/intro/*.html", f"{DOC}/python-django-doc/html/topics/*.html"),
    ("astropy guides", 5, "BSD-3-Clause", 250, "python-astropy-doc",
     *(f"{DOC}/python-astropy-doc/html/{d}/*.html"
       for d in ("coordinates", "units", "time", "stats", "cosmology", "modeling"))),
    ("SQLite articles", 4, "public domain", 300, "sqlite3-doc", f"{DOC}/sqlite3/*.html"),
    ("Python library reference", 3, "PSF-2.0", 900, "python3.11-doc", f"{DOC}/python3.11/html/library/*.html"),
    ("PostgreSQL manual", 3, "PostgreSQL", 900, "postgresql-doc-15", f"{DOC}/postgresql-doc-15/html/*.html"),
    ("release notes", 2, "BSD-3-Clause", 500, "python-django-doc",
     f"{DOC}/python-django-doc/html/releases/*.html"),
)  # fmt: skip


class Source(NamedTuple):
    name: str
    tier: int
    licence: str
    most: int
    texts: Callable[[], Texts]


def pages(root: Path, *globs: str, leave: str = "^$") -> Texts:
    """The main text of HTML pages; the page is the group."""
    import trafilatura

    for path in sorted({p for g in globs for p in root.glob(g) if not re.search(leave, p.name)}):
        text = trafilatura.extract(path.read_text("utf-8", "replace"), include_comments=False, include_tables=True)
        if text:
            yield f"{root.name}/{path.relative_to(root)}", text


def pods(root: Path, pattern: str) -> Texts:
    """Perl's documents without their markup."""
    for path in sorted(root.glob("usr/share/perl/*/pod/*.pod")):
        if re.fullmatch(pattern, path.stem):
            text = path.read_text("utf-8", "replace")
            text = re.sub(r"^=(head\d|item|over|back|cut|pod|encoding|begin|end|for)\b *", "", text, flags=re.M)
            yield f"perl/{path.stem}", re.sub(r"[A-Z]<+ ?([^<>]*?) ?>+", r"\1", text)


def books(data: Path, nonfiction: bool) -> Texts:
    for part in sorted((data / "corpus/classic-books").glob("*.gz")):
        for line in gzip.open(part, "rt", encoding="utf-8"):
            book = json.loads(line)
            if any(name in book["path"] for name in NONFICTION) == nonfiction:
                text = book["text"]
                yield book["path"], text[len(text) // 20 : -len(text) // 20]  # without front and back matter


def rationales(data: Path, *names: str) -> Texts:
    """Questions with their answer and the reason, a few to a text."""
    for name in names:
        rows = [r.rstrip("\n").split("\t") for r in gzip.open(data / f"instruct/flan_cot/{name}.gz", "rt")]
        rows = [r for r in rows if len(r) == 3]
        for start in range(0, len(rows), 8):
            some = [f"{q}\n{why}\nThe answer is {a}." for q, a, why in rows[start : start + 8]]
            yield f"{name}/{start}", "\n\n".join(some).replace("\\n", "\n")


def tweets(root: Path, name: str, per_text: int) -> Texts:
    rows = (root / "hutto_ICWSM_2014" / name).read_text("utf-8", "replace").splitlines()
    posts = [r.split("\t")[-1] for r in rows]
    for start in range(0, len(posts), per_text):
        yield f"{name}/{start}", "\n".join(posts[start : start + per_text])


def made(maker: Callable[[random.Random], str], name: str, count: int) -> Texts:
    for number in range(count):
        yield f"{name}/{number}", maker(random.Random(f"{name} {number}"))


def spoilt(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tier 0: every fifth real text of tier 2 and more once more, ruined; in the group of the text it was."""
    for number, row in enumerate(row for row in rows if row["score"] >= 2):
        if number % 5 == 0:
            name, ruin = list(SPOILT.items())[(0, 0, 0, 1, 2, 3)[number // 5 % 6]]
            text = ruin(row["text"], random.Random(number))
            yield row | {"text": text, "score": 0, "source": f"spoilt: {name}"}


def chunks(texts: Texts) -> Texts:
    """Pieces of 150 to 4,000 characters that end with a paragraph or a sentence."""
    for group, text in texts:
        rng = random.Random(group)
        while len(text) >= SHORTEST:
            size = int(150 * (4000 / 150) ** rng.random())
            cut = max(text.rfind("\n", SHORTEST, size), text.rfind(". ", SHORTEST, size) + 1)
            cut = cut if cut > 0 else size
            yield group, text[:cut].strip()
            text = text[cut:].lstrip()


def documentation(debs: Path) -> list[Source]:
    return [
        Source(name, tier, licence, most, lambda p=package, g=globs: pages(debs / p, *g, leave=INDEX))
        for name, tier, licence, most, package, *globs in PAGES
    ]


def sources(debs: Path, data: Path) -> list[Source]:
    real = [
        *documentation(debs),
        Source("textbook passages written for this", 5, "Apache-2.0", 200, windows),
        Source("Perl tutorials", 5, "Artistic-1.0-Perl", 250, lambda: pods(debs / "perl-doc", TUTORIALS)),
        Source("worked problems (FLAN: aqua, gsm8k)", 4, "Apache-2.0", 700,
               lambda: rationales(data, "aqua_train.tsv", "gsm8k_train.tsv")),
        Source("explained facts (FLAN: qasc, strategyqa)", 4, "Apache-2.0", 500,
               lambda: rationales(data, "qasc_train.tsv", "strategyqa_train.tsv")),
        Source("classic non-fiction", 4, "public domain", 900, lambda: books(data, True)),
        Source("statements judged (FLAN: creak, ecqa)", 3, "Apache-2.0", 500,
               lambda: rationales(data, "creak_train.tsv", "ecqa_train.tsv")),
        Source("classic fiction, drama and verse", 2, "public domain", 2200, lambda: books(data, False)),
        Source("tweets", 1, "MIT", 500, lambda: tweets(debs / "vader", "tweets_GroundTruth.txt", 8)),
        Source("shopping reviews", 1, "MIT", 350,
               lambda: tweets(debs / "vader", "amazonReviewSnippets_GroundTruth.txt", 9)),
        *(Source(f"made: {n}", 1, "Apache-2.0", 700, lambda m=m, n=n: made(m, n, 700)) for n, m in CHATTER.items()),
    ]  # fmt: skip
    noise = [Source(f"made: {n}", 0, "Apache-2.0", 260, lambda m=m, n=n: made(m, n, 260)) for n, m in NOISE.items()]
    return real + noise


def unseen(debs: Path, data: Path) -> list[Source]:
    """Sources of which nothing is in the weights; some may only be measured, not trained on."""

    def openstax() -> Texts:
        for path in sorted((data / "corpus/openstax-ccby").glob("*.gz")):
            for line in gzip.open(path, "rt", encoding="utf-8"):
                yield path.stem, json.loads(line)["text"]

    def talk() -> Texts:
        for line in gzip.open(data / "instruct/topical_chat/conversations.jsonl.gz", "rt", encoding="utf-8"):
            row = json.loads(line)
            yield row["id"], "\n".join(row["turns"])

    def wikitext() -> Texts:
        yield "wikitext", gzip.open(data / "corpus/wikitext-2/valid.txt.gz", "rt", encoding="utf-8").read()

    return [
        Source("OpenStax textbooks", 5, "CC-BY-4.0", 600, openstax),
        Source(
            "skimage guide",
            5,
            "BSD-3-Clause",
            100,
            lambda: pages(debs / "python-skimage-doc", f"{DOC}/python-skimage-doc/html/user_guide/*.html"),
        ),
        Source("WikiText-2", 3, "CC-BY-SA-3.0", 300, wikitext),
        Source(
            "Erlang reference",
            3,
            "Apache-2.0",
            200,
            lambda: pages(debs / "erlang-doc", f"{DOC}/erlang-doc/lib/stdlib-4.2/doc/html/*.html"),
        ),
        Source("Topical-Chat dialogues", 1, "CDLA-Sharing-1.0", 300, talk),
        Source(
            "film snippets", 1, "MIT", 200, lambda: tweets(debs / "vader", "movieReviewSnippets_GroundTruth.txt", 9)
        ),
    ]


def chosen(source: Source) -> list[dict[str, Any]]:
    """At most `most` chunks, picked by hash."""
    rows = [
        {"text": text, "score": source.tier, "group": group, "source": source.name, "licence": source.licence}
        for group, text in (source.texts() if source.name.startswith(("made", "textbook")) else chunks(source.texts()))
    ]
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode("utf-8", "replace")).digest())
    print(f"{source.name}: {len(rows)} chunks, {min(len(rows), source.most)} taken", file=sys.stderr)
    return rows[: source.most]


def write_labels(debs: Path, data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, some in (("labels", sources(debs, data)), ("unseen", unseen(debs, data))):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            rows = [row for source in some for row in chosen(source)]
            for row in rows + (list(spoilt(rows)) if name == "labels" else []):
                file.write(json.dumps(row, sort_keys=True) + "\n")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def train(out: Path, target: Path, settings: dict[str, Any]) -> None:
    import numpy as np

    from phial.data.quality_file import save_classifier
    from phial.data.quality_training import Labelled, TrainingSettings, split, train_classifier

    rows = rows_of(out / "labels.jsonl")
    counts: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = counts.setdefault(row["source"], {"tier": row["score"], "licence": row["licence"], "texts": 0})
        entry["texts"] += 1
    labelled = [Labelled(row["text"], row["score"], row["group"]) for row in rows]
    chosen_settings = TrainingSettings(**settings)
    start = time.process_time()
    about = {"name": "quality-default", "labels_from": "tiers of sources", "sources": counts}
    classifier, report = train_classifier(
        labelled, chosen_settings, about, show=lambda done, text: print(text, end="\r", file=sys.stderr)
    )
    seconds = time.process_time() - start
    save_classifier(classifier, target)
    by_source: dict[str, Any] = {}
    held = set(split(labelled, chosen_settings)["test"])
    seen = [row for row in rows if Labelled(row["text"], row["score"], row["group"]) in held]
    for kind, some in (("held out", seen), ("unseen source", rows_of(out / "unseen.jsonl"))):
        scores = classifier.scores([row["text"] for row in some])
        for name in dict.fromkeys(row["source"] for row in some):
            here = np.array([row["source"] == name for row in some])
            tier = next(row["score"] for row in some if row["source"] == name)
            values = scores[here]
            by_source[name] = {
                "kind": kind,
                "tier": tier,
                "texts": int(here.sum()),
                "mean": round(float(values.mean()), 2),
                "at_least_3": round(float((values >= 3).mean()), 3),
            }
    texts = [(row["text"] * 20)[:2000] for row in rows][:6000]
    classifier.scores(texts[:100])
    start = time.process_time()
    classifier.scores(texts)
    speed = len(texts) / (time.process_time() - start)
    figures = {
        "version": classifier.version,
        "seconds": round(seconds, 1),
        "documents_per_second_and_core": round(speed),
        "bytes": target.stat().st_size,
        "report": report.as_json(),
        "sources": by_source,
    }
    print(json.dumps(figures, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    labels = commands.add_parser("labels")
    for name in ("debs", "data", "out"):
        labels.add_argument(name, type=Path)
    fit = commands.add_parser("train")
    fit.add_argument("out", type=Path)
    default = Path(__file__).parents[1] / "src/phial/data/quality_default.npz"
    fit.add_argument("--target", type=Path, default=default)
    fit.add_argument("--settings", type=json.loads, default={}, help='as {"bits": 15}')
    given = parser.parse_args()
    if given.command == "labels":
        write_labels(given.debs, given.data, given.out)
    else:
        train(given.out, given.target, given.settings)


if __name__ == "__main__":
    main()
