"""SentencePiece BPE with byte fallback: the model rebuilt from GGUF metadata, run by the sentencepiece library.

Only the few fields of sentencepiece_model.proto that its BPE encoder reads are written, straight in protobuf's wire
format, so no protobuf runtime is needed. Loss that lies in the model itself: U+2581, its word mark, reads as a space.
"""

from __future__ import annotations

import struct

from phial.errors import ArgumentError, FormatError
from phial.tokenizer.protobuf import bytes_field, varint_field
from phial.tokenizer.vocabulary import TokenType, Vocabulary

# ModelProto.SentencePiece.Type. All but text and bytes become control pieces, which never match: special tokens are
# split off before, and an unused one has no text to give back.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE_PIECE = 1, 2, 3, 6
_PIECE_TYPE = {TokenType.NORMAL: _NORMAL, TokenType.BYTE: _BYTE_PIECE}
_BPE = 2  # TrainerSpec.ModelType


class SentencePieceModel:
    """Encoder over a rebuilt model; text goes in as it is, without prefix space or normalisation."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor

        self._n_vocab = len(vocabulary.tokens)
        proto = model_proto(vocabulary)
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(proto)
        except (RuntimeError, OSError) as error:
            raise FormatError(f"tokenizer.ggml.*: sentencepiece refuses the vocabulary: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special tokens.

        Raises:
            ArgumentError: a character has no token and the vocabulary has no byte tokens to spell it.
        """
        ids: list[int] = self._processor.encode(text, out_type=int)
        if self._n_vocab in ids:  # our extra unknown piece
            raise ArgumentError(f"the vocabulary cannot spell {text[:40]!r}", "remove its unusual characters")
        return ids


def model_proto(vocabulary: Vocabulary) -> bytes:
    """Serialised ModelProto: the vocabulary's pieces in order, then one unknown piece of our own at id n_vocab.

    The extra piece makes the file's own choice of unknown tokens irrelevant (sentencepiece insists on exactly one).
    """
    assert vocabulary.scores is not None
    n_bytes = vocabulary.types.count(TokenType.BYTE)
    if n_bytes not in (0, 256):
        raise FormatError(f"tokenizer.ggml.tokens has {n_bytes} byte tokens", "a vocabulary has 256 or none")
    pieces = [
        _piece(text.encode("utf-8", "surrogateescape"), score, _PIECE_TYPE.get(kind, _CONTROL))
        for text, kind, score in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores.tolist(), strict=True)
    ]
    unknown = "<phial unknown>"
    while unknown in vocabulary.tokens:
        unknown += " "
    pieces.append(_piece(unknown.encode(), 0.0, _UNKNOWN))
    trainer = varint_field(3, _BPE) + varint_field(35, 1 if n_bytes else 0) + varint_field(40, len(pieces) - 1)
    # add_dummy_prefix, remove_extra_whitespaces off: the tokenizer decides about the prefix; escape_whitespaces on
    normalizer = bytes_field(1, b"identity") + varint_field(3, 0) + varint_field(4, 0) + varint_field(5, 1)
    return b"".join(pieces) + bytes_field(2, trainer) + bytes_field(3, normalizer)


def _piece(text: bytes, score: float, kind: int) -> bytes:
    return bytes_field(1, bytes_field(1, text) + b"\x15" + struct.pack("<f", score) + varint_field(3, kind))
