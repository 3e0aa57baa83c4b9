"""Which tokens of a conversation are the assistant's own: what training takes its loss on, found by rendering.

No text is searched for marks, so no message can fake one. Every message's characters are replaced by a private
character (chat.py); where those of an assistant's message stand, it speaks. Its answer begins where the prompt of the
messages before it ends, as the engine would prompt it, and ends with the first token after it that ends a generation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from phial.errors import PhialError
from phial.tokenizer.chat import ChatTemplate, Rendering
from phial.tokenizer.messages import Message, checked_messages
from phial.tokenizer.tokenizer import Tokenizer


class Answers(NamedTuple):
    """A conversation's tokens.

    Attributes:
        ids: as ChatTemplate.encode() gives them, without a prompt for another answer.
        answered: for each, whether it is the assistant's: its words and the token that ends them.
        joined: answers whose first characters share a token with the prompt, so that it differs from the engine's.
        last: the index of the last answer's first token; beyond the ids where there is no answer.
    """

    ids: list[int]
    answered: list[bool]
    joined: int
    last: int


def encode_answers(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_bos: bool | None = None,
    now: datetime | None = None,
) -> Answers:
    """The tokens of a conversation with those of the assistant marked.

    Args:
        add_bos: as ChatTemplate.encode().
        now: for strftime_now.

    Raises:
        ArgumentError: a message of unknown shape, or text the vocabulary cannot spell.
        PhialError: the template refused or failed, has no place for a message, changes its text, begins an answer
            otherwise than a prompt for it ends or ends it with no token that ends a generation; a second BOS.
    """
    talk, when = checked_messages(messages), now or datetime.now()
    whole = template.rendering(talk, False, now=when)
    whole.check_all_placed()
    segments = whole.segments()
    if segments is None:
        raise PhialError(
            "the chat template changes a message's text, so its tokens cannot be told from the template's",
            "choose a built-in template",
        )
    ids, places = tokenizer.encode_places(segments, add_bos=add_bos)
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
        raise PhialError("the chat template begins with two BOS tokens", "remove one of them from the template")
    answered, joined, first = [False] * len(ids), 0, len(ids)
    for number, message in enumerate(talk):
        if message["role"] == "assistant":
            start = _start(template, whole, number, when)
            first = bisect_left(places, start)
            last = _end(whole, number, start, ids, places, tokenizer)
            answered[first : last + 1] = [True] * (last + 1 - first)
            joined += _is_joined(whole.text, start, first, ids, places, tokenizer)
    return Answers(ids, answered, joined, first)


def _start(template: ChatTemplate, whole: Rendering, number: int, now: datetime) -> int:
    """The character where an answer begins; the first of its text for one that nothing comes before."""
    if not number:
        return max(whole.masked.find(whole.masks[0]), 0)
    prompt = template.rendering(whole.messages[:number], True, now=now, masks=whole.masks).masked
    if not whole.masked.startswith(prompt):
        raise PhialError(
            f"the chat template writes what comes before message {number + 1} otherwise once it is answered",
            "no loss can be taken there; leave the message out, or choose a built-in template",
        )
    return len(prompt)


def _end(
    whole: Rendering, number: int, start: int, ids: Sequence[int], places: Sequence[int], tokenizer: Tokenizer
) -> int:
    """The index of the token that ends an answer: the first one after its text that ends a generation."""
    after = max(whole.masked.rfind(whole.masks[number]) + 1, start)
    others = [place for mask in whole.masks[number + 1 :] if (place := whole.masked.find(mask)) >= 0]
    limit = min(others, default=len(whole.masked))
    for index in range(bisect_left(places, after), bisect_left(places, limit)):
        if ids[index] in tokenizer.eog_ids:
            return index
    written = whole.text[after:limit]
    raise PhialError(
        f"the chat template ends message {number + 1} with {written!r:.60}, in which no token ends a generation",
        "a model trained so would never stop; choose a template whose marks the vocabulary has",
    )


def _is_joined(
    text: str, start: int, first: int, ids: Sequence[int], places: Sequence[int], tokenizer: Tokenizer
) -> bool:
    """Whether the prompt's last tokens are others than those it would have without the answer."""
    since = first
    while since and not tokenizer.is_after_special(ids[since - 1]):
        since -= 1
    if since == first:
        return False
    tail = [(text[places[since] : start], True)]
    return tokenizer.encode_segments(tail, add_bos=False) != list(ids[since:first])
