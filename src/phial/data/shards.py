"""Token shards: a folder of files of token ids with document boundaries, an index, and windows from any position.

index.json        versions, the tokenizer's fingerprint, counts, sha256 of every file; written last
00000.tokens      ids, uint16 or uint32 by the vocabulary's size, little-endian; every document ends in EOS
00000.starts      where each document begins in this shard, uint64; then the shard's length
00000.keys        a hash of each document's id (document_key), uint64

Files are written to temporary names and renamed, so a name means a whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.errors import ArgumentError, FormatError
from phial.manifest import sha256_of, write_json

VERSION = 1
INDEX = "index.json"
_PARTS = ("tokens", "starts", "keys")


def token_type(n_vocab: int) -> np.dtype[Any]:
    """The narrowest type that holds every id of a vocabulary."""
    return np.dtype("<u2" if n_vocab <= 1 << 16 else "<u4")


def document_key(document_id: str) -> int:
    """64 bits that stand for a document's id; every choice about the document is made from them and a seed."""
    data = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "little")


class HashedFile:
    """A file under a temporary name, hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._file: BinaryIO = open(self._partial, "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def close(self) -> str:
        self._file.close()
        os.replace(self._partial, self.path)
        return self._digest.hexdigest()


class ShardWriter:
    """Writes one shard, document by document; `close` gives its files their names and returns its entry for the index.

    Memory: 16 bytes a document of this shard.
    """

    def __init__(self, folder: Path, name: str, n_vocab: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._n_vocab = folder, name, n_vocab
        self._type = token_type(n_vocab)
        self._tokens = HashedFile(folder / f"{name}.tokens")
        self._starts: list[int] = [0]
        self._keys: list[int] = []

    def add(self, tokens: Iterable[int] | NDArray[Any], key: int) -> None:
        """Append a document's ids, its EOS among them. ArgumentError for an id outside the vocabulary or no ids."""
        ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64)
        if not len(ids) or ids.min() < 0 or ids.max() >= self._n_vocab:
            what = f"ids from {ids.min()} to {ids.max()}" if len(ids) else "no ids"
            raise ArgumentError(f"a document has {what}, the vocabulary has {self._n_vocab}", "use its own tokenizer")
        self._tokens.write(ids.astype(self._type).tobytes())
        self._starts.append(self._starts[-1] + len(ids))
        self._keys.append(key)

    def close(self, **more: Any) -> dict[str, Any]:
        """Finish the shard; its entry, with what `more` says."""
        sha256 = {"tokens": self._tokens.close()}
        for part, values in (("starts", self._starts), ("keys", self._keys)):
            file = HashedFile(self._folder / f"{self._name}.{part}")
            file.write(np.array(values, "<u8").tobytes())
            sha256[part] = file.close()
        return {
            "name": self._name,
            "tokens": self._starts[-1],
            "documents": len(self._keys),
            "sha256": sha256,
            **more,
        }


def write_index(folder: Path, shards: list[dict[str, Any]], tokenizer: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write index.json over finished shards.

    Args:
        tokenizer: {"fingerprint", "n_vocab", "eos_id"}.
    """
    index = {
        "version": VERSION,
        "tokenizer": tokenizer,
        "type": token_type(tokenizer["n_vocab"]).name,
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "shards": shards,
        **more,
    }
    write_json(folder / INDEX, index)
    return index


def read_index(folder: Path) -> dict[str, Any]:
    """index.json, checked. FormatError where there is none, or one of another version."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        version = index["version"]
        if version == VERSION:
            token_type(int(index["tokenizer"]["n_vocab"]))
            [(str(s["name"]), int(s["tokens"]), int(s["documents"]), dict(s["sha256"])) for s in index["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: {error!r:.120}", "a finished phial data mix writes it") from error
    if version != VERSION:
        raise FormatError(f"{path} is of version {version!r}, this phial reads {VERSION}", "mix the corpus again")
    return dict(index)


class Window(NamedTuple):
    """n + 1 tokens, and for each the running number of its document in the folder; both int64."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]


class ShardReader:
    """A folder's shards as one row of tokens, mapped into memory.

    Attributes:
        index: what index.json says. n_tokens, n_documents: of the shards read.
    """

    def __init__(self, folder: Path, *, source: str | None = None, verify: bool = False) -> None:
        """Open a folder; with `source`, only the shards of that source (a validation folder has one a source).

        Raises:
            FormatError: no index, a missing file or one of another length; with `verify`, altered bytes.
            ArgumentError: no shard is of `source`.
        """
        self.folder, self.index = folder, read_index(folder)
        shards = [s for s in self.index["shards"] if source is None or s.get("source") == source]
        if source is not None and not shards:
            known = ", ".join(sorted({str(s.get("source")) for s in self.index["shards"]}))
            raise ArgumentError(f"{folder} has no shard of {source!r}", f"it has: {known}")
        self._shards = [s for s in shards if s["tokens"]]
        kind = token_type(self.index["tokenizer"]["n_vocab"])
        sizes = {"tokens": kind.itemsize, "starts": 8, "keys": 8}
        for shard in shards:
            self._check_sizes(shard, sizes)
        if verify:
            self._check_sums(shards)
        self._tokens = [self._map(s, "tokens", kind) for s in self._shards]
        self._starts = [self._map(s, "starts", np.dtype("<u8")) for s in self._shards]
        self._keys = [self._map(s, "keys", np.dtype("<u8")) for s in self._shards]
        self._first_token = np.cumsum([0, *(s["tokens"] for s in self._shards)])
        self._first_document = np.cumsum([0, *(s["documents"] for s in self._shards)])
        self.n_tokens, self.n_documents = int(self._first_token[-1]), int(self._first_document[-1])

    def window(self, position: int, n: int) -> Window:
        """The n + 1 tokens from `position` on: inputs and, one further, targets. The next window is at position + n.

        Raises:
            ArgumentError: n < 1, or the window does not lie within the folder's tokens.
        """
        if n < 1 or position < 0 or position + n + 1 > self.n_tokens:
            raise ArgumentError(
                f"a window of {n} + 1 tokens at {position}: the folder has {self.n_tokens} tokens",
                f"positions run from 0 to {self.n_tokens - n - 1}" if n >= 1 else "n is 1 or more",
            )
        tokens, documents = [], []
        end = position + n + 1
        shard = int(np.searchsorted(self._first_token, position, "right")) - 1
        while position < end:
            offset = int(self._first_token[shard])
            low, high = position - offset, min(end, int(self._first_token[shard + 1])) - offset
            tokens.append(self._tokens[shard][low:high].astype(np.int64))
            documents.append(self._documents(shard, low, high))
            position, shard = offset + high, shard + 1
        return Window(np.concatenate(tokens), np.concatenate(documents))

    def document(self, number: int) -> NDArray[np.int64]:
        """All ids of one document, its EOS last."""
        shard, local = self._place(number)
        low, high = (int(value) for value in self._starts[shard][local : local + 2])
        return self._tokens[shard][low:high].astype(np.int64)

    def key(self, number: int) -> int:
        """document_key() of a document's id."""
        shard, local = self._place(number)
        return int(self._keys[shard][local])

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self.n_documents:
            raise ArgumentError(f"document {number}", f"the folder has {self.n_documents} documents")
        shard = int(np.searchsorted(self._first_document, number, "right")) - 1
        return shard, number - int(self._first_document[shard])

    def _documents(self, shard: int, low: int, high: int) -> NDArray[np.int64]:
        starts = self._starts[shard]
        first, last = (int(np.searchsorted(starts, at, "right")) - 1 for at in (low, high - 1))
        edges = np.clip(starts[first : last + 2].astype(np.int64), low, high)
        numbers = np.arange(first, last + 1) + int(self._first_document[shard])
        return np.repeat(numbers, np.diff(edges))

    def _map(self, shard: dict[str, Any], part: str, kind: np.dtype[Any]) -> NDArray[Any]:
        return np.memmap(self.folder / f"{shard['name']}.{part}", kind, "r")

    def _check_sizes(self, shard: dict[str, Any], sizes: dict[str, int]) -> None:
        counts = {"tokens": shard["tokens"], "starts": shard["documents"] + 1, "keys": shard["documents"]}
        for part in _PARTS:
            path = self.folder / f"{shard['name']}.{part}"
            wanted, found = counts[part] * sizes[part], path.stat().st_size if path.exists() else None
            if found != wanted:
                what = "is missing" if found is None else f"has {found} bytes"
                raise FormatError(f"{path} {what}, the index says {wanted}", "mix the corpus again")

    def _check_sums(self, shards: list[dict[str, Any]]) -> None:
        for shard in shards:
            for part in _PARTS:
                path = self.folder / f"{shard['name']}.{part}"
                if (found := sha256_of(path)) != shard["sha256"][part]:
                    wanted = shard["sha256"][part]
                    raise FormatError(
                        f"{path} was altered: sha256 {found[:12]}, the index says {wanted[:12]}", "mix the corpus again"
                    )
