"""Which tokens may come next: a grammar, followed token by token over the model's own vocabulary.

The parsing is llguidance's (Earley over a lexer of derivatives; a trie of all tokens' bytes is walked once a step). The
end-of-text tokens are handled here: they are allowed exactly where the text may end. A mask depends on nothing but the
tokens before it, so guessing ahead (speculation.py) stays without effect on the text.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.engine.grammar import LlamaGrammar
from phial.engine.vocabulary import Vocabulary
from phial.errors import ArgumentError, PhialError


class TokenTrie:
    """A vocabulary as llguidance wants it; made once per model, shared by all its constraints."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raise ArgumentError for a vocabulary without an end-of-text token: a text could not be ended."""
        from llguidance import LLTokenizer, TokenizerWrapper

        tokenizer = vocabulary.tokenizer
        if not tokenizer.eog_ids:
            raise ArgumentError("the model names no end-of-text token", "a grammar needs one to end the text with")
        self.n_vocab = tokenizer.n_vocab
        self._silent = tokenizer.control_ids | ({tokenizer.unk_id} & set(tokenizer.special_tokens.values()))
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(vocabulary, self._silent)), n_vocab=self.n_vocab)

    def constraint(self, grammar: LlamaGrammar, stop_ids: Collection[int]) -> Constraint:
        """A fresh constraint for one text, which any of `stop_ids` ends. ArgumentError as Constraint's."""
        return Constraint(self, grammar, stop_ids)


class _Bytes:
    """What llguidance asks of a tokenizer. Control tokens are special there: no text reaches them."""

    def __init__(self, vocabulary: Vocabulary, silent: Collection[int | None]) -> None:
        tokenizer = vocabulary.tokenizer
        self._encode = tokenizer.encode
        self.eos_token_id, self.bos_token_id = min(tokenizer.eog_ids), tokenizer.bos_id
        self.special_token_ids = sorted({*silent, *tokenizer.eog_ids} - {None})  # type: ignore[type-var]
        special = set(self.special_token_ids)
        self.tokens = [
            tokenizer.token_bytes(token) if token in special else vocabulary.detokenize([token])
            for token in range(tokenizer.n_vocab)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text; llguidance uses them only to force tokens, which grammars here forbid."""
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text, add_bos=False)


class Constraint:
    """A text in progress, held to a grammar.

    Attributes:
        n_tokens: how many tokens were accepted.
    """

    def __init__(self, trie: TokenTrie, grammar: LlamaGrammar, stop_ids: Collection[int]) -> None:
        """Raise ArgumentError where the grammar cannot be followed with this vocabulary."""
        from llguidance import LLMatcher

        self.n_tokens = 0
        self._n_vocab = trie.n_vocab
        self._stop_ids = np.array(sorted(stop_ids), np.int64)
        self._ends = frozenset(stop_ids)
        self._own_ends = np.array(sorted(trie.tokenizer.eos_tokens), np.int64)
        self._matcher: Any = LLMatcher(trie.tokenizer, grammar.lark, log_level=0)
        if self._matcher.is_error():
            raise ArgumentError(
                f"the grammar cannot be followed: {_first_line(self._matcher.get_error())}", "simplify the grammar"
            )

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether the text must end here: it is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def mask(self) -> NDArray[np.bool_]:
        """(n_vocab,): True for what keeps the text a beginning of a valid one, and for an end where it is one.

        Raises:
            PhialError: the grammar has become too much to follow.
        """
        complete, finished = self.complete, self.finished
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)
        if finished:
            mask[:] = False
        mask[self._own_ends] = False
        mask[self._stop_ids] = complete or finished
        return mask

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits with -inf where mask() forbids a token. Errors as mask()."""
        masked: NDArray[np.float32] = np.where(self.mask(), logits, np.float32(-np.inf))
        return masked

    def accept(self, token: int) -> None:
        """The text goes on with this token; an end changes nothing.

        Raises:
            PhialError: the grammar does not allow it.
        """
        if token in self._ends:
            return
        self._matcher.consume_token(token)
        self._check()
        self.n_tokens += 1

    def _check(self) -> None:
        if self._matcher.is_error():
            said = _first_line(self._matcher.get_error())
            if said.startswith("NoExtension"):
                raise PhialError("no text satisfies the grammar", "one of its rules needs itself without end")
            raise PhialError(
                f"the grammar cannot be followed after {self.n_tokens} tokens: {said}",
                "simplify the grammar: fewer alternatives, smaller repetition counts",
            )


def _first_line(message: str) -> str:
    return message.partition("\n")[0][:300]
