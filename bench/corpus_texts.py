"""Real text for the corpus of bench/data.py: a folder of texts, and Debian's documentation packages.

Each source says its licence and its tier, what a reader would learn from it: textbook, encyclopedia, reference,
literature, dialogue, chatter, foreign (not English).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PART = 6000  # characters, about, in a document cut from a book


class Text(NamedTuple):
    """One document: its text (or its page, where html) and where it came from."""

    text: str
    path: str
    html: bool = False


class Source(NamedTuple):
    """A kind of real text; `megabytes` is what is taken of it at the default size."""

    name: str
    licence: str
    tier: str
    megabytes: float
    files: str  # a pattern in the folder of texts, or in an unpacked package
    read: Callable[[Path], Iterator[Text]]
    package: str = ""


def paragraphs(text: str, size: int = PART) -> Iterator[str]:
    """The text cut where a paragraph ends, in parts of about `size` characters."""
    part: list[str] = []
    length = 0
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        part.append(paragraph)
        length += len(paragraph)
        if length >= size:
            yield "\n\n".join(part)
            part, length = [], 0
    if length > size // 4:
        yield "\n\n".join(part)


def _opened(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8", "replace")


def _lines(path: Path) -> Iterator[dict[str, object]]:
    for line in _opened(path).split("\n"):
        if line:  # not splitlines, which also cuts at U+2028
            yield json.loads(line)


def books(path: Path) -> Iterator[Text]:
    for record in _lines(path):
        for number, part in enumerate(paragraphs(str(record["text"]))):
            yield Text(part, f"{record['path']}#{number}")


def modules(path: Path) -> Iterator[Text]:
    for record in _lines(path):
        text = str(record["text"])
        for number, part in enumerate(paragraphs(text.replace("\n", "\n\n"), 2 * PART)):
            yield Text(part.replace("\n\n", "\n"), f"{path.name}#{record['module']}.{number}")


def plain(path: Path) -> Iterator[Text]:
    for number, part in enumerate(paragraphs(_opened(path))):
        yield Text(part, f"{path.name}#{number}")


def conversations(path: Path) -> Iterator[Text]:
    for record in _lines(path):
        turns = record["turns"]
        assert isinstance(turns, list)
        yield Text("\n".join(f"{'AB'[i % 2]}: {turn.strip()}" for i, turn in enumerate(turns)), f"#{record['id']}")


def tweets(path: Path) -> Iterator[Text]:
    for row in csv.DictReader(io.StringIO(_opened(path))):
        yield Text(row["tweet"], f"{path.name}#{row['']}")


def page(path: Path) -> Iterator[Text]:
    yield Text(path.read_bytes().decode("utf-8", "replace"), path.name, html=True)


def entries(path: Path) -> Iterator[Text]:
    """A dictionary of dictd, cut between entries."""
    for number, part in enumerate(paragraphs(_opened(path), PART // 2)):
        yield Text(part, f"{path.name}#{number}")


_ESCAPES = {
    r"\-": "-",
    r"\&": "",
    r"\e": "\\",
    r"\(aq": "'",
    r"\(dq": '"',
    r"\(bu": "*",
    r"\|": "",
    r"\/": "",
    r"\ ": " ",
}
_FONT = re.compile(r"\\f(?:\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\\*\(..|\\\[[^]]*\]")
_PRINTING = {"SH", "SS", "B", "I", "BR", "BI", "IR", "RI", "RB", "IB", "TH", "IP", "SM", "SB"}


def manual(path: Path) -> Iterator[Text]:
    """A manual page; its macros read well enough for prose, tables and conditions left out."""
    out: list[str] = []
    for line in _opened(path).splitlines():
        if line.startswith((".", "'")):
            name, _, rest = line[1:].lstrip().partition(" ")
            if name in {"PP", "P", "TP", "LP", "br", "sp"}:
                out.append("")
            if name not in _PRINTING:
                continue
            joined = "" if len(name) == 2 and name not in {"SH", "SS", "TH", "IP", "SM", "SB"} else " "
            words = re.findall(r'"([^"]*)"|(\S+)', rest)
            line = joined.join(a or b for a, b in words)
            if name in {"SH", "SS"}:
                line = f"\n{line}\n"
        for escape, plain_text in _ESCAPES.items():
            line = line.replace(escape, plain_text)
        out.append(_FONT.sub("", line))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()
    if len(text) > 400:
        yield Text(text, path.name.removesuffix(".gz"))


SOURCES = [
    Source("textbooks", "CC-BY-4.0 (for measuring only)", "textbook", 45, "corpus/openstax-ccby/*.gz", modules),
    Source("wikipedia", "CC-BY-SA-3.0", "encyclopedia", 3, "corpus/wikitext-2/*.gz", plain),
    Source("classic-books", "public domain", "literature", 62, "corpus/classic-books/*.gz", books),
    Source("shakespeare", "public domain", "literature", 2, "corpus/tinyshakespeare/*.gz", plain),
    Source("dialogues", "CDLA-Sharing-1.0", "dialogue", 8, "instruct/topical_chat/*.gz", conversations),
    Source("tweets", "MIT", "chatter", 1, "safety/hate_offensive/*.gz", tweets),
    Source("python-doc", "PSF-2.0", "reference", 30, "**/*.html", page, "python3.11-doc"),
    Source("linux-doc", "GPL-2.0", "reference", 30, "**/*.html", page, "linux-doc-6.1"),
    Source("postgresql-doc", "PostgreSQL", "reference", 12, "**/*.html", page, "postgresql-doc-15"),
    Source("sqlite-doc", "public domain", "reference", 12, "**/*.html", page, "sqlite3-doc"),
    Source("perl-doc", "Artistic-1.0-Perl OR GPL-1.0-or-later", "reference", 12, "**/*.pod", plain, "perl-doc"),
    Source("gcide", "GPL-3.0-or-later", "encyclopedia", 25, "**/*.dz", entries, "dict-gcide"),
    Source("jargon", "public domain", "encyclopedia", 2, "**/*.dz", entries, "dict-jargon"),
    Source("manpages", "GPL-2.0-or-later and others", "reference", 2, "**/man?/*.gz", manual, "manpages"),
    Source("manpages-dev", "GPL-2.0-or-later and others", "reference", 4, "**/man?/*.gz", manual, "manpages-dev"),
    Source("manpages-de", "GPL-3.0-or-later", "foreign", 3, "**/man?/*.gz", manual, "manpages-de"),
    Source("manpages-fr", "GPL-3.0-or-later", "foreign", 3, "**/man?/*.gz", manual, "manpages-fr"),
    Source("manpages-es", "GPL-3.0-or-later", "foreign", 2, "**/man?/*.gz", manual, "manpages-es"),
]  # fmt: skip


def unpacked(package: str, cache: Path) -> tuple[Path, str]:
    """The folder a Debian package is unpacked in, and its version; fetched with apt-get where it is not there."""
    folder = cache / package
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-qq", "download", package], cwd=cache, check=True, stdout=sys.stderr)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, cache / f"{package}.partial"], check=True)
        (cache / f"{package}.partial").rename(folder)
    return folder, next(cache.glob(f"{package}_*.deb")).name.split("_")[1]


def read_source(source: Source, folder: Path, limit: int, seed: int) -> Iterator[Text]:
    """Its texts, files in an order drawn with the seed, up to `limit` bytes."""
    files = sorted(path for path in folder.glob(source.files) if path.is_file() and not path.is_symlink())
    random.Random(f"{seed} {source.name}").shuffle(files)
    taken = 0
    for path in files:
        for text in source.read(path):
            if len(text.text.strip()) < 20:
                continue
            yield text
            taken += len(text.text.encode("utf-8", "surrogatepass"))
            if taken >= limit:
                return
