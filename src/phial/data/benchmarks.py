"""Benchmark texts to keep out of training data: questions and answers from jsonl, json, csv and txt files."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from phial.errors import PhialError

# Where the field names are not given, all of these that a record has make its question and its answers.
QUESTION_FIELDS = (
    "passage context ctx article story Body instruction input problem goal sentence text question.stem question "
    "Question sQuestion query prompt turns"
).split()
ANSWER_FIELDS = (
    "options choices question.choices endings sol1 sol2 answer answers output target canonical_solution code "
    "mc1_targets solution"
).split()


class Item(NamedTuple):
    """One question of a benchmark."""

    benchmark: str
    label: str  # the benchmark's name, and the place of the record in it
    question: str
    answers: str = ""  # matched with the question where the question alone is too short or too common


class Benchmark(BaseModel):
    """Files of one benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    files: tuple[str, ...]  # paths or globs; .gz is unpacked
    fields: tuple[str, ...] = ()  # of the question, dots into objects; see QUESTION_FIELDS for what () means
    answer_fields: tuple[str, ...] = ()


def read_items(benchmark: Benchmark) -> Iterator[Item]:
    """The questions of a benchmark's files; a txt file has one a paragraph.

    Raises:
        PhialError: a pattern that names no file, an unreadable one, a record without any of the fields.
    """
    count = 0
    for path in files_of(benchmark):
        for record in _records(path):
            yield _item(benchmark, record, count, path)
            count += 1


def files_of(benchmark: Benchmark) -> list[Path]:
    """The files of a benchmark; PhialError for a pattern that names none."""
    found: list[Path] = []
    for pattern in benchmark.files:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise PhialError(f"benchmark {benchmark.name}: no file is {pattern}", "check the path or the pattern")
        found += map(Path, paths)
    return found


def items_of(name: str, questions: Iterable[str]) -> Iterator[Item]:
    """Questions at hand as items."""
    return (Item(name, f"{name}#{place}", question) for place, question in enumerate(questions))


def _item(benchmark: Benchmark, record: Mapping[str, Any], place: int, path: Path) -> Item:
    question = _joined(record, benchmark.fields or QUESTION_FIELDS)
    if not question.strip():
        wanted = ", ".join(benchmark.fields) or "a known name of a question"
        raise PhialError(
            f"{path}: record {place} of {benchmark.name} has no text in {wanted}; it has {', '.join(record)}",
            'name the fields of the question, as fields = ["..."]',
        )
    answers = _joined(record, benchmark.answer_fields or ANSWER_FIELDS)
    return Item(benchmark.name, f"{benchmark.name}#{place}", question, answers)


def _joined(record: Mapping[str, Any], fields: Iterable[str]) -> str:
    """The texts in these fields, each once: of `question.stem` and `question` the first that is a text."""
    texts = (_text(record, field) for field in fields)
    return "\n".join(dict.fromkeys(text for text in texts if text.strip()))


def _text(record: Mapping[str, Any], field: str) -> str:
    value: Any = record
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):  # answers by letter, or scores by answer; anything else is named with a dot
        if all(isinstance(part, str) for part in value.values()):
            value = list(value.values())
        else:
            value = list(value) if all(isinstance(part, int) for part in value.values()) else None
    if isinstance(value, list):
        return "\n".join(str(v.get("text", "")) if isinstance(v, Mapping) else str(v) for v in value)
    return "" if value is None else str(value)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    text = _read(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        if kind == "jsonl":
            yield from (json.loads(line) for line in io.StringIO(text) if line.strip())
        elif kind == "json":
            yield from _listed(json.loads(text), path)
        elif kind in ("csv", "tsv"):
            yield from csv.DictReader(io.StringIO(text), delimiter="," if kind == "csv" else "\t")
        elif kind == "txt":
            yield from ({"text": part} for part in text.split("\n\n") if part.strip())
        else:
            raise PhialError(
                f"{path}: .{kind} files are not read", "give jsonl, json, csv, tsv or txt, or these with .gz"
            )
    except json.JSONDecodeError as error:
        raise PhialError(f"{path}: not JSON: {error}", "a file of one record a line is named .jsonl") from error


def _listed(value: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a JSON file: a list, or the list in an object that has only one list of objects."""
    if isinstance(value, Mapping):
        lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], Mapping)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or not all(isinstance(record, Mapping) for record in value):
        raise PhialError(f"{path}: no list of records", "give a list of objects, or an object with one such list")
    yield from value


def _read(path: Path) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise PhialError(f"{path} cannot be read: {error}", "give UTF-8 text, or that packed with gzip") from error
