"""Models by name: a catalogue, a store of verified files, and downloads that resume.

    path = resolve("phi-3-mini-4k", download=True)

The functions act on the store of `home()`; `Store(folder)` does the same for another folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from phial.hub.catalogue import DEFAULT_MODEL, Model, find, names
from phial.hub.store import Store, StoredModel, home

__all__ = [
    "DEFAULT_MODEL", "Model", "Store", "StoredModel",
    "find", "home", "list_models", "names", "pull", "remove", "resolve", "stored_path",
]  # fmt: skip


def resolve(name: str | os.PathLike[str], *, download: bool = False, progress: bool = True) -> Path:
    """`Store.resolve` on the default store."""
    return Store().resolve(name, download=download, progress=progress)


def stored_path(name: str) -> Path | None:
    """`Store.stored_path` on the default store."""
    return Store().stored_path(name)


def pull(spec: str, *, progress: bool = True, source: str | None = None) -> Path:
    """`Store.pull` on the default store."""
    return Store().pull(spec, progress=progress, source=source)


def list_models() -> list[StoredModel]:
    """`Store.list_models` on the default store."""
    return Store().list_models()


def remove(name: str) -> int:
    """`Store.remove` on the default store."""
    return Store().remove(name)
