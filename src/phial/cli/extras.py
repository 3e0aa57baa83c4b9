"""Which libraries a command needs beyond those that running a model does, and what to install where they are not."""

from __future__ import annotations

from importlib.util import find_spec

from phial.errors import PhialError

_NEEDED = {"data": ("datatrove", "pydantic", "zstandard"), "train": ("torch", "pydantic", "safetensors")}


def require(extra: str, purpose: str) -> None:
    """Raises PhialError where the libraries of an extra, data or train, are not installed."""
    missing = [name for name in _NEEDED[extra] if find_spec(name) is None]
    if missing:
        raise PhialError(f"{', '.join(missing)} is needed to {purpose}", f"pip install 'phial[{extra}]'")
