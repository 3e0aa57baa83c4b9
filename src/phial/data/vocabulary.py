"""A trained vocabulary as a Hugging Face folder, from files of text or a stage's documents.

transformers, `phial convert` and phial's own tokenizer read the folder with equal ids.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from phial.data.document import SUFFIX, read_documents
from phial.errors import ArgumentError, PhialError
from phial.gguf.hf_tokenizer_files import write_hf_tokenizer
from phial.tokenizer.train import Kind, train_vocabulary

_BLOCK = 1 << 20  # characters of a plain text file read at once
_CONTEXT = 4096  # model_max_length, which transformers wants; a model's own config.json decides


def write_vocabulary(
    texts: Iterable[str], size: int, folder: Path, kind: Kind = "byte-level", *, pre: str = "qwen2"
) -> dict[str, Any]:
    """Train a vocabulary and write its folder; the metadata it was written from.

    Raises:
        PhialError: the folder exists, or as train_vocabulary().
    """
    if folder.exists():
        raise ArgumentError(f"{folder} exists already", "remove it or name another folder")
    metadata = train_vocabulary(texts, size, kind, pre=pre, name=folder.name)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_hf_tokenizer(partial, metadata, _CONTEXT)
    os.replace(partial, folder)
    return metadata


def texts_of(paths: Iterable[Path]) -> Iterator[str]:
    """Texts of UTF-8 files, of .jsonl.zst files of documents, and of folders of either; a block at a time.

    Raises:
        PhialError: a path that does not exist, is empty of files, or is no UTF-8.
    """
    for path in paths:
        if path.is_dir():
            kept = path / "kept"
            files = sorted(p for p in (kept if kept.is_dir() else path).rglob("*") if p.is_file())
            if not files:
                raise PhialError(f"{path} holds no files", "name a folder of texts, or a stage's folder")
            yield from texts_of(files)
        elif path.name.endswith(SUFFIX):
            yield from (document.text for document in read_documents(path))
        else:
            yield from _blocks(path)


def _blocks(path: Path) -> Iterator[str]:
    """Whole lines of a file, about _BLOCK characters at a time."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            while lines := file.readlines(_BLOCK):
                yield "".join(lines)
    except OSError as error:
        raise PhialError(f"{path} cannot be read: {error.strerror}", "name files of text") from error
    except UnicodeDecodeError as error:
        raise PhialError(f"{path} is no UTF-8: {error}", "phial data clean repairs encodings") from error
