"""Any tokenizer by its path, a GGUF file's or a Hugging Face folder's, with the digest of what decides its ids."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from phial.errors import ArgumentError, PhialError
from phial.gguf.container import read_gguf
from phial.gguf.hf_tokenizer import read_hf_tokenizer
from phial.hf.folder import read_json
from phial.tokenizer.tokenizer import Tokenizer
from phial.tokenizer.vocabulary import Vocabulary, read_vocabulary


class OpenTokenizer(NamedTuple):
    """A tokenizer with what an index says of it."""

    tokenizer: Tokenizer
    eos_id: int
    fingerprint: str

    @property
    def described(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "n_vocab": self.tokenizer.n_vocab, "eos_id": self.eos_id}


@lru_cache(maxsize=1)
def open_tokenizer(path: str) -> OpenTokenizer:
    """The tokenizer of a GGUF file or of a Hugging Face folder, which may hold a tokenizer alone.

    Raises:
        PhialError: there is none, it is damaged, or it names no EOS, without which documents would run together.
    """
    place = Path(path)
    if place.is_dir():
        config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
        metadata, _ = read_hf_tokenizer(place, config, _n_vocab(place, config), place.name)
    elif place.is_file():
        with read_gguf(place) as file:
            metadata = dict(file.metadata)
    else:
        raise ArgumentError(f"there is no tokenizer at {path}", "name a GGUF file or a Hugging Face folder")
    vocabulary = read_vocabulary(metadata)
    if vocabulary.eos_id is None:
        raise PhialError(f"{path} names no EOS token", "documents are kept apart by it; set eos_token")
    return OpenTokenizer(Tokenizer.from_gguf(metadata), vocabulary.eos_id, fingerprint(vocabulary))


def _n_vocab(folder: Path, config: dict[str, Any]) -> int:
    """Rows of the embedding, or, for a tokenizer without a model, its number of ids."""
    if isinstance(config.get("vocab_size"), int):
        return int(config["vocab_size"])
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PhialError(f"{folder} has neither config.json nor tokenizer.json", "put one of them there")
    tokenizer = read_json(path)
    try:
        ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer.get("added_tokens", []))]
        return int(max(ids)) + 1
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PhialError(f"{path} is damaged: {error!r:.80}", "fetch it again") from error


def fingerprint(vocabulary: Vocabulary) -> str:
    """sha256 over all that decides the ids of a plain text; the name and the chat template do not."""
    v = vocabulary
    scores = [] if v.scores is None else v.scores.tolist()
    parts = [v.model, v.pre, v.tokens, [int(kind) for kind in v.types], scores, v.merges, v.eos_id, v.add_space_prefix]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
