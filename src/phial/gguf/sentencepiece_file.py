"""tokenizer.model, the SentencePiece file of Llama and Phi-3: read for conversion, and written from a GGUF vocabulary.

Only BPE models without normalisation: GGUF's "llama" tokenizer means nothing else. Also the two ways of saying in which
order pieces merge, scores here and ranked pairs in tokenizer.json.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from phial.errors import FormatError
from phial.tokenizer.protobuf import bytes_field, fields, varint_field
from phial.tokenizer.vocabulary import TokenType, Vocabulary

_BPE = 2  # TrainerSpec.ModelType
_HINT = "only BPE models without normalisation can be stored as GGUF's 'llama' tokenizer"


@dataclass
class Pieces:
    """A SentencePiece vocabulary in order of ids; the proto's piece types are GGUF's token types."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)
    add_space_prefix: bool = True


def read_model(data: bytes) -> Pieces:
    """The vocabulary of a tokenizer.model. FormatError for what is none, and for what GGUF cannot express."""
    pieces = Pieces()
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            _read_piece(value, pieces)
        elif number in (2, 3) and isinstance(value, bytes):
            (trainer if number == 2 else normalizer).update(fields(value))
    if not pieces.tokens:
        raise FormatError("tokenizer.model holds no pieces", "this is no sentencepiece model")
    if trainer.get(3, 1) != _BPE:
        raise FormatError(f"tokenizer.model is of model type {trainer.get(3, 1)!r}, not {_BPE} (BPE)", _HINT)
    if normalizer.get(2, b"") or normalizer.get(4, 1):
        raise FormatError("tokenizer.model normalises its text or removes extra whitespace", _HINT)
    pieces.add_space_prefix = bool(normalizer.get(3, 1))
    return pieces


def _read_piece(message: bytes, pieces: Pieces) -> None:
    values = dict(fields(message))
    text, score, kind = values.get(1, b""), values.get(2, b"\0\0\0\0"), values.get(3, int(TokenType.NORMAL))
    known = {int(known) for known in TokenType} - {int(TokenType.UNDEFINED)}
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or kind not in known:
        raise FormatError(f"tokenizer.model: piece {len(pieces.tokens)} is damaged")
    try:
        pieces.tokens.append(text.decode())
    except UnicodeDecodeError as error:
        raise FormatError(f"tokenizer.model: piece {len(pieces.tokens)} is no UTF-8: {text!r}") from error
    pieces.scores.append(struct.unpack("<f", score)[0])
    pieces.types.append(TokenType(int(kind)))


def write_model(vocabulary: Vocabulary) -> bytes:
    """tokenizer.model of a "llama" vocabulary, ids kept, except that padding at the end is left out."""
    assert vocabulary.scores is not None
    count = len(vocabulary.tokens)
    while vocabulary.types[count - 1] is TokenType.UNUSED:
        count -= 1
    unknown = vocabulary.unk_id or 0
    out = []
    for i in range(count):
        kind = TokenType.UNKNOWN if i == unknown else vocabulary.types[i]
        if kind is TokenType.UNDEFINED or (kind is TokenType.UNKNOWN and i != unknown):
            kind = TokenType.UNUSED
        text = bytes_field(1, vocabulary.tokens[i].encode("utf-8", "surrogateescape"))
        out.append(bytes_field(1, text + b"\x15" + struct.pack("<f", vocabulary.scores[i]) + varint_field(3, kind)))
    has_bytes = int(TokenType.BYTE in vocabulary.types)
    trainer = varint_field(3, _BPE) + varint_field(4, count) + varint_field(35, has_bytes)
    for number, token in ((40, unknown), (41, vocabulary.bos_id), (42, vocabulary.eos_id)):
        trainer += varint_field(number, token) if token is not None else b""
    prefix = varint_field(3, int(vocabulary.add_space_prefix))
    normalizer = bytes_field(1, b"identity") + prefix + varint_field(4, 0) + varint_field(5, 1)
    return b"".join(out) + bytes_field(2, trainer) + bytes_field(3, normalizer)


def merges_of(tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]) -> list[tuple[str, str]]:
    """The pairs a SentencePiece encoder merges, best first: every split of a piece into two pieces."""
    ids = {text: i for i, text in enumerate(tokens) if types[i] is TokenType.NORMAL}
    ranked = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], i, left, right))
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(ranked)]


def scores_of(tokens: Sequence[str], types: Sequence[TokenType], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores under which SentencePiece merges the given pairs in the given order, (len(tokens),).

    Raises:
        FormatError: no scores do that, because the encoder would merge other pairs or in another order.
    """
    normal: Mapping[str, int] = {text: i for i, text in enumerate(tokens) if types[i] is TokenType.NORMAL}
    wanted = [pair for pair in merges if pair[0] in normal and pair[1] in normal and "".join(pair) in normal]
    ranks: dict[str, int] = {}
    for pair in wanted:
        ranks.setdefault("".join(pair), len(ranks))
    order = [ranks["".join(pair)] for pair in wanted]
    scores = [-float(ranks.get(text, len(ranks))) for text in tokens]
    if order != sorted(order) or set(wanted) != set(merges_of(tokens, scores, types)):
        raise FormatError(
            "tokenizer.json: the merges are not those of a SentencePiece vocabulary",
            "put the model's tokenizer.model beside it",
        )
    return [float(np.float32(score)) for score in scores]
