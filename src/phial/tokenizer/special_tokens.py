"""Splitting text at special tokens before the model sees it, and the rstrip variants (phi3-spec §2.2).

Control tokens are found only where the caller trusts the text; user-defined tokens are found everywhere, as in
llama.cpp. At one place the longest token wins. A trie, not a regular expression: a hostile vocabulary may hold a
hundred thousand special tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from phial.tokenizer.vocabulary import TokenType, Vocabulary

Rstrip = Literal["auto", "A", "B", "none"]
_WHITESPACE = " \t\n\v\f\r"
_NEVER_STRIPS = {"<unk>", "<s>", "<|endoftext|>"}
_LEAF = ""  # key under which a trie node keeps the id of the token that ends there


def rstrip_ids(vocabulary: Vocabulary, variant: Rstrip) -> frozenset[int]:
    """Tokens that swallow the whitespace after them.

    "auto" is the GGUF rule: variant B where general.name contains "phi-3" or "phi3", none elsewhere, because the file
    stores no such attribute. "A" is the first tokenizer (assistant, placeholders, `</s>`), "B" the later one.
    """
    special = vocabulary.special_tokens()
    if variant == "auto":
        name = vocabulary.name.lower()
        variant = "B" if "phi-3" in name or "phi3" in name else "none"
    if variant == "A":
        early = re.compile(r"<\|assistant\|>|<\|placeholder\d+\|>|</s>")
        return frozenset(i for text, i in special.items() if early.fullmatch(text))
    if variant == "B":
        return frozenset(i for text, i in special.items() if text not in _NEVER_STRIPS)
    return frozenset()


class SpecialTokens:
    """Finds special tokens in a text.

    Attributes:
        ids: ids of all special tokens.
        control_ids: those found in trusted text only and not shown by default: control and unknown.
    """

    def __init__(self, vocabulary: Vocabulary, rstrip: Collection[int]) -> None:
        table = vocabulary.special_tokens()
        self.ids = frozenset(table.values())
        self.control_ids = frozenset(i for i in self.ids if vocabulary.types[i] is not TokenType.USER_DEFINED)
        self._rstrip = rstrip
        self._all = _Trie(table)
        self._user_defined = _Trie({text: i for text, i in table.items() if i not in self.control_ids})

    def split(self, text: str, trusted: Sequence[tuple[int, int]]) -> Iterator[tuple[str | int, int]]:
        """Pieces of text and token ids, in order, each with the character where it begins.

        `trusted` are disjoint ascending spans [start, end) of the text.
        """
        starts = [start for start, _ in trusted]
        trie = self._all if trusted else self._user_defined
        done = position = 0
        while (position := trie.next_candidate(text, position)) >= 0:
            span = bisect_right(starts, position) - 1
            trusted_end = trusted[span][1] if span >= 0 else 0
            token, end = -1, position
            for candidate, candidate_end in trie.matches(text, position):
                if candidate_end <= trusted_end or candidate not in self.control_ids:
                    token, end = candidate, candidate_end
            if token < 0:
                position += 1
                continue
            if position > done:
                yield text[done:position], done
            yield token, position
            if token in self._rstrip:
                while end < len(text) and text[end] in _WHITESPACE:
                    end += 1
            done = position = end
        if done < len(text):
            yield text[done:], done


class _Trie:
    def __init__(self, table: Mapping[str, int]) -> None:
        self._root: dict[str, object] = {}
        for text, token in table.items():
            node = self._root
            for character in text:
                node = node.setdefault(character, {})  # type: ignore[assignment]
            node[_LEAF] = token
        first = "".join(re.escape(character) for character in self._root)
        self._candidate = re.compile(f"[{first}]") if first else None

    def next_candidate(self, text: str, start: int) -> int:
        """First place from `start` on where a token could begin, -1 for none."""
        found = self._candidate.search(text, start) if self._candidate else None
        return found.start() if found else -1

    def matches(self, text: str, start: int) -> Iterator[tuple[int, int]]:
        """(id, end) of every token that begins at `start`, shortest first."""
        node = self._root
        for position in range(start, len(text)):
            node = node.get(text[position])  # type: ignore[assignment]
            if node is None:
                return
            if _LEAF in node:
                yield node[_LEAF], position + 1  # type: ignore[misc]
