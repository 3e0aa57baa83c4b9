"""How often the pipeline was right on the labelled corpus: counts over a finished run of bench/data.py.

Labels are the corpus's own: tier and kind of each document, planted duplicates and leaks, and for made pages and broken
encodings the text that should come back.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phial.data.document import Document, read_documents
from phial.data.stage import dropped_files, kept_files

GOOD = {"textbook", "encyclopedia", "reference"}  # what a reader learns from
POOR = {"dialogue", "chatter", "noise"}  # literature is neither
_FORM = 400  # made pages compared word by word


class Labels:
    """Tier and kind of a document, also of pages, which carry no metadata of their own."""

    def __init__(self, corpus: Path) -> None:
        lines = (corpus / "labels.jsonl").read_text("utf-8").split("\n")
        self.pages = {label["file"]: label for label in map(json.loads, filter(None, lines))}
        sources = json.loads((corpus / "corpus.json").read_text())["sources"]
        self.tiers = {name: entry["tier"] for name, entry in sources.items()}

    def page(self, document: Document) -> dict[str, str]:
        return self.pages.get(str(document.metadata["path"]).partition("#")[0], {})

    def of(self, document: Document) -> tuple[str, str]:
        """(tier, kind); kind is "" for real text as it came."""
        own = document.metadata | self.page(document)
        return str(own.get("tier") or self.tiers[own["source"]]), str(own.get("kind", ""))


def _ended(run: Path, stages: list[str]) -> Iterator[tuple[Document, str]]:
    """Every document once, with the stage that dropped it, or "" where none did."""
    for stage in stages:
        for path in dropped_files(run / stage):
            yield from ((one, stage) for one in read_documents(path))
    for path in kept_files(run / stages[-1]):
        yield from ((one, "") for one in read_documents(path))


def evaluate(corpus: Path, run: Path) -> dict[str, Any]:
    """All figures, as JSON."""
    labels = Labels(corpus)
    stages = ["01-sources", "02-clean", "03-dedup", "04-quality", "05-decontaminate"]
    cleaned: dict[str, Counter[str]] = defaultdict(Counter)
    fate: dict[str, str] = {}  # of documents with a corpus_id: the stage that dropped it
    planted: list[tuple[dict[str, Any], str]] = []
    dropped_as_leak: Counter[str] = Counter()
    form: list[tuple[str, str]] = []
    mended = Counter[str]()
    for document, stage in _ended(run, stages):
        tier, kind = labels.of(document)
        name = f"noise: {kind}" if tier == "noise" else f"{kind} of real text" if kind else tier
        if tier != "planted":
            cleaned[name]["dropped" if stage in stages[:2] else "kept"] += 1
        if "corpus_id" in document.metadata:
            fate[str(document.metadata["corpus_id"])] = stage
        if "planted" in document.metadata:
            planted.append((document.metadata, stage))
        elif stage == "05-decontaminate":
            dropped_as_leak[tier] += 1
        if kind == "web page" and stage not in stages[:2]:
            form.append((labels.page(document)["clean"], document.text))
        if kind == "mojibake" and stage not in stages[:2]:
            mended["â€" in document.text and "still broken" or "repaired"] += 1
    random.Random(1).shuffle(form)
    words = [_overlap(clean, text) for clean, text in form[:_FORM]]
    return {
        "clean": {name: dict(found) for name, found in sorted(cleaned.items())},
        "pages": {"pages": len(words), "recall": _mean(w[0] for w in words), "precision": _mean(w[1] for w in words)},
        "encoding": dict(mended),
        "duplicates": _duplicates(planted, fate),
        "leaks": _leaks(planted),
        "real text dropped as leak": dict(dropped_as_leak),
        "quality": quality(labels, run),
    }


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / max(len(found), 1)


def _overlap(clean: str, text: str) -> tuple[float, float]:
    """Share of the wanted words that are there, and of the words there that are wanted."""
    wanted, there = Counter(clean.split()), Counter(text.split())
    both = sum((wanted & there).values())
    return both / max(sum(wanted.values()), 1), both / max(sum(there.values()), 1)


def _duplicates(planted: list[tuple[dict[str, Any], str]], fate: dict[str, str]) -> dict[str, Any]:
    """Of pairs whose both documents reached dedup: how many copies were dropped there, by kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for metadata, stage in planted:
        if metadata["source"] != "planted-duplicates" or stage in ("01-sources", "02-clean"):
            continue
        if fate.get(metadata["planted_of"]) in ("01-sources", "02-clean", None):
            continue
        found[metadata["planted"]]["dropped" if stage == "03-dedup" else "kept"] += 1
    return _rates(found)


def _leaks(planted: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """Of planted leaks that reached decontamination: how many were dropped there, by kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for metadata, stage in planted:
        if metadata["source"] == "planted-leaks" and stage in ("05-decontaminate", ""):
            found[metadata["planted"]]["dropped" if stage else "kept"] += 1
    return _rates(found)


def _rates(found: dict[str, Counter[str]]) -> dict[str, Any]:
    right = sum(c["dropped"] for kind, c in found.items() if not kind.startswith("decoy"))
    wrong = sum(c["dropped"] for kind, c in found.items() if kind.startswith("decoy"))
    missed = sum(c["kept"] for kind, c in found.items() if not kind.startswith("decoy"))
    whole = {"recall": right / max(right + missed, 1), "precision": right / max(right + wrong, 1)}
    return {**whole, "kinds": {kind: dict(counts) for kind, counts in sorted(found.items())}}


def quality(labels: Labels, run: Path, most: int = 600) -> dict[str, Any]:
    """Scores by tier over up to `most` documents each, as cleaning saw them, dropped ones too; F1 of good and poor."""
    from phial.data.quality_file import load_default

    texts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for document, stage in _ended(run, ["02-clean"]):
        tier, kind = labels.of(document)
        html_left = stage and document.metadata.get("filter_reason", "").startswith("html")
        if tier not in ("planted", "foreign") and not html_left and kind not in ("mojibake", "web page"):
            texts[tier].append((random.Random(document.id).randrange(1 << 62), document.text[:20_000]))
    classifier = load_default()
    scores: dict[str, list[float]] = {}
    for tier, found in texts.items():
        chosen = [text for _, text in sorted(found)[:most]]
        scores[tier] = [float(score) for score in classifier.scores(chosen)]
    rows = {
        tier: {"documents": len(found), "mean": _mean(iter(found)), "from 3": _mean(float(s >= 3) for s in found)}
        for tier, found in sorted(scores.items())
    }
    good = [score for tier in sorted(GOOD) for score in scores.get(tier, [])]
    poor = [score for tier in sorted(POOR) for score in scores.get(tier, [])]
    f1 = {}
    for threshold in (1.5, 2.0, 2.5, 3.0, 3.5):
        hits, false = sum(s >= threshold for s in good), sum(s >= threshold for s in poor)
        f1[f"{threshold:g}"] = {
            "precision": hits / max(hits + false, 1),
            "recall": hits / max(len(good), 1),
            "f1": 2 * hits / max(hits + false + len(good), 1),
        }
    return {"tiers": rows, "good against poor": f1}
