"""From token bytes to text that may be shown: whole characters only, and never a stop string or the start of one.

Every token goes in, pieces of finished text come out. A piece is one token, or the several tokens one character is
made of. While the end of the text could still become a stop string, the pieces it touches wait. Bytes that are no
UTF-8 are left out of the text. Rules of several stop strings: phi3-spec §10.4.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Piece:
    """Text that one token, or a few tokens together, added.

    Attributes:
        start: offset of its first character in the generated text.
        text: the characters; may be empty (a control token).
        entries: (token id, text offset of the token, whatever the caller attached to it).
    """

    start: int
    text: str = ""
    entries: list[tuple[int, int, object]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class StopStrings:
    """Collects the text of one completion and holds back what may not be shown yet.

    Attributes:
        text: all characters so far, cut where a stop string began.
        stopped: whether a stop string was met; nothing may be pushed after that.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._waiting: deque[Piece] = deque()
        self._open = Piece(0)

    def push(self, token: int, data: bytes, attached: object = None) -> Iterator[Piece]:
        """Take one token and its bytes; return the pieces that may be shown now, in order."""
        self._open.entries.append((token, len(self.text), attached))
        new = self._decoder.decode(data)
        self._open.text += new
        self.text += new
        cut = self._first_stop(len(self.text) - len(new))
        if cut is not None:
            return self._cut(cut)
        if not self._decoder.getstate()[0]:
            self._close_open_piece()
        return self._release(len(self.text) - self._held_back())

    def finish(self) -> Iterator[Piece]:
        """Return the pieces still waiting: generation ended, so they cannot become a stop string any more."""
        if self._open.entries:
            self._close_open_piece()
        return self._release(len(self.text))

    def _close_open_piece(self) -> None:
        self._waiting.append(self._open)
        self._open = Piece(len(self.text))

    def _release(self, limit: int) -> Iterator[Piece]:
        """The waiting pieces that end at or before `limit`, taken out at once."""
        released = []
        while self._waiting and self._waiting[0].end <= limit:
            released.append(self._waiting.popleft())
        return iter(released)

    def _first_stop(self, old_length: int) -> int | None:
        """Where the text must be cut, or None.

        The first stop string in list order wins, at its first occurrence. Where another one stands complete before
        that, the text is cut again, so that none is ever left in it.
        """
        start = max(0, old_length - self._longest + 1)
        window, cut = self.text[start:], None
        while True:
            found = next((window.index(stop) for stop in self._stops if stop in window), None)
            if found is None:
                return cut
            window, cut = window[:found], start + found

    def _cut(self, length: int) -> Iterator[Piece]:
        """End the text at `length`; the pieces before it, the last one shortened."""
        self.stopped = True
        self.text = self.text[:length]
        self._close_open_piece()
        kept = [piece for piece in self._waiting if piece.start < length]
        self._waiting.clear()
        for piece in kept:
            piece.text = piece.text[: length - piece.start]
            piece.entries = [entry for entry in piece.entries if entry[1] < length]
        return iter(piece for piece in kept if piece.entries)

    def _held_back(self) -> int:
        """How many characters at the end of the text are the beginning of some stop string."""
        tail = self.text[max(0, len(self.text) - self._longest + 1) :]
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(tail)), longest, -1):
                if stop.startswith(tail[-length:]):
                    longest = length
                    break
        return longest
