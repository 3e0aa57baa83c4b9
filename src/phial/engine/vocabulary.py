"""Bytes and ids with llama-cpp-python's rules, over the file's tokenizer or one the user brings.

Its rules: a token's bytes never depend on the tokens before it; control tokens are silent unless `special`; the
space that SentencePiece puts before a text is dropped only directly after a leading BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phial.engine.llama_types import LlamaTokenizer
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.tokenizer.tokenizer import Tokenizer


class Vocabulary:
    """What Llama knows about tokens.

    Attributes:
        tokenizer: the model file's own.
        own: the user's, which then does all conversion between bytes and ids; None by default.
    """

    def __init__(self, tokenizer: Tokenizer, own: LlamaTokenizer | None = None) -> None:
        self.tokenizer = tokenizer
        self.own = own

    def tokenize(self, text: bytes | str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Ids of a UTF-8 text; add_bos leaves it to the model whether there is a BOS.

        Raises:
            ArgumentError: the text is no UTF-8.
        """
        try:
            data = text.encode() if isinstance(text, str) else bytes(text)
            decoded = data.decode()
        except UnicodeError as error:
            raise ArgumentError(f"the text is no UTF-8: {error}", "pass UTF-8 bytes") from error
        if self.own is not None:
            return list(self.own.tokenize(data, add_bos, special))
        return self.tokenizer.encode(decoded, add_bos=None if add_bos else False, special=special)

    def detokenize(self, ids: Sequence[int], before: Sequence[int] | None = None, special: bool = False) -> bytes:
        """Bytes of the ids; `before` are the ids that precede them, which only a user's tokenizer looks at."""
        if self.own is not None:
            return self.own.detokenize(list(ids), list(before) if before else None, special)
        data = b"".join(self._bytes(token, special) for token in ids)
        after_bos = len(ids) > 0 and ids[0] == self.tokenizer.bos_id
        return data[1:] if after_bos and data[:1] == b" " else data

    def text(self, token: int, special: bool = False) -> str:
        """Whole characters of one token."""
        return self.detokenize([token], special=special).decode("utf-8", errors="ignore")

    def _bytes(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self.tokenizer.n_vocab:
            raise ArgumentError(
                f"token id {token} is outside the vocabulary", f"ids run from 0 to {self.tokenizer.n_vocab - 1}"
            )
        if not special and token in self.tokenizer.control_ids:
            return b""
        return self.tokenizer.token_bytes(token)
