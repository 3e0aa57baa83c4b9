"""A conversation: its messages, and the file that `/save` and `/load` of `phial chat` exchange.

The file is JSON, so that other programs can read it: {"format": "phial-chat", "version": 1, "messages": [...]}.
It is read as hostile: sizes and shapes are checked, unknown fields refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phial.errors import ArgumentError, FormatError

_FORMAT = "phial-chat"
_VERSION = 1
_MOST_BYTES = 64 << 20
_ROLES = ("user", "assistant")


class Conversation:
    """The messages so far: an optional system message, then turns of user and assistant."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the chat template gets."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return head + self.turns

    def reset(self) -> None:
        """Forgets the turns and keeps the system message."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Writes the conversation, replacing only a file that is a conversation too.

        Raises:
            ArgumentError: the path holds something else.
            OSError: the path cannot be written.
        """
        if path.exists() and not _is_conversation(path):
            raise ArgumentError(f"{path} exists and is not a saved conversation", "choose another name")
        document = {"format": _FORMAT, "version": _VERSION, "messages": self.messages}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(document, file, ensure_ascii=False, indent=2)
                file.write("\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what `save` wrote.

        Raises:
            FormatError: the file is something else; the message names the field.
            OSError: the path cannot be read.
        """
        document = _read(path)
        if document.get("version") != _VERSION:
            raise FormatError(f"{path}: version {document.get('version')!r}, this phial reads {_VERSION}")
        unknown = sorted(set(document) - {"format", "version", "messages"})
        if unknown:
            raise FormatError(f"{path}: unknown field {unknown[0]!r}")
        messages = document.get("messages")
        if not isinstance(messages, list):
            raise FormatError(f"{path}: `messages` is no list")
        conversation = cls()
        for index, message in enumerate(messages):
            role, content = _checked(path, index, message)
            if role == "system":
                conversation.system = content
            else:
                conversation.turns.append({"role": role, "content": content})
        return conversation


def _checked(path: Path, index: int, message: Any) -> tuple[str, str]:
    """Role and content of one message of the file; FormatError when it is not of that shape."""
    where = f"{path}: message {index}"
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise FormatError(f"{where} is not an object of `role` and `content`")
    role, content = message["role"], message["content"]
    if role not in (("system", *_ROLES) if index == 0 else _ROLES):
        raise FormatError(f"{where}: role {role!r} is not allowed there", "system (first only), user, assistant")
    if not isinstance(content, str) or any("\ud800" <= c <= "\udfff" for c in content):
        raise FormatError(f"{where}: `content` is no text")
    return role, content


def _read(path: Path) -> dict[str, Any]:
    """The file's JSON object, once it claims to be a conversation."""
    if path.stat().st_size > _MOST_BYTES:
        raise FormatError(f"{path} has {path.stat().st_size} bytes, a saved conversation at most {_MOST_BYTES}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not a saved conversation: {error}", "/save writes one") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FormatError(f"{path} is not a saved conversation", "/save writes one")
    return document


def _is_conversation(path: Path) -> bool:
    try:
        _read(path)
    except FormatError:
        return False
    return True
