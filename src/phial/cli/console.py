"""What the commands write and how they end: data to stdout, words to stderr, one boundary for every error.

Text that came from a model file or a model is made harmless before a terminal sees it: a hostile file must not move
the cursor or set the window title. A pipe gets the bytes as they are.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from phial.errors import PhialError

MISUSE = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells expect of a program that Ctrl-C ended
_OS_HINTS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions of the path",
    errno.EEXIST: "name a folder, not a file",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "check the path",
    errno.ENOSPC: "free some space, or move the store with PHIAL_HOME",
}


def write(text: str) -> None:
    """Writes data to stdout at once (streams are read as they grow); BrokenPipeError when nobody reads."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Says one line to the person, on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


@contextmanager
def resumable(folder: object) -> Iterator[None]:
    """Says, where Ctrl-C ends what is done within, that the same command goes on from the folder."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"stopped; the same command goes on from {folder}")
        raise


def speaks() -> bool:
    """Whether this process says what came out: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


def write_json(value: object) -> None:
    """One JSON value and a newline on stdout; NaN and infinity, which JSON lacks, must be gone before."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    write(json.dumps(value, ensure_ascii=not utf8, indent=2, allow_nan=False) + "\n")


def write_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    *,
    to_stderr: bool = False,
) -> None:
    """Aligned columns on stdout; in a pipe as wide as the data, because a cut cell would be lost data.

    Args:
        right: the columns (numbers) aligned to the right.
        to_stderr: where the table is for the person, not the result.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    stream = sys.stderr if to_stderr else sys.stdout
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 100_000)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    stream.write("".join(line.rstrip() + "\n" for line in lines))  # the escapes here are rich's own
    stream.flush()


def printable(text: str) -> str:
    """The text with every control character but newline and tab shown as an escape."""
    return "".join(c if c in "\n\t" or not _is_control(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The text on one line, every control character shown as an escape."""
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    return c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def debugging() -> bool:
    """Whether PHIAL_DEBUG asks for tracebacks."""
    return os.environ.get("PHIAL_DEBUG", "") not in ("", "0")


def run(app: Callable[..., Any], arguments: list[str]) -> int:
    """Runs the command line and turns whatever ends it into an exit status: never a traceback for a user's mistake.

    Returns:
        0, 2 for a mistake of the user, 130 for Ctrl-C, 1 for a reader that left or an error of our own.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, who wants nothing of it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    try:
        status = app(arguments, prog_name="phial", standalone_mode=False)  # a reader that left: typer exits with 1
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if debugging():
            raise
        return explain(error)


def explain(error: Exception) -> int:
    """Two lines on stderr for a person, and the exit status."""
    if isinstance(error, PhialError):
        return _refuse(error.message, error.hint)
    usage = getattr(error, "format_message", None)  # typer's; its base class has moved between versions
    if usage is not None:
        path = getattr(getattr(error, "ctx", None), "command_path", "phial")
        return _refuse(" ".join(usage().split()), f"{path} --help")
    if isinstance(error, OSError):
        where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return _refuse(
            f"{error.strerror or error}{where}", _OS_HINTS.get(error.errno or 0, "PHIAL_DEBUG=1 shows where")
        )
    if isinstance(error, MemoryError):
        return _refuse("not enough memory", "a smaller --ctx, --cache-type q8_0 or a smaller model needs less")
    _refuse(f"internal error: {type(error).__name__}: {error}", "PHIAL_DEBUG=1 shows where; please report it")
    return 1


def _refuse(message: str, hint: str) -> int:
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")
    return MISUSE


def _never_fail_to_encode(stream: IO[str]) -> None:
    """A terminal that cannot show a character gets its escape, not a crash in the middle of an answer."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
