"""What every stage's folder is recognised by: JSON records written whole or not at all, and digests of files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    """Feed a file's bytes to a digest, a megabyte at a time."""
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    hash_file(path, digest)
    return digest.hexdigest()
