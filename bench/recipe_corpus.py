"""The pool, the held-out texts and the token shards of bench/recipe.py, made from bench/make_corpus.py's corpus.

The pool `web` has the make-up of MEGABYTES, in documents whose score alone says what they are. Held out are documents
by a hash, whatever their score, and four textbooks as a whole; noise made from a held-out text goes, too. Then
phial's own stages: cleaning without rules of thumb (they would take the noise before the filter sees it), duplicates,
scores, decontamination, a vocabulary, mixtures.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import recipe_synthetic
import zstandard

from phial.data.document import read_documents
from phial.data.stage import kept_files

MEGABYTES = {  # of the pool, by tier
    "textbook": 0.95, "encyclopedia": 0.45, "reference": 0.5, "literature": 2.8, "dialogue": 0.8, "chatter": 0.4,
    "noise": 1.3,
}  # fmt: skip
HELD = ("textbook", "other textbooks", "encyclopedia", "reference", "literature", "dialogue", "noise")
GOOD = ("textbook", "encyclopedia", "reference")  # what is to be learnt, fixed before any run
HELD_MEGABYTES = 0.25
SHEETS = 1600
OTHER_BOOKS = ("prealgebra-bundle", "anatomy-physiology", "college-algebra-bundle", "introductory-statistics-bundle")
KEEP = {"all": 1.0, "keep-40": 0.4, "keep-10": 0.1}  # shares of the pool's text, best scores first
VOCABULARY = 2048
SEEDS = (0, 1, 2)
FOLDERS = (
    "textbooks",
    "wikipedia",
    "jargon",
    "manpages",
    "manpages-dev",
    "classic-books",
    "dialogues",
    "tweets",
    "noise",
)


def _source(kind: str) -> str:
    return "held-" + kind.replace(" ", "-")


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _records(corpus: Path) -> Iterator[dict[str, Any]]:
    for folder in FOLDERS:
        for path in sorted((corpus / folder).glob("*.jsonl.zst")):
            with open(path, "rb") as file:
                for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8"):
                    yield json.loads(line)


def _held(record: dict[str, Any]) -> str | None:
    """The held-out kind that a document belongs to, if it does."""
    tier, book = record["metadata"]["tier"], record["metadata"]["path"].partition(".")[0]
    if tier == "textbook" and book in OTHER_BOOKS:
        return "other textbooks"
    return tier if tier in HELD and _share("held" + record["id"]) < 0.12 else None


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, sort_keys=True) + "\n" for record in records]
    path.write_bytes(zstandard.ZstdCompressor(level=3).compress("".join(lines).encode("utf-8", "surrogatepass")))


def write_sources(corpus: Path, folder: Path) -> dict[str, Any]:
    """The sources as phial reads them; megabytes by source and tier."""
    records = [r for r in _records(corpus) if r["metadata"].get("kind") != "mojibake"]
    records.sort(key=lambda r: _share("order" + r["id"]))
    held = {r["id"]: kind for r in records if (kind := _held(r))}
    size: Counter[tuple[str, str]] = Counter()
    sources: dict[str, list[dict[str, Any]]] = {"web": [], **{_source(kind): [] for kind in HELD}}
    for record in records:
        tier = record["metadata"]["tier"]
        if tier not in MEGABYTES or record["metadata"].get("of", "") in held:
            continue
        source = _source(held[record["id"]]) if record["id"] in held else "web"
        limit = MEGABYTES[tier] if source == "web" else HELD_MEGABYTES
        if size[source, tier] < 1e6 * limit:
            size[source, tier] += len(record["text"].encode())
            sources[source].append({"text": record["text"], "id": record["id"], "metadata": {"tier": tier}})
    sheets = [recipe_synthetic.sheet(number) for number in range(SHEETS)]
    sources["synthetic"] = [{"text": t, "id": f"sheet-{n}", "metadata": {}} for n, t in enumerate(sheets)]
    for name, rows in sources.items():
        _write(folder / "sources" / name / "000.jsonl.zst", rows)
    return {f"{source} {tier}": round(n / 1e6, 3) for (source, tier), n in sorted(size.items())}


def _settings(folder: Path, questions: Path) -> str:
    names = [*map(_source, HELD), "synthetic", "web"]  # of two copies the first source's stays
    rows = [f'[[sources]]\nname = "{n}"\npaths = ["sources/{n}"]\nlicence = "for measuring only"' for n in names]
    rows[-2] += "\nsynthetic = true"
    clean = "[clean]\nheuristics = []\nprofanity = 1.0"
    benchmark = f'[[decontaminate.benchmarks]]\nname = "gsm8k"\nfiles = ["{questions}"]'
    return "\n\n".join(["tasks = 4", *rows, clean, benchmark]) + "\n"


def phial(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "phial", "data", *map(str, arguments)], check=True)


def thresholds(stage: Path) -> dict[str, float]:
    """The score from which each share of the pool's bytes is kept."""
    documents = [d for path in kept_files(stage) for d in read_documents(path) if d.metadata["source"] == "web"]
    documents.sort(key=lambda d: -d.metadata["quality"])
    whole, found, seen = sum(len(d.text) for d in documents), {}, 0
    for document in documents:
        seen += len(document.text)
        for name, share in KEEP.items():
            if name not in found and seen >= share * whole:
                found[name] = document.metadata["quality"]
    return found


def mixtures(limits: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    """Phases of every mixture, which share no document; an arm of one phase without a length is read over and over."""
    web: dict[str, dict[str, Any]] = {name: {"source": "web", "min_quality": limit} for name, limit in limits.items()}
    web["all"] = {"source": "web"}
    found: dict[str, list[dict[str, Any]]] = {name: [{"name": "one", "sources": [web[name]]}] for name in KEEP}
    both = [web["keep-40"] | {"weight": 4}, {"source": "synthetic", "weight": 1}]
    found["synthetic-20"] = [{"name": "one", "tokens": 1_680_000, "sources": both}]
    for name, best, weight in (("phases", "keep-10", 1), ("gentle", "keep-40", 4)):
        second = [web[best] | {"claim": 1, "weight": weight}, {"source": "synthetic", "weight": 1}]
        found[name] = [
            {"name": "general", "tokens": 630_000, "sources": [web["all"] | {"claim": 1}]},
            {"name": "chosen", "tokens": 215_000, "sources": second},
        ]
    return found


def _mix(folder: Path, name: str, phases: list[dict[str, Any]], seed: int) -> None:
    output = folder / "mix" / name
    if (output / "plan.json").exists():
        return
    lines = ["[mix]", f'tokenizer = "{folder / "vocabulary"}"', f"seed = {seed}", "validation = 0.0"]
    for phase in phases:
        lines += ["[[mix.phases]]", f'name = "{phase["name"]}"']
        lines += [f"tokens = {phase['tokens']}"] if "tokens" in phase else []
        shares = [", ".join(f"{key} = {json.dumps(value)}" for key, value in s.items()) for s in phase["sources"]]
        lines += ["sources = [" + ", ".join("{" + share + "}" for share in shares) + "]"]
    output.mkdir(parents=True, exist_ok=True)
    work = folder / "mix" / "work"
    work.mkdir(exist_ok=True)
    if not (output / "work").exists():
        (output / "work").symlink_to(work)  # every mixture has the same tokens: made once
    (output / "mix.toml").write_text("\n".join(lines) + "\n", "utf-8")
    phial("mix", folder / "run" / "05-decontaminate", "-c", output / "mix.toml", "-o", output)


def prepare(corpus: Path, questions: Path, folder: Path) -> None:
    """Everything the runs read, under `folder`; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pool.json").exists():
        (folder / "pool.json").write_text(json.dumps(write_sources(corpus, folder), indent=1) + "\n")
        (folder / "corpus.toml").write_text(_settings(folder, questions), "utf-8")
    phial("run", folder / "corpus.toml", "-o", folder / "run")
    stage = folder / "run" / "05-decontaminate"
    if not (folder / "vocabulary").exists():
        phial("vocabulary", stage, "-o", folder / "vocabulary", "--size", str(VOCABULARY))
    limits = thresholds(stage)
    (folder / "thresholds.json").write_text(json.dumps(limits) + "\n")
    _mix(folder, "held", [{"name": _source(k), "sources": [{"source": _source(k)}]} for k in HELD], 0)
    for name, phases in mixtures(limits).items():
        for seed in SEEDS if "tokens" in phases[0] else SEEDS[:1]:
            _mix(folder, f"{name}-{seed}", phases, seed)
