"""A stage's documents as token ids, once: one set of files for each file of documents, whatever is mixed from them.

00000.tokens   ids, each document's EOS behind it
00000.table    one row a document (ROW): key of its id, where it lies, its source, whether synthetic, its quality
00000.json     what it was made from, and its sources by number; written last, so a part that has it is not made again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.document import read_documents
from phial.data.parallel import run_jobs
from phial.data.shards import HashedFile, document_key, token_type
from phial.errors import ArgumentError, PhialError
from phial.gguf.open_tokenizer import open_tokenizer
from phial.manifest import sha256_of, write_json

ROW = np.dtype(
    [
        ("key", "<u8"),
        ("start", "<u8"),
        ("length", "<u4"),  # the EOS among them
        ("source", "<u2"),
        ("synthetic", "u1"),
        ("quality", "<f4"),  # NaN where no score is stored
    ]
)
_VERSION = 1


class Part(NamedTuple):
    """The tokens of one file of documents."""

    folder: str
    name: str
    sources: tuple[str, ...]
    n_vocab: int
    tokens: int
    digest: str

    def table(self) -> NDArray[Any]:
        """The documents, in the file's order, as ROW."""
        return np.fromfile(Path(self.folder) / f"{self.name}.table", ROW)

    def map(self) -> NDArray[Any]:
        """All ids, mapped into memory; no ids where there are no documents."""
        path, kind = Path(self.folder) / f"{self.name}.tokens", token_type(self.n_vocab)
        return np.memmap(path, kind, "r") if self.tokens else np.zeros(0, kind)


def tokenise(files: list[Path], folder: Path, tokenizer: str, workers: int = 1) -> list[Part]:
    """Tokenise files of documents, each in a part of its own; parts made before from the same are kept.

    No BOS is written, whatever the tokenizer's rule for prompts: documents are told apart by the EOS behind each.
    Memory: one document, and 28 bytes a document of one file, for each worker.

    Raises:
        PhialError: a damaged file, or a text that the vocabulary cannot spell, with the document's id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(path, folder, f"{place:05}", tokenizer) for place, path in enumerate(files)]
    return run_jobs(_tokenise_file, jobs, workers, "tokens")


def _tokenise_file(job: tuple[Path, Path, str, str]) -> Part:
    path, folder, name, tokenizer_path = job
    opened = open_tokenizer(tokenizer_path)
    record = {"version": _VERSION, "input": sha256_of(path), "tokenizer": opened.fingerprint}
    done = _finished(folder, name, record, opened.tokenizer.n_vocab)
    if done is not None:
        return done
    (folder / f"{name}.json").unlink(missing_ok=True)
    kind = token_type(opened.tokenizer.n_vocab)
    tokens, table = HashedFile(folder / f"{name}.tokens"), HashedFile(folder / f"{name}.table")
    sources: dict[str, int] = {}
    start = 0
    for document in read_documents(path):
        try:
            ids = [*opened.tokenizer.encode(document.text, add_bos=False), opened.eos_id]
        except ArgumentError as error:
            raise PhialError(f"{path}: document {document.id}: {error.message}", error.hint) from error
        tokens.write(np.array(ids, kind).tobytes())
        metadata = document.metadata
        source = sources.setdefault(str(metadata.get("source", "")), len(sources))
        quality = float("nan") if metadata.get("quality") is None else float(metadata["quality"])
        row = (document_key(document.id), start, len(ids), source, bool(metadata.get("synthetic")), quality)
        table.write(np.array([row], ROW).tobytes())
        start += len(ids)
    sums = [tokens.close(), table.close()]
    write_json(folder / f"{name}.json", {**record, "sources": list(sources), "tokens": start, "sha256": sums})
    return Part(str(folder), name, tuple(sources), opened.tokenizer.n_vocab, start, "".join(sums))


def _finished(folder: Path, name: str, record: dict[str, Any], n_vocab: int) -> Part | None:
    """A part made earlier from the same file with the same tokenizer, its bytes as they were written."""
    try:
        found = json.loads((folder / f"{name}.json").read_text("utf-8"))
        if any(found[key] != value for key, value in record.items()):
            return None
        if [sha256_of(folder / f"{name}.{part}") for part in ("tokens", "table")] != found["sha256"]:
            return None
        return Part(str(folder), name, tuple(found["sources"]), n_vocab, found["tokens"], "".join(found["sha256"]))
    except (OSError, ValueError, KeyError):
        return None
