"""Text from standard input or a file, and the checks every text passes before it reaches a tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

from phial.cli import console
from phial.errors import ArgumentError

_PATIENCE = 1.0  # seconds of silence after which we say what we are waiting for


def piped() -> str | None:
    """The whole of standard input, or None when it is a terminal or closed.

    Raises:
        ArgumentError: the input is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    _say_when_waiting()
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"standard input is not UTF-8: byte {data[error.start]:#04x} at position {error.start}",
            "convert it first, for instance with iconv",
        ) from None


def text_or_stdin(text: str | None, name: str) -> str:
    """The argument `text`, else what is piped in; ArgumentError naming `name` when there is neither."""
    if text is not None:
        return valid(text, name)
    given = piped()
    if given is None:
        raise ArgumentError(f"no {name}", "give it as an argument or pipe it in")
    return given


def text_of(file: str) -> str:
    """The text of a file, or of standard input where it is called "-". ArgumentError where it is not UTF-8."""
    if file == "-":
        return text_or_stdin(None, "text on standard input")
    data = Path(file).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{file} is not UTF-8: byte {data[error.start]:#04x} at position {error.start}",
            "convert it first, for instance with iconv",
        ) from None


def valid(text: str, name: str) -> str:
    """The text itself; ArgumentError when the shell handed over bytes that are not UTF-8."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ArgumentError(f"the {name} is not valid UTF-8: {text!r}", "check the encoding of the terminal or script")
    return text


def _say_when_waiting() -> None:
    """A pipe that is open and silent looks like a hang; say what is being waited for."""
    import select

    try:
        ready = select.select([sys.stdin], [], [], _PATIENCE)[0]
    except (OSError, ValueError):  # not a descriptor that can be waited for: a file object, or Windows
        return
    if not ready:
        console.note("reading standard input until it ends (Ctrl-C leaves; `< /dev/null` for none)")
