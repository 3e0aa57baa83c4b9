"""Byte-level BPE (GPT-2's): words cut by the pre-tokenizer, bytes written as printable characters, merges by rank.

The `tokenizers` library runs it. Special tokens are kept out of its vocabulary, so no sequence of merges in a user's
text can spell one.
"""

from __future__ import annotations

from phial.errors import ArgumentError, FormatError
from phial.tokenizer.pretokenizers import IGNORE_MERGES, patterns_for
from phial.tokenizer.vocabulary import TokenType, Vocabulary


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where printable in Latin-1, else from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    return table


CHARACTER_OF_BYTE = _byte_characters()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


class ByteLevelModel:
    """Encoder over the `tokenizers` library."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Regex, Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

        words = {text: i for i, text in enumerate(vocabulary.tokens) if vocabulary.types[i] is TokenType.NORMAL}
        _check_text(words)
        self._missing = frozenset(byte for byte, character in CHARACTER_OF_BYTE.items() if character not in words)
        steps: list[PreTokenizer] = [Split(Regex(p), "isolated") for p in patterns_for(vocabulary.pre)]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
        try:
            model = BPE(words, _merges(vocabulary, words), ignore_merges=vocabulary.pre in IGNORE_MERGES)
        except Exception as error:  # the library raises plain Exception
            raise FormatError(f"tokenizer.ggml.merges: the tokenizers library refuses them: {error}") from error
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = Sequence(steps)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special tokens.

        Raises:
            ArgumentError: the vocabulary lacks a token for one of the text's bytes (the library would drop it).
        """
        if self._missing and not self._missing.isdisjoint(text.encode()):
            at, bad = next((i, c) for i, c in enumerate(text) if not self._missing.isdisjoint(c.encode()))
            where = f"character {at}, near {text[max(0, at - 9) : at + 9]!r}"
            raise ArgumentError(
                f"this model's vocabulary cannot spell U+{ord(bad):04X} ({where})", "remove that character"
            )
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def bytes_of(text: str) -> bytes:
    """Bytes a byte-level token stands for; a character outside GPT-2's table stands for its own UTF-8."""
    return b"".join(
        bytes([BYTE_OF_CHARACTER[c]]) if c in BYTE_OF_CHARACTER else c.encode("utf-8", "surrogateescape") for c in text
    )


def _check_text(words: dict[str, int]) -> None:
    for text, i in words.items():
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise FormatError(f"tokenizer.ggml.tokens: token {i} is no UTF-8: {text!r}")


def _merges(vocabulary: Vocabulary, words: dict[str, int]) -> list[tuple[str, str]]:
    """Merges without those that would spell a token taken out of the vocabulary."""
    taken_out = {text for text in vocabulary.tokens if text not in words}
    merges = []
    for rank, (left, right) in enumerate(vocabulary.merges):
        parts = (left, right, left + right)
        if taken_out.isdisjoint(parts):
            if unknown := [part for part in parts if part not in words]:
                raise FormatError(f"tokenizer.ggml.merges: entry {rank} needs {unknown[0]!r}, which is no token")
            merges.append((left, right))
    return merges
