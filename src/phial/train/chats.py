"""Chats from rows of data: OpenAI's messages, ShareGPT's conversations, Alpaca's instructions; nothing is guessed.

A row of another shape is an error with its file and number. What a row says besides (an id, a source, a score) is left
alone; tools, histories and weights, which would change what is learnt, are errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from phial.errors import PhialError
from phial.tokenizer.messages import Message, checked_messages
from phial.train.rows import Row, read_rows

_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip
_REFUSED = {  # by shape, what would change the text
    "messages": ("system", "tools", "functions"),
    "conversations": ("tools", "functions"),
    "instruction": ("tools", "history"),
}
_SHAPES = (
    "{'messages': [{'role': ..., 'content': ...}]}, {'conversations': [{'from': ..., 'value': ...}]} or "
    "{'instruction': ..., 'input': ..., 'output': ...}"
)


class Chat(NamedTuple):
    """A conversation, and where it stands, for messages."""

    messages: list[Message]
    where: str


def read_chats(paths: Iterable[Path]) -> Iterator[Chat]:
    """The chats of files, in order. Raises PhialError with file and row for what is no chat with an answer."""
    for path in paths:
        for row in read_rows(path):
            yield chat_of(row)


def chat_of(row: Row) -> Chat:
    """The chat of a row, its messages checked; it has an answer. Raises PhialError as read_chats()."""
    try:
        messages = checked_messages(_messages(row.value))
    except PhialError as error:
        raise PhialError(f"{row.where}: {error.message}", error.hint) from error
    if not any(message["role"] == "assistant" for message in messages):
        raise PhialError(f"{row.where} has no message of the assistant", "there is nothing to learn from it; remove it")
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not (message["content"] or "").strip():
            raise PhialError(
                f"{row.where}: message {number}, an answer, is empty", "it would teach to say nothing; remove it"
            )
    return Chat(messages, row.where)


def _messages(value: Mapping[str, Any]) -> Any:
    """The messages of a row of one of three shapes."""
    found = [key for key in ("messages", "conversations", "instruction") if key in value]
    if len(found) != 1:
        what = f"both {found[0]} and {found[1]}" if found else f"only {', '.join(value) or 'nothing'}"
        raise PhialError(f"a row has {what}", f"a chat is one of {_SHAPES}")
    if refused := [key for key in _REFUSED[found[0]] if value.get(key)]:
        raise PhialError(f"a row has {refused[0]}", "it would not be learnt; write it into the messages, or remove it")
    if found == ["messages"]:
        return plain_turns(value["messages"], "message", "role", "content")
    return _share_gpt(value) if found == ["conversations"] else _alpaca(value)


def plain_turns(turns: Any, what: str, *names: str) -> Any:
    """Turns without their empty fields, with which parquet fills its columns; an error for other fields than these.

    Args:
        names: fields that are read. A weight or a tool call would change what is learnt.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return turns
    full = [{k: v for k, v in turn.items() if k in names or v not in (None, "", [], {})} for turn in turns]
    for number, turn in enumerate(full, 1):
        if others := [key for key in turn if key not in names]:
            raise PhialError(f"{what} {number} has the field {others[0]!r}", f"only {' and '.join(names)} are learnt")
    return full


def _share_gpt(value: Mapping[str, Any]) -> list[Message]:
    turns = plain_turns(value["conversations"], "turn", "from", "value")
    if not isinstance(turns, list):
        raise PhialError(f"conversations is {type(turns).__name__}", f"a chat is one of {_SHAPES}")
    messages: list[Message] = []
    if value.get("system") is not None:
        messages.append({"role": "system", "content": value["system"]})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
            raise PhialError(f"turn {number} is {turn!r:.60}", "a turn is {'from': ..., 'value': ...}")
        if not isinstance(turn["from"], str) or turn["from"] not in _SPEAKERS:
            raise PhialError(f"turn {number} is from {turn['from']!r:.60}", f"speakers are {', '.join(_SPEAKERS)}")
        messages.append({"role": _SPEAKERS[turn["from"]], "content": turn["value"]})
    return messages


def _alpaca(value: Mapping[str, Any]) -> list[Message]:
    """An instruction, its input below it after an empty line where it has one, and the output."""
    texts = {key: value.get(key) or "" for key in ("system", "instruction", "input")}
    output = value.get("output", value.get("response"))
    for key, text in (*texts.items(), ("output", output)):
        if not isinstance(text, str):
            raise PhialError(f"{key} is {text!r:.60}", "it is a text")
    asked = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    system: list[Message] = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
    return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": output}]
