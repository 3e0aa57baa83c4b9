"""Words and sentences without a model, a download or spaCy, for datatrove's filters; split once, shared by all of them.

datatrove 0.10 gives English (and every other language in its table) to spaCy, which is no dependency of ours. Its
filters take a tokenizer object in the place of the language, so they take this one. It follows what spaCy does with
English: pieces between white space lose punctuation one mark at a time at both ends, clitics come off ("do" "n't"),
hyphens and slashes between letters split, addresses and abbreviations stay whole. It differs in rare things (units
after numbers, emoticons, "cannot" and "gonna"), and scripts without spaces (Chinese, Japanese, Thai) give a word for
every run of letters: use other filters for those.
"""

from __future__ import annotations

import re
from itertools import chain

from datatrove.utils.word_tokenizers import WordTokenizer

_MARKS = r",:;!?¿¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉"
_PREFIX = re.compile(rf"\.\.+|…|[{_MARKS}§%=—–$£€¥]|\+(?!\d)")
_SUFFIX = re.compile(
    rf"""(?:\.\.+ | … | [{_MARKS}—–] | (?<=\d)[+%$£€¥] | n['’]t | ['’](?:s|S|re|ve|ll|d|m)
    | (?<=[^\W\d_A-Z])\. | (?<=[\d%²\-+{_MARKS}])\. | (?<=[A-Z][A-Z])\.)$""",
    re.VERBOSE,
)
_INFIX = re.compile(
    r"\.\.+|…|(?<=[^\W\d_A-Z])\.(?=[A-Z])|(?<=[^\W\d_]),(?=[^\W\d_])"
    r"|(?<=[^\W_])(?:--+|[-–—:<>=/])(?=[^\W\d_])|(?<=\d)[+\-*^](?=[\d-])"
)
_WHOLE = re.compile(
    r"(?:https?://|www\.)\S+[^\s,.;:!?)\]'\"]|[^\W\d_]\.|(?:[A-Za-z]\.){2,}"
    r"|(?:Mrs?|Ms|Dr|St|Jr|Sr|Prof|vs|etc|Inc|Ltd|Co|Corp|No|Gen|Rep|Sen|Gov|Mt)\."
)
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|\n+")
_NO_END = re.compile(r"\b(?:Mrs?|Ms|Dr|St|Jr|Sr|Prof|vs|Fig|No|[A-Za-z]|e\.g|i\.e)\.$")
_CLITIC = re.compile(r"['’](?:s|re|ve|ll|d|m)")
_LONGEST = 8  # characters looked at for a mark at the end
_KNOWN_CHARS = 1_000_000  # of pieces remembered (about 25 MB): text repeats them, so that most are split once


def split_piece(piece: str) -> list[str]:
    """The words of a piece without white space; they join to the piece. Time grows linearly with its length."""
    if piece.isalnum():
        return [piece]
    front: list[str] = []
    back: list[str] = []
    start, end = 0, len(piece)
    while start < end and not _WHOLE.fullmatch(piece, start, end):
        if (found := _PREFIX.match(piece, start, end)) and not _CLITIC.fullmatch(piece, start, end):
            front.append(found[0])
            start = found.end()
        elif (found := _SUFFIX.search(piece, max(start + 1, end - _LONGEST), end)) is not None:
            back.append(found[0])
            end = found.start()
        else:
            break
    at = start
    for match in () if _WHOLE.fullmatch(piece, start, end) else _INFIX.finditer(piece, start, end):
        front += [word for word in (piece[at : match.start()], match[0]) if word]
        at = match.end()
    return front + ([piece[at:end]] if at < end else []) + back[::-1]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences, which join to the whole text; a line break ends one as a full stop does."""
    spans, start = [], 0
    for match in _END.finditer(text):
        end = match.end()
        if text[start:end].isspace() or (match[0] == "." and _NO_END.search(text, max(start, end - 8), end)):
            continue
        spans.append((start, end))
        start = end
    if text[start:].strip():
        spans.append((start, len(text)))
    return spans


class OfflineWords(WordTokenizer):
    """datatrove's tokenizer interface over split_piece and sentence_spans.

    The words of the last text are kept, so that several filters in a row over one document pay for it once. They
    must not change the list they get; datatrove's do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._text: str = ""
        self._words: list[str] = []
        self._known: dict[str, list[str]] = {}
        self._room = _KNOWN_CHARS

    def word_tokenize(self, text: str) -> list[str]:
        if text is not self._text:
            known, pieces = self._known, text.split()
            for piece in set(pieces).difference(known):
                known[piece] = split_piece(piece)
                self._room -= len(piece)
            self._text, self._words = text, list(chain.from_iterable(map(known.__getitem__, pieces)))
            if self._room < 0:
                self._known, self._room = {}, _KNOWN_CHARS
        return self._words

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end].strip() for start, end in sentence_spans(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return sentence_spans(text)

    def __getstate__(self) -> dict[str, object]:
        fresh = {"_text": "", "_words": [], "_known": {}, "_room": _KNOWN_CHARS}
        return {"language": self.language} | fresh  # the last text does not travel to workers
