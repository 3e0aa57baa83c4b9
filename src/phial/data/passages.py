"""Passages of web text for a teacher to rewrite: documents of jsonl files, cut at paragraphs, with their licences."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phial.data.document import SUFFIX, read_documents
from phial.errors import FormatError, PhialError


class Passage(NamedTuple):
    """A piece of a document: its text, the document's id, and the licence the document carries."""

    text: str
    document: str
    licence: str


def read_passages(files: Sequence[Path], max_words: int) -> list[Passage]:
    """All passages, in an order that depends on their texts alone; equal ones once.

    Args:
        files: jsonl or jsonl.zst, one {"text", "id", "metadata": {"licence"}} a line, as every stage writes them.
        max_words: a passage ends with the paragraph (of a longer one: the sentence, else the word) that fills it.

    Raises:
        FormatError: a line is no such document.
        PhialError: a document has no licence, which a rewrite must inherit.
    """
    passages: dict[str, Passage] = {}
    for path in files:
        for found, where in _documents(path):
            document = _checked(found, where)
            for text in _pieces(document["text"], max_words):
                key = hashlib.sha256(text.encode()).hexdigest()
                passages.setdefault(key, Passage(text, document["id"], document["metadata"]["licence"]))
    return [passages[key] for key in sorted(passages)]


def _documents(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every document and where it stands."""
    if path.name.endswith(SUFFIX):
        for number, document in enumerate(read_documents(path), 1):
            yield {"text": document.text, "id": document.id, "metadata": document.metadata}, f"{path}, line {number}"
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                yield json.loads(line), where
            except ValueError:
                raise FormatError(f"{where} is no JSON", "name files of jsonl or jsonl.zst") from None


def _checked(document: Any, where: str) -> dict[str, Any]:
    try:
        licence = document["metadata"].get("licence")
        assert isinstance(document["text"], str) and isinstance(document["id"], str)
        document["text"].encode()  # half a surrogate pair is no text
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise FormatError(f"{where} is no document", 'a line is {"text", "id", "metadata"}') from None
    if not licence:
        raise PhialError(f"{where} has no licence", "a rewrite inherits it: set metadata.licence of its source")
    checked: dict[str, Any] = document
    return checked


def _pieces(text: str, max_words: int) -> Iterator[str]:
    """The text in pieces of at most `max_words` words."""
    piece: list[str] = []
    size = 0
    for part in _parts(text, max_words):
        words = len(part.split())
        if piece and size + words > max_words:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(part)
        size += words
    if piece:
        yield "\n\n".join(piece)


def _parts(text: str, max_words: int) -> Iterator[str]:
    """Paragraphs; sentences of those that are too long; runs of words of sentences that are too long."""
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph.split()) <= max_words:
            if paragraph.strip():
                yield paragraph.strip()
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
            words = sentence.split()
            for start in range(0, len(words), max_words):
                yield " ".join(words[start : start + max_words])
