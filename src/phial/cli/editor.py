"""Where the lines of `phial chat` come from: an editor with history at a terminal, plain lines in a pipe.

At a terminal Enter sends, Esc Enter (or Ctrl-J) starts a new line, and pasted text keeps its lines. The prompt goes
to stderr, so that `phial chat > answers.txt` holds answers only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from phial.cli import console
from phial.errors import ArgumentError

PROMPT = "> "
MORE = "… "


def reader(history: Path) -> Callable[[], str]:
    """A function that returns the person's next message; it raises EOFError at the end of input."""
    at_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    return _editor(history) if at_terminal else _lines()


def _lines() -> Callable[[], str]:
    """One message per line of standard input."""
    if sys.stdin is None:
        raise ArgumentError("standard input is closed", "run `phial chat` in a terminal or pipe lines in")
    stream = sys.stdin.buffer

    def read() -> str:
        line = stream.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ArgumentError(f"standard input is not UTF-8: byte {line[error.start]:#04x}", "convert it") from None

    return read


def _editor(history: Path) -> Callable[[], str]:
    """Multi-line editing by prompt_toolkit, with a history only its owner can read."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(
        multiline=True,
        key_bindings=keys,
        history=FileHistory(str(history)),
        prompt_continuation=MORE,
        output=create_output(stdout=sys.stderr),
    )

    def read() -> str:
        while True:
            try:
                return session.prompt(PROMPT)
            except KeyboardInterrupt:
                console.note("(Ctrl-D or /exit leaves)")

    return read
