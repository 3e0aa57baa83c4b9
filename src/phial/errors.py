"""Every mistake a user can make becomes a PhialError: one line that names the value, one hint that says what to do.

The command line prints both lines and exits with status 2; a library user catches one class. Programming
errors of our own stay `assert` and never wear this type.
"""

from __future__ import annotations


class PhialError(Exception):
    """A mistake the user can correct.

    Attributes:
        message: what was wrong, with the offending value.
        hint: what to do about it, or "" where the message already says it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class FormatError(PhialError):
    """A file does not follow its format; the message names the field and both numbers."""


class ContextLimitError(PhialError, ValueError):
    """More tokens than the context holds. A ValueError too, because llama_cpp's users catch that."""


class ArgumentError(PhialError, ValueError):
    """An argument outside its range or one this build cannot honour."""
