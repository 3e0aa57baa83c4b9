"""Text from tokens that arrive one by one: only whole characters leave, the same text as decoding all at once."""

from __future__ import annotations

import codecs
from typing import Protocol


class _Decoder(Protocol):
    def is_after_special(self, token: int | None) -> bool: ...

    def piece(self, token: int, after_special: bool, special: bool) -> bytes: ...


class TokenStream:
    """Push ids, get text. Bytes that can no longer become a character come out as U+FFFD, as in decode()."""

    def __init__(self, tokenizer: _Decoder, special: bool, previous: int | None) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._after_special = tokenizer.is_after_special(previous)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; "" while one is still cut. ArgumentError for an id out of range."""
        data = self._tokenizer.piece(token, self._after_special, self._special)
        self._after_special = self._tokenizer.is_after_special(token)
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, else ""."""
        return self._decoder.decode(b"", final=True)
