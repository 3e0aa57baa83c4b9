"""datatrove's quality heuristics with their published thresholds, under reasons a reader understands, on one shared
list of words.

Gopher quality and repetition: Rae et al. 2021, appendix A1.1. C4: Raffel et al. 2020, section 2.2, and as FineWeb
used it without the rule that every line ends in a full stop (Penedo et al. 2024, section 3.5). FineWeb's own: the same
paper, section 3.6. The filters themselves are datatrove's, so that their decisions are; they get their words from
phial.data.words in place of spaCy.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate
from datatrove.utils.word_tokenizers import WordTokenizer

LettersIn = Literal["words", "tokens"]
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")
_REASONS = {
    "gopher_short_doc": "gopher: short",
    "gopher_long_doc": "gopher: long",
    "gopher_below_avg_threshold": "gopher: words too short",
    "gopher_above_avg_threshold": "gopher: words too long",
    "gopher_too_many_hashes": "gopher: hash signs",
    "gopher_too_many_ellipsis": "gopher: ellipses",
    "gopher_too_many_bullets": "gopher: lines with bullets",
    "gopher_too_many_end_ellipsis": "gopher: lines ending in an ellipsis",
    "gopher_below_alpha_threshold": "gopher: words without letters",
    "gopher_enough_stop_words": "gopher: few stop words",
    "empty": "empty",
    "dup_para_frac": "repetition: paragraphs",
    "dup_para_char_frac": "repetition: characters in repeated paragraphs",
    "dup_line_frac": "repetition: lines",
    "dup_line_char_frac": "repetition: characters in repeated lines",
    "lorem_ipsum": "c4: lorem ipsum",
    "curly_bracket": "c4: curly bracket",
    "too_few_sentences": "c4: few sentences",
    "line_punct_ratio": "fineweb: lines without end mark",
    "short_line_ratio": "fineweb: short lines",
    "char_dup_ratio": "fineweb: repeated lines",
    "list_ratio": "fineweb: line breaks",
}
_REASONS |= {f"top_{n}_gram": f"repetition: most frequent {n}-gram" for n in (2, 3, 4)}
_REASONS |= {f"duplicated_{n}_n_grams": f"repetition: repeated {n}-grams" for n in range(5, 11)}


class Heuristic(BaseFilter):
    """One of datatrove's filters under our reasons; an empty text is dropped before it could divide by zero."""

    def __init__(self, inner: BaseFilter, name: str) -> None:
        self.name = name
        super().__init__()
        self.inner = inner

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if not doc.text.strip():
            return False, "empty"
        keep, reason = get_filter_result(self.inner.filter(doc))
        return True if keep else (False, _REASONS[reason])


class C4Lines(Heuristic):
    """C4's rules, which also take out single lines; how many is counted in the metadata as `lines_removed`.

    Blank lines and indents stay where they are, unlike in datatrove: they are paragraphs and programs to a reader.
    """

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        before = doc.text
        result = super().filter(doc)
        if result is True:
            kept = set(doc.text.split("\n"))  # a line's fate depends on the line alone
            doc.text, removed = _kept_lines(before, kept)
            if removed:
                doc.metadata["lines_removed"] = removed
        return result


def _kept_lines(text: str, kept: set[str]) -> tuple[str, int]:
    """The text without the lines that are not in `kept`, stripped and without citations, and how many those were."""
    lines: list[str] = []
    removed = 0
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and CITATION_REGEX.sub("", stripped) not in kept:
            removed += 1
        elif stripped or (lines and lines[-1]):  # no two blank lines where the lines between are gone
            lines.append(CITATION_REGEX.sub("", line.rstrip()))
    fresh = "\n".join(lines).strip("\n")
    return (text if fresh == text else fresh), removed  # the same object, whose words are known


class FineWeb(Heuristic):
    """FineWeb's rules on the lines that hold something; C4 leaves it no others in datatrove."""

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        filled = _BLANK.sub("\n", doc.text)
        return super().filter(doc if filled == doc.text else Document(filled, doc.id))


class GopherQuality(Heuristic):
    """Gopher's limits, with the share of words that hold a letter counted between white space, as the paper does.

    datatrove counts every comma and digit as a word without letters. Ordinary prose then lies close to the limit of
    80 %, and textbooks with formulas lie below it; letters="tokens" gives that count.
    """

    def __init__(self, words: WordTokenizer, letters: LettersIn, **thresholds: Any) -> None:
        self.least = 0.0 if letters == "tokens" else 0.8
        if letters == "words":
            thresholds["max_non_alpha_words_ratio"] = None
        super().__init__(GopherQualityFilter(language=words, **thresholds), "gopher quality")

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        result = super().filter(doc)
        if result is True and self.least:
            pieces = doc.text.split()
            if sum(any(map(str.isalpha, piece)) for piece in pieces) < self.least * len(pieces):
                return False, _REASONS["gopher_below_alpha_threshold"]
        return result


class QuickRepetition(BaseFilter):
    """datatrove's GopherRepetitionFilter in a third of the time, with the same decisions and reasons.

    Short n-grams are counted as tuples. The long ones are counted only where they can reach their limits: a text that
    repeats an n-gram of six to ten words repeats its five-grams too, so the words inside repeated five-grams bound
    what the longer ones can have.
    """

    name = "gopher repetition"

    def __init__(self, words: WordTokenizer) -> None:
        super().__init__()
        published = GopherRepetitionFilter(language=words)
        self.words = words
        self.top_n_grams: tuple[tuple[int, float], ...] = published.top_n_grams
        self.long_n_grams: tuple[tuple[int, float], ...] = published.dup_n_grams
        self.lines = GopherRepetitionFilter(top_n_grams=(), dup_n_grams=(), language=words)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        keep, reason = get_filter_result(self.lines.filter(doc))
        if not keep:
            return False, reason
        words, size = self.words.word_tokenize(doc.text), len(doc.text)
        for n, most in self.top_n_grams:
            if _top_chars(words, n) / size > most:
                return False, f"top_{n}_gram"
        if not _may_reach(words, self.long_n_grams[0][0], min(most for _, most in self.long_n_grams) * size):
            return True
        for n, most in self.long_n_grams:
            if find_all_duplicate(words, n) / size > most:
                return False, f"duplicated_{n}_n_grams"
        return True


def _top_chars(words: list[str], n: int) -> int:
    """Characters of the most frequent n-gram, spaces inside it included, times how often it occurs."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        return 0
    top = max(counts, key=counts.__getitem__)
    return (sum(map(len, top)) + n - 1) * counts[top]


def _may_reach(words: list[str], n: int, chars: float) -> bool:
    """Whether the words that lie in an n-gram seen before have more than this many characters together."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    if len(set(grams)) == len(grams):
        return False
    seen, total, end = set(), 0, 0
    for at, gram in enumerate(grams):
        if gram in seen:
            total += sum(map(len, words[max(at, end) : at + n]))
            end = at + n
        seen.add(gram)
    return total > chars


def gopher_repetition(words: WordTokenizer) -> Heuristic:
    """Gopher's limits on repeated lines, paragraphs and n-grams (Rae et al. 2021, table A1)."""
    return Heuristic(QuickRepetition(words), "gopher repetition")


def gopher_quality(words: WordTokenizer, letters: LettersIn = "words", **thresholds: Any) -> GopherQuality:
    """Gopher's limits on length, word length, symbols and stop words (Rae et al. 2021, appendix A1.1)."""
    return GopherQuality(words, letters, **thresholds)


def c4_quality(words: WordTokenizer, *, end_marks: bool = False, curly_brackets: bool = True) -> C4Lines:
    """C4's rules (Raffel et al. 2020, section 2.2).

    end_marks removes lines that do not end in . ! ? or a quote, curly_brackets drops texts with a "{".
    """
    rules = C4QualityFilter(language=words, filter_no_terminal_punct=end_marks, filter_curly_bracket=curly_brackets)
    return C4Lines(rules, "c4")


def fineweb_quality(words: WordTokenizer) -> FineWeb:
    """FineWeb's limits on end marks, short lines and repeated lines (Penedo et al. 2024, section 3.6)."""
    return FineWeb(FineWebQualityFilter(language=words), "fineweb")
