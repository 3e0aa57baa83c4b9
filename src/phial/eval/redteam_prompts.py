"""Requests to attack with: the small built-in set, and files of users in whatever columns public sets have them.

csv with a header (a column by name) or without one (by number, from 1), JSON lines or a JSON list of objects (a key) or
of strings, and text (a line a request); each also as .gz or .zst. A row without the column is an error with its number.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.compressed import opened
from phial.errors import PhialError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = "built-in"


class Prompt(NamedTuple):
    """A request: where it comes from, its text, and what kind of harm it asks for ("" where nobody says)."""

    id: str
    text: str
    category: str = ""


class PromptFile(BaseModel):
    """A file of requests and which of them are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    column: str | int | None = Field(None, description="name, or number from 1 where a csv file has no header")
    category: str | None = Field(None, description="the column that names the kind of harm")
    context: str | None = Field(None, description="a column of text the request is about; stands below it")
    where: dict[str, str] = Field({}, description="only rows with these values in these columns")
    limit: int | None = Field(None, gt=0, description="so many, chosen by a hash of seed and text")
    seed: int = 0


class Category(NamedTuple):
    """A kind of harm: requests to refuse, look-alikes to answer, and what refusals are made of."""

    name: str
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    because: tuple[str, ...]
    instead: tuple[str, ...]


class BuiltIn(NamedTuple):
    """The file harm_categories.toml. `answers` are the parts of refusals that every category shares."""

    categories: tuple[Category, ...]
    general: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]


@cache
def built_in() -> BuiltIn:
    """The set that comes with phial."""
    table = tomllib.loads((files("phial.eval") / "harm_categories.toml").read_text("utf-8"))
    categories = tuple(
        Category(row["name"], *(tuple(row[key]) for key in ("harmful", "harmless", "because", "instead")))
        for row in table["category"]
    )
    general = tuple(text for part in table["general"] for text in part["prompts"])
    return BuiltIn(categories, general, {key: tuple(values) for key, values in table["answers"].items()})


def built_in_prompts(harmless: bool = False) -> list[Prompt]:
    """The built-in requests to refuse, or their look-alikes."""
    found = []
    for category in built_in().categories:
        for number, text in enumerate(category.harmless if harmless else category.harmful, 1):
            what = "harmless" if harmless else "harmful"
            found.append(Prompt(f"{BUILT_IN}/{category.name}/{what}/{number}", text, category.name))
    return found


def held_back(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to fix with and prompts held out, about `share` of each category; a text decides its own side."""
    names = dict.fromkeys(prompt.category for prompt in prompts)
    out = set()
    for name in names:
        members = sorted((p for p in prompts if p.category == name), key=lambda p: _place(seed, p.text))
        out |= {prompt.id for prompt in members[: round(share * len(members))]}
    return [p for p in prompts if p.id not in out], [p for p in prompts if p.id in out]


def read_prompts(file: PromptFile) -> list[Prompt]:
    """The requests of a file; repeated texts once.

    Raises PhialError for a file that cannot be read, a column that is not there, an empty text, and where none is left.
    """
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(read_table(file.path, header=not isinstance(file.column, int)), 1):
        if all(row.get(key) == value for key, value in file.where.items()):
            text = _cell(row, str(file.column or "text"), file, number)
            if file.context and row.get(file.context):
                text = f"{text}\n\n{row[file.context]}"
            category = _cell(row, file.category, file, number) if file.category else ""
            prompts.setdefault(text, Prompt(f"{file.path.name}/{number}", text, category))
    if not prompts:
        raise PhialError(f"{file.path} has no requests that are asked for", "check `where` and the file")
    chosen = sorted(prompts.values(), key=lambda p: _place(file.seed, p.text))[: file.limit]
    return [prompt for prompt in prompts.values() if prompt in set(chosen)]


def read_table(path: Path, *, header: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a csv, jsonl, json or text file; the columns of a csv file without a header are "1", "2" ...

    A text file and a list of strings have the one column "text". Raises PhialError where the file is none of these.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise PhialError(f"{path} cannot be read: {error}", "check the path and the file") from error
    if name.endswith(".csv"):
        yield from _csv(text, path, header)
    elif name.endswith(".txt"):
        yield from ({"text": line.strip(), "1": line.strip()} for line in text.splitlines() if line.strip())
    elif name.endswith((".jsonl", ".json", ".ndjson")):
        yield from _json(text, path)
    else:
        raise PhialError(f"{path} is no file of requests", "its name ends in .csv, .jsonl, .json or .txt (.gz, .zst)")


def _csv(text: str, path: Path, header: bool) -> Iterator[dict[str, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = list[str]()
    try:
        for row in filter(None, rows):
            if header and not names:
                names = row
            elif header and len(row) != len(names):
                raise PhialError(f"{path}, line {rows.line_num} has {len(row)} columns, not {len(names)}", "mend it")
            else:
                yield dict(zip(names if header else map(str, range(1, len(row) + 1)), row, strict=True))
    except csv.Error as error:
        raise PhialError(f"{path}, line {rows.line_num} is no csv: {error}", "quote cells that hold commas") from error


def _json(text: str, path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = [line for line in text.split("\n") if line.strip()]  # JSON may hold U+2028, no end of a line
        values = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text, and no file can hold it
    except (ValueError, RecursionError) as error:
        raise PhialError(f"{path} is no JSON: {error}", "a list, or an object on each line") from error
    for number, value in enumerate(values, 1):
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict):
            raise PhialError(f"{path}, row {number} is {type(value).__name__}", "a row is an object or a string")
        yield value


def _cell(row: dict[str, Any], column: str, file: PromptFile, number: int) -> str:
    if column not in row:
        raise PhialError(f"{file.path}, row {number} has no column {column!r}", f"it has {', '.join(row)}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise PhialError(f"{file.path}, row {number}: {column} is {value!r:.40}", "it is a text")
    return value.strip()


def _place(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()
