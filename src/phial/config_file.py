"""Configurations from TOML files: read, checked against a model, and the first key that is wrong named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from phial.errors import PhialError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path, what: str = "TOML file") -> dict[str, Any]:
    """The tables of a TOML file. Raises PhialError that calls the file no `what` where it is none."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise PhialError(f"there is no {path}", "name a TOML file; docs/concepts/ has examples") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PhialError(f"{path} is no {what}: {error}", "docs/concepts/ has examples") from error


def read_config(path: Path, kind: type[Model]) -> Model:
    """Read a TOML file. Raises PhialError with the key where it is not right."""
    return checked(kind, read_toml(path), str(path))


def checked(kind: type[Model], table: dict[str, Any], where: str) -> Model:
    """A configuration from a table. Raises PhialError with the first key that is wrong."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        value = "" if first["type"] in ("missing", "extra_forbidden") else f" ({first.get('input')!r})"
        what = "is not known" if first["type"] == "extra_forbidden" else _said(first["msg"])
        whose = f"{where}: {key}{value}" if first["loc"] else where  # a check of the whole names what it is about
        raise PhialError(f"{whose}: {what}", _hint(kind, first["loc"])) from error


def _said(message: str) -> str:
    """pydantic's words, or a validator's own as they are."""
    own = message.removeprefix("Value error, ")
    return own if own != message else message.lower()


def _hint(kind: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """The keys there are, at the level of the one that is wrong."""
    model: Any = kind
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return "keys: " + ", ".join(model.model_fields)
