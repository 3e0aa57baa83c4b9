"""Preference pairs from rows of data: two answers to one conversation, the first of which is the better one.

    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}    the answers alone, or as texts
    {"chosen": [messages], "rejected": [messages]}                          two whole conversations
    {"prompt": text, "chosen": text, "rejected": text}                      and a system text, where there is one
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}         hh-rlhf's, with or without a prompt

A row of another shape is an error with its file and number. What a row says besides (a score, a source) is left alone;
what would change what is learnt is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from phial.errors import PhialError
from phial.tokenizer.messages import Message, checked_messages
from phial.train.chats import plain_turns
from phial.train.rows import Row, read_rows

_SIDES = ("chosen", "rejected")
_REFUSED = ("tools", "functions", "history", "images")  # what would change the text
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SHAPES = "{'prompt': ..., 'chosen': ..., 'rejected': ...} with messages or texts, or two whole conversations"


class Pair(NamedTuple):
    """Two conversations, each up to its answer, and where they stand, for messages."""

    chosen: list[Message]
    rejected: list[Message]
    where: str

    @property
    def fault(self) -> str:
        """Why nothing can be learnt from the pair; "" where something can."""
        if self.chosen[:-1] != self.rejected[:-1]:
            return "the conversations differ before their last answers"
        if not self.chosen[:-1]:
            return "there is no prompt"
        if self.chosen == self.rejected:
            return "the two answers are the same"
        return "" if (self.chosen[-1]["content"] or "").strip() else "the chosen answer is empty"


def read_pairs(paths: Iterable[Path]) -> Iterator[Pair]:
    """The pairs of files, in order, faulty ones too. Raises PhialError with file and row for what is no pair."""
    for path in paths:
        for row in read_rows(path):
            yield pair_of(row)


def pair_of(row: Row) -> Pair:
    """The pair of a row, its messages checked; each side ends with an answer. Raises PhialError as read_pairs()."""
    try:
        sides = {side: checked_messages(_conversation(row.value, side)) for side in _SIDES}
        for side, messages in sides.items():
            if messages[-1]["role"] != "assistant":
                raise PhialError(f"{side} ends with the {messages[-1]['role']}", "its last message is the answer")
    except PhialError as error:
        raise PhialError(f"{row.where}: {error.message}", error.hint) from error
    return Pair(**sides, where=row.where)


def _conversation(value: Mapping[str, Any], side: str) -> Any:
    """One side of a row with its prompt."""
    if missing := [key for key in _SIDES if key not in value]:
        raise PhialError(f"a row has {', '.join(value) or 'nothing'} and no {missing[0]}", f"a pair is {_SHAPES}")
    if refused := [key for key in _REFUSED if value.get(key)]:
        raise PhialError(f"a row has {refused[0]}", "it would not be learnt; write it into the messages, or remove it")
    prompt, answer, system = value.get("prompt"), value[side], value.get("system")
    if not isinstance(prompt, str | list | None):
        raise PhialError(f"prompt is {prompt!r:.60}", f"a pair is {_SHAPES}")
    if isinstance(prompt, str) and isinstance(answer, str) and not _TURN.match(prompt):
        begin: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*begin, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    if system:
        raise PhialError("a row has system", "it is read beside a prompt that is a text; write it into the messages")
    if isinstance(answer, str) and (prompt is None or isinstance(prompt, str)):
        return _turns((prompt or "") + answer, side)
    if isinstance(prompt, list):
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return [*_messages(prompt, "prompt"), *_answer(_messages(said, side), side)]
    whole = _messages(answer, side)
    if isinstance(prompt, str) and {"role": "user", "content": prompt} not in whole[:-1]:
        raise PhialError(f"no message of {side} is the prompt", f"a pair is {_SHAPES}")
    return whole


def _messages(messages: Any, name: str) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise PhialError(f"{name} is {messages!r:.60}", f"a pair is {_SHAPES}")
    return list(plain_turns(messages, f"{name}: message", "role", "content"))


def _answer(messages: list[Any], side: str) -> list[Any]:
    """Messages that follow a prompt given as messages: the answer, and no conversation."""
    if len(messages) != 1:
        raise PhialError(f"{side} has {len(messages)} messages", "beside a prompt it is one, the answer")
    return messages


def _turns(text: str, side: str) -> list[Message]:
    """The messages of a text in hh-rlhf's form, without the white space around them."""
    begin, *parts = _TURN.split(text)
    if begin.strip() or not parts:
        raise PhialError(f"{side} is {text!r:.60}", "without a prompt a text is '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _SPEAKERS[speaker], "content": said.strip()} for speaker, said in turns]
