"""The vocabulary of a GGUF file: read from its metadata, every field checked, nothing guessed.

Which tokens are control tokens and which end a generation follows llama.cpp's loader, because files are made for it;
where it repairs or ignores a bad value, this reader refuses the file. Leaves out WordPiece, Unigram and RWKV.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.errors import FormatError

_PREFIX = "tokenizer.ggml."
# Ten times the longest token of any vocabulary in use: a bound on the tables built from a hostile file.
MAX_TOKEN_BYTES = 2048
# Byte-level pre-tokenizers whose models expect BOS although old files do not say so (llama.cpp's loader).
_BOS_BY_DEFAULT = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2", "tekken"}
# Names that end a generation wherever they occur; a token typed as ordinary text is retyped as control, like llama.cpp.
_END_MARKS = frozenset(
    "<|end|> <|endoftext|> <|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <end_of_turn> <｜end▁of▁sentence｜>".split()
)
# Names that end a generation only where the file itself calls them special: as plain text they mean something else.
_END_MARKS_IF_SPECIAL = frozenset("</s> <EOT> [EOT] [EOS] <eos> <|fim_pad|> <|repo_name|> <|file_sep|>".split())

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenType(IntEnum):
    """tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPECIAL = {TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED}


@dataclass(frozen=True)
class Vocabulary:
    """Checked contents of tokenizer.ggml.*.

    Attributes:
        model: "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE).
        pre: name of the pre-tokenizer, "" where the file names none.
        name: general.name, "" where absent.
        tokens, types: text and TokenType of every id.
        scores: float32 (n_vocab,), for "llama".
        merges: pairs in order of rank, for "gpt2".
        bos_id, eos_id, eot_id, unk_id, pad_id: None where the file names none.
        eog_ids: ids after which a generation is over.
    """

    model: str
    pre: str
    name: str
    tokens: list[str]
    types: list[TokenType]
    scores: NDArray[np.float32] | None
    merges: list[tuple[str, str]]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    pad_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool

    def special_tokens(self) -> dict[str, int]:
        """Ids of the tokens that are split off before the model sees the text: control, unknown, user-defined."""
        return {self.tokens[i]: i for i, kind in enumerate(self.types) if kind in _SPECIAL}


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Vocabulary of a GGUF file's metadata.

    Raises:
        FormatError: a field is missing, of the wrong type or length, or names a token that does not exist.
    """
    model = _text(metadata, _PREFIX + "model")
    if model not in ("llama", "gpt2"):
        raise FormatError(f"{_PREFIX}model is {model!r}", "phial reads 'llama' (SentencePiece BPE) and 'gpt2' (BPE)")
    tokens, types = _tokens_and_types(metadata)
    n = len(tokens)
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) != n:
        second = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise FormatError(f"{_PREFIX}tokens: {tokens[second]!r} stands at ids {second} and {ids[tokens[second]]}")
    eos_id, eot_id = _token_id(metadata, "eos", n, model), _token_id(metadata, "eot", n, model)
    eog_ids = {i for i in (eos_id, eot_id, _token_id(metadata, "eom", n, model)) if i is not None}
    eog_ids |= _retype_end_marks(ids, types)
    pre = _text(metadata, _PREFIX + "pre", "")
    bos_id = _token_id(metadata, "bos", n, model)
    add_bos = _flag(metadata, "add_bos_token", model == "llama" or pre in _BOS_BY_DEFAULT)
    if add_bos and bos_id is None:
        raise FormatError(f"{_PREFIX}add_bos_token is on, but {_PREFIX}bos_token_id is missing")
    return Vocabulary(
        model=model,
        pre=pre,
        name=_text(metadata, "general.name", ""),
        tokens=tokens,
        types=types,
        scores=_scores(metadata, n) if model == "llama" else None,
        merges=_merges(metadata) if model == "gpt2" else [],
        bos_id=bos_id,
        eos_id=eos_id,
        eot_id=eot_id,
        unk_id=_token_id(metadata, "unknown", n, model),
        pad_id=_token_id(metadata, "padding", n, model),
        eog_ids=frozenset(eog_ids),
        add_bos=add_bos,
        add_eos=_flag(metadata, "add_eos_token", False),
        add_space_prefix=_flag(metadata, "add_space_prefix", True) if model == "llama" else False,
    )


def byte_of(text: str) -> int:
    """The byte a BYTE token such as `<0x0A>` stands for. FormatError for another spelling."""
    match = _BYTE.fullmatch(text)
    if match is None:
        raise FormatError(f"tokenizer.ggml.tokens: byte token {text!r}", "byte tokens are written <0x00> to <0xFF>")
    return int(match[1], 16)


def _tokens_and_types(metadata: Mapping[str, Any]) -> tuple[list[str], list[TokenType]]:
    raw = _strings(metadata, _PREFIX + "tokens")
    if not raw:
        raise FormatError(f"{_PREFIX}tokens is empty")
    kinds = _numbers(metadata, _PREFIX + "token_type", len(raw), "iu")
    known = {int(kind) for kind in TokenType}
    if wrong := set(np.unique(kinds).tolist()) - known:
        raise FormatError(f"{_PREFIX}token_type holds {min(wrong)}", "types run from 0 to 6")
    types = [TokenType(kind) for kind in kinds.tolist()]
    tokens = list(raw)
    for i, text in enumerate(tokens):
        if (
            len(text) > MAX_TOKEN_BYTES // 4
            and (size := len(text.encode("utf-8", "surrogateescape"))) > MAX_TOKEN_BYTES
        ):
            raise FormatError(f"{_PREFIX}tokens: token {i} is {size} bytes long, more than {MAX_TOKEN_BYTES}")
        if not text:  # a hole in the table: never matched, prints nothing
            tokens[i], types[i] = f"[EMPTY_{i}]", TokenType.UNUSED
        if types[i] is TokenType.BYTE:
            byte_of(tokens[i])
    return tokens, types


def _retype_end_marks(ids: Mapping[str, int], types: list[TokenType]) -> set[int]:
    """Ids of the end marks; those found are control tokens from here on, so that no user's text can produce them."""
    found = {ids[text] for text in _END_MARKS if text in ids}
    found |= {ids[text] for text in _END_MARKS_IF_SPECIAL if text in ids and types[ids[text]] in _SPECIAL}
    for i in found:
        types[i] = TokenType.CONTROL
    return found


def _scores(metadata: Mapping[str, Any], n: int) -> NDArray[np.float32]:
    scores = _numbers(metadata, _PREFIX + "scores", n, "f").astype(np.float32)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise FormatError(f"{_PREFIX}scores: the score of token {bad} is {scores[bad]}")
    return scores


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for rank, text in enumerate(_strings(metadata, _PREFIX + "merges")):
        left, _, right = text[1:].partition(" ")  # the first character may itself be a space
        if not text or not right:
            raise FormatError(
                f"{_PREFIX}merges: entry {rank} is {text!r}", "an entry is two pieces and a space between"
            )
        merges.append((text[0] + left, right))
    return merges


def _text(metadata: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise FormatError(f"{key} is missing" if value is None else f"{key} is {type(value).__name__}, not a string")
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, (bool, np.bool_)):
        raise FormatError(f"{_PREFIX}{name} is {value!r}, not a truth value")
    return bool(value)


def _token_id(metadata: Mapping[str, Any], name: str, n: int, model: str) -> int | None:
    """The id stored as <name>_token_id; Llama's own defaults (unk 0, bos 1, eos 2) where a "llama" file names none."""
    key = f"{_PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is None:
        default = {"unknown": 0, "bos": 1, "eos": 2}.get(name) if model == "llama" else None
        return default if default is not None and default < n else None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise FormatError(f"{key} is {value!r}, not an integer")
    if not 0 <= value < n:
        raise FormatError(f"{key} is {value}, but there are {n} tokens")
    return int(value)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"{key} is missing" if value is None else f"{key} is not an array of strings")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, n: int, kinds: str) -> NDArray[Any]:
    value = metadata.get(key)
    if value is None:
        raise FormatError(f"{key} is missing")
    array = value if isinstance(value, np.ndarray) else None
    if array is None or array.ndim != 1 or array.dtype.kind not in kinds:
        raise FormatError(f"{key} is not an array of {'floats' if 'f' in kinds else 'integers'}")
    if len(array) != n:
        raise FormatError(f"{key} has {len(array)} entries for {n} tokens")
    return array
