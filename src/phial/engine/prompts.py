"""What the model reads for a completion: ids from text or ids, the infill form for a suffix, and their limits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phial.engine.vocabulary import Vocabulary
from phial.errors import ArgumentError, ContextLimitError

_INFILL_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))


@dataclass(frozen=True)
class Prompt:
    """The text a completion continues, the ids the model reads, and the text to put after the completion."""

    text: str
    ids: list[int]
    suffix: str


def infill_ids(metadata: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Ids of the prefix, suffix and middle marks of a model trained to fill in; None for every other model."""
    found = []
    for names in _INFILL_KEYS:
        keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
        found += [int(metadata[key]) for key in keys if key in metadata][:1]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def read_prompt(
    vocabulary: Vocabulary,
    prompt: str | Sequence[int],
    suffix: str | None,
    infill: tuple[int, int, int] | None,
    suffix_first: bool,
) -> Prompt:
    """Turn a prompt into ids.

    Control tokens in the text count as such. An empty prompt is a lone BOS. A suffix goes into the prompt where the
    model has marks for it, else after the completion's text.

    Raises:
        ArgumentError: the prompt is neither text nor ids, or empty for a model without BOS.
    """
    if suffix is not None and not isinstance(suffix, str):
        raise ArgumentError(f"suffix is {suffix!r}", "pass a string or None")
    if isinstance(prompt, str):
        text, ids = prompt, vocabulary.tokenize(prompt, add_bos=True, special=True) if prompt else []
    else:
        ids = _checked_ids(vocabulary, prompt)
        text = vocabulary.detokenize(ids, special=True).decode("utf-8", errors="ignore")
    bos = vocabulary.tokenizer.bos_id
    if not ids:
        if bos is None:
            raise ArgumentError("the prompt is empty", "this model has no BOS token to begin a text with")
        ids = [bos]
    if suffix is None or infill is None:
        return Prompt(text, ids, suffix or "")
    prefix_mark, suffix_mark, middle_mark = infill
    head = ids[:1] if ids[0] == bos else []
    before = [prefix_mark, *ids[len(head) :]]
    after = [suffix_mark, *(vocabulary.tokenize(suffix, add_bos=False) if suffix else [])]
    body = [*after, *before] if suffix_first else [*before, *after]
    return Prompt(text, [*head, *body, middle_mark], "")


def room_for(ids: Sequence[int], bos: int, n_ctx: int, max_tokens: int | None) -> int:
    """How many tokens may follow the prompt: max_tokens, or all there is room for where that is None, 0 or less.

    Warns (RuntimeWarning) of a prompt that begins with two BOS.

    Raises:
        ContextLimitError: the prompt fills the context; also a ValueError.
    """
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int)):
        raise ArgumentError(f"max_tokens is {max_tokens!r}", "a whole number, or None for as many as fit")
    if list(ids[:2]) == [bos, bos]:
        warnings.warn(
            "the prompt begins with two BOS tokens, which makes answers worse; leave one out",
            RuntimeWarning,
            stacklevel=5,
        )
    if len(ids) >= n_ctx:
        raise ContextLimitError(
            f"requested tokens ({len(ids)}) exceed the context window of {n_ctx}",
            "shorten the prompt, or open the model with a larger n_ctx (0: as long as it was trained for)",
        )
    room = n_ctx - len(ids)
    return room if max_tokens is None or max_tokens <= 0 else min(max_tokens, room)


def _checked_ids(vocabulary: Vocabulary, prompt: Sequence[int]) -> list[int]:
    n_vocab = vocabulary.tokenizer.n_vocab
    try:
        ids = [int(token) for token in prompt]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the prompt is {prompt!r}"[:200], "pass a string or a list of token ids") from error
    for token in ids:
        if not 0 <= token < n_vocab:
            raise ArgumentError(f"the prompt holds the token id {token}", f"ids run from 0 to {n_vocab - 1}")
    return ids
