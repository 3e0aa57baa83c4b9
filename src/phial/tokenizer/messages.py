"""The messages of a conversation: their shape checked, and their text replaced where a template must not see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from phial.errors import ArgumentError

Message = Mapping[str, Any]

# Templates write roles between control marks ("<|" + role + "|>"), so a role is one of these and nothing else.
ROLES = ("system", "user", "assistant", "tool", "function", "developer", "ipython")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MAX_NESTING = 16


def checked_messages(messages: Sequence[Message]) -> list[Message]:
    """Copies of the messages, each with a known role and its content as text (or None beside other fields).

    A content given as parts [{"type": "text", "text": ...}] is joined. Other fields may hold any JSON values.

    Raises:
        ArgumentError: anything else; the message says which and what.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages is {type(messages).__name__}", "it is a list of {'role': ..., 'content': ...}")
    if not messages:
        raise ArgumentError("there are no messages", "give at least one, such as {'role': 'user', 'content': 'Hi'}")
    return [_checked(message, f"message {number}") for number, message in enumerate(messages, 1)]


def mapped(message: Message, change: Callable[[str], str]) -> Message:
    """The message with every text but the role changed."""
    return {key: value if key == "role" else _mapped(value, change) for key, value in message.items()}


def text_size(messages: Iterable[Message]) -> int:
    """Characters of all texts."""
    return sum(len(text) for text in _texts(list(messages)))


def free_characters(n: int, texts: Iterable[str], messages: Iterable[Message]) -> list[str]:
    """n private-use characters, one after the other, none of which occurs in the texts or messages.

    Raises:
        ArgumentError: so many messages, or so many private-use characters in them, that there are not enough left.
    """
    used = set().union(*texts, *_texts(list(messages)))
    free = (chr(c) for block in (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)) for c in block)
    found = [c for c, _ in zip((c for c in free if c not in used), range(n), strict=False)]
    if len(found) < n:
        raise ArgumentError(f"{n} messages are too many for one conversation", "send fewer messages")
    return found


def _checked(message: Message, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise ArgumentError(f"{where} is {type(message).__name__}", "a message is {'role': ..., 'content': ...}")
    role = message.get("role")
    if role not in ROLES:
        raise ArgumentError(f"{where} has the role {role!r}", f"roles are {', '.join(ROLES)}")
    others = {key: _plain(value, f"{where}: {key}") for key, value in _keyed(message, where) if key != "content"}
    return {**others, "content": _content(message.get("content"), where, len(others) > 1)}


def _content(content: Any, where: str, may_be_absent: bool) -> str | None:
    if isinstance(content, str):
        return str(content)
    if content is None and may_be_absent:  # an assistant's message that only calls tools
        return None
    if isinstance(content, Sequence) and content:
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ArgumentError(f"{where} has a part that is no text", "only {'type': 'text', 'text': ...} is read")
        return "".join(part["text"] for part in content)
    raise ArgumentError(f"{where} has the content {content!r:.60}", "content is text")


def _plain(value: Any, where: str, nesting: int = 0) -> Any:
    if nesting > _MAX_NESTING:
        raise ArgumentError(f"{where} is nested deeper than {_MAX_NESTING} levels", "send it as text")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, where, nesting + 1) for key, item in _keyed(value, where)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, nesting + 1) for item in value]
    raise ArgumentError(f"{where} is {type(value).__name__}", "fields hold JSON values")


def _keyed(value: Mapping[Any, Any], where: str) -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):  # templates may print keys; a key is no place for text
            raise ArgumentError(f"{where} has the field {key!r:.60}", "fields are plain names")
        yield key, item


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
