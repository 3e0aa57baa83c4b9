"""The clean stage: planted documents fall for the reason they were made for, and clean ones come through unchanged."""

from __future__ import annotations

import pickle
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datatrove", reason="phial[data] is not installed")

import ftfy
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import get_filter_result
from pydantic import ValidationError

from phial.data import heuristics
from phial.data.filters import CleanConfig, Language, Profanity, RepairEncoding, clean_steps, profane_words
from phial.data.words import OfflineWords, sentence_spans, split_piece
from phial.errors import PhialError

PROSE = (
    "The heart pumps blood through the body, and each beat begins in a small group of cells near the top of it. "
    "These cells fire on their own, without a nerve telling them to, about once every second of our lives.\n"
    "The signal spreads through both of the upper chambers, waits for a moment, and then reaches the lower ones. "
    "A doctor who listens to the chest can hear two sounds, which are made by valves that close.\n"
    "When we run, the muscles need more oxygen, so the brain asks the heart to beat faster than it did before."
)
WORDS = (
    "river stone window garden morning paper music letter winter bridge market forest engine harbour story "
    "kitchen doctor lantern mountain village copper feather island teacher number circle summer shadow"
).split()


def clean(text: str, **settings: object) -> tuple[str | None, Document]:
    """The reason a text falls for in the whole chain, None where it stays, and the document at the end."""
    doc = Document(text, "0", metadata={"source": "test"})
    for step in clean_steps(CleanConfig(html="never", **settings)):  # type: ignore[arg-type]
        keep, reason = get_filter_result(step.filter(doc))
        if not keep:
            return reason, doc
    return None, doc


def invented(n: int, seed: int = 0, end: str = ".") -> str:
    """Lines of n different sentences that repeat nothing for long."""
    source = random.Random(seed)
    return "\n".join("The " + " ".join(source.sample(WORDS, 9)) + " to the" + end for _ in range(n))


def test_prose_comes_through_letter_by_letter_with_its_language() -> None:
    reason, doc = clean(PROSE)
    assert reason is None
    assert doc.text == PROSE
    assert doc.metadata["language"] == "en" and doc.metadata["language_score"] > 0.9
    assert set(doc.metadata) == {"source", "language", "language_score"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        (PROSE[:200], "gopher: short"),
        (invented(9, end=" ...") + "\n" + invented(9, seed=1), "gopher: lines ending in an ellipsis"),
        ("\n".join("- " + line for line in invented(20).splitlines()), "gopher: lines with bullets"),
        (" ".join(f"# {word}" for word in PROSE.split()), "gopher: hash signs"),
        (PROSE + " " + " ".join(str(n) for n in range(100, 160)), "gopher: words without letters"),
        (invented(12) + "\n" + "\n".join(["Subscribe to our newsletter for more of this."] * 8), "repetition: lines"),
        ("\n\n".join([PROSE.splitlines()[0]] * 4), "repetition: paragraphs"),
        (PROSE.replace("body,", "body {x},"), "c4: curly bracket"),
        (PROSE.replace("body", "lorem ipsum"), "c4: lorem ipsum"),
        (PROSE.replace(".", "").replace("\n", " ") + ".", "c4: few sentences"),
        (PROSE.replace(" ", " fucking ", 6), "profanity"),
        ("Der Hund lief über die Straße und bellte die Katze an, die auf dem Zaun saß. " * 3, "language: de"),
        ("�" * 20 + PROSE, "encoding: broken characters"),
    ],
)
def test_a_planted_document_falls_for_its_reason(text: str, reason: str) -> None:
    assert clean(text)[0] == reason


def test_curly_brackets_can_be_kept() -> None:
    text = PROSE.replace("body,", "body {x},")
    reason, doc = clean(text, c4_curly_brackets=False)
    assert (reason, doc.text) == (None, text)


def test_fineweb_reasons() -> None:
    step = heuristics.fineweb_quality(OfflineWords())
    lines = invented(12).splitlines()
    cases = {
        "fineweb: lines without end mark": "\n".join(line.rstrip(".") for line in lines),
        "fineweb: short lines": "\n".join(line[:25] + "." for line in lines),
        "fineweb: repeated lines": "\n".join([*lines, lines[0]]),
        "fineweb: line breaks": "\n".join(
            f"{line[4:20].replace(' ', '')}esque {line[20:36].replace(' ', '')}hood."
            for line in invented(30).splitlines()
        ),
    }
    for reason, text in cases.items():
        assert step.filter(Document(text, "0")) == (False, reason)


@pytest.mark.parametrize(("n", "kept"), [(49, False), (50, True), (51, True)])
def test_the_limit_of_fifty_words_is_gophers(n: int, kept: bool) -> None:
    text = " ".join(["the", "of", *(WORDS * 2)[: n - 2]]) + " . . ."  # marks are no words here
    result = heuristics.gopher_quality(OfflineWords()).filter(Document(text, "0"))
    assert result == (True if kept else (False, "gopher: short"))


def test_letters_are_counted_between_white_space_or_as_datatrove_does() -> None:
    text = " ".join(f"{word}, (the) of;" for word in WORDS * 2)  # every word has one, every second token none
    doc = Document(text, "0")
    assert heuristics.gopher_quality(OfflineWords(), "words").filter(doc) is True
    assert heuristics.gopher_quality(OfflineWords(), "tokens").filter(doc) == (False, "gopher: words without letters")


def test_c4_takes_lines_out_and_counts_them() -> None:
    lines = [*invented(8).splitlines(), "Please enable javascript to read on.", "We use cookies on this page.", "Menu"]
    step, doc = heuristics.c4_quality(OfflineWords()), Document("\n".join(lines), "0", metadata={})
    assert step.filter(doc) is True
    assert doc.text.splitlines() == lines[:8] and doc.metadata == {"lines_removed": 3}
    doc = Document("\n".join([*lines[:8], "A heading without a mark at its end"]), "0", metadata={})
    assert heuristics.c4_quality(OfflineWords(), end_marks=True).filter(doc) is True
    assert doc.metadata == {"lines_removed": 1}


def test_c4_keeps_paragraphs_indents_and_drops_citations() -> None:
    text = "A first line stays here.[12]\n\n  An indented line follows it.\n\nToo few.\n\nThen there is the end of it."
    doc = Document(text, "0", metadata={})
    assert heuristics.C4Lines(C4QualityFilter(language=OfflineWords(), min_num_sentences=3), "c4").filter(doc) is True
    assert doc.text == "A first line stays here.\n\n  An indented line follows it.\n\nThen there is the end of it."
    assert doc.metadata == {"lines_removed": 1}


@given(st.lists(st.sampled_from(["One line of words.", "menu", "", "  We use cookies.", "A b c{", "It is [1]."])))
def test_c4_and_fineweb_decide_as_in_datatrove(lines: list[str]) -> None:
    text = "\n".join([*lines, *invented(4).splitlines()])
    ours, theirs = Document(text, "0", metadata={}), Document(text, "0", metadata={})
    decided = [heuristics.c4_quality(OfflineWords()).filter(ours)]
    expected = [C4QualityFilter(language=OfflineWords(), filter_no_terminal_punct=False).filter(theirs)]
    filled = [[line.strip() for line in doc.text.splitlines() if line.strip()] for doc in (ours, theirs)]
    assert filled[0] == filled[1]
    decided.append(heuristics.fineweb_quality(OfflineWords()).filter(ours))
    expected.append(FineWebQualityFilter(language=OfflineWords()).filter(theirs))
    assert [get_filter_result(d)[0] for d in decided] == [get_filter_result(e)[0] for e in expected]


@given(st.lists(st.sampled_from([*WORDS[:6], "a", "b.", "\n", "\n\n"]), max_size=120), st.integers(0, 30))
def test_repetition_decides_as_datatroves_own_filter(words: list[str], unlike: int) -> None:
    text = " ".join(words + WORDS[:unlike])
    ours, theirs = heuristics.QuickRepetition(OfflineWords()), GopherRepetitionFilter(language=OfflineWords())
    assert get_filter_result(ours.filter(Document(text, "0"))) == get_filter_result(theirs.filter(Document(text, "0")))


@given(st.lists(st.sampled_from([*invented(9).splitlines(), *invented(40, seed=3).splitlines()]), max_size=40))
def test_long_repetitions_are_found_as_in_datatrove(sentences: list[str]) -> None:
    text = " ".join(sentences)
    ours, theirs = heuristics.QuickRepetition(OfflineWords()), GopherRepetitionFilter(language=OfflineWords())
    assert get_filter_result(ours.filter(Document(text, "0"))) == get_filter_result(theirs.filter(Document(text, "0")))


def test_a_passage_that_comes_twice_is_a_repetition() -> None:
    once, other = (" ".join(invented(n, seed=n).splitlines()) for n in (4, 12))
    step = heuristics.gopher_repetition(OfflineWords())
    assert step.filter(Document(f"{once} {other} {once}", "0")) == (False, "repetition: repeated 5-grams")
    assert step.filter(Document(f"{once} {other}", "0")) is True


def test_blank_lines_are_no_lines_to_fineweb() -> None:
    lines = ["A line of eight words that ends here.", "Another one has five words."]
    assert heuristics.fineweb_quality(OfflineWords()).filter(Document("\n\n\n\n\n\n\n".join(lines), "0")) is True


def test_every_reason_of_datatroves_filters_has_our_name() -> None:
    import inspect
    import re

    filters = (GopherQualityFilter, GopherRepetitionFilter, C4QualityFilter, FineWebQualityFilter)
    said = {name for kind in filters for name in re.findall(r'False, "([a-z_]+)"', inspect.getsource(kind.filter))}
    assert len(said) > 15 and said <= set(heuristics._REASONS)


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("The MontrÃ©al cafÃ© â€” open", "The Montréal café — open"),
        ("one\r\ntwo\x00\x07", "one\ntwo"),
        ("Fish &amp; chips", "Fish & chips"),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_broken_encoding_is_repaired(broken: str, whole: str) -> None:
    doc = Document(broken, "0", metadata={})
    assert RepairEncoding().filter(doc) is True
    assert (doc.text, doc.metadata) == (whole, {"repaired": True})
    doc = Document(broken, "0", metadata={})
    assert RepairEncoding(repair=False).filter(doc) is True and doc.text == broken


@pytest.mark.parametrize(
    "text", ["“Curly,” she said – naïve café…", "漢字かな", "if a < b && c > d: x &= y", "tab\there\n"]
)
def test_sound_text_is_not_repaired(text: str) -> None:
    doc = Document(text, "0", metadata={})
    assert RepairEncoding().filter(doc) is True
    assert (doc.text, doc.metadata) == (text, {})


@given(st.text(alphabet="aZ09 .,&<>;'\"\n\t#%\u2013\u2014\u2018\u2019\u201c\u201d\u2026", max_size=60))
def test_what_the_repair_skips_ftfy_would_leave_too(text: str) -> None:
    if not RepairEncoding._ODD.search(text):
        assert ftfy.fix_text(text, uncurl_quotes=False) == text


def test_language_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the language filter opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    step = Language(languages=())
    texts = {
        "en": PROSE,
        "de": "Der Hund lief über die Straße und bellte laut.",
        "fr": "Où est la gare, s'il vous plaît ?",
    }
    for language, text in texts.items():
        doc = Document(text, "0", metadata={})
        assert step.filter(doc) is True
        assert doc.metadata["language"] == language and 0.65 <= doc.metadata["language_score"] <= 1


def test_a_language_without_a_clear_score_is_unsure() -> None:
    doc = Document("qwx zzk vv 12 34 == != ()", "0", metadata={})
    assert Language().filter(doc) == (False, "language: unsure")
    assert doc.metadata["language_score"] < 0.65
    german = Document("Der Hund lief über die Straße und bellte laut.", "0", metadata={})
    assert Language(("de", "en")).filter(german) is True


def test_profanity_is_a_matter_of_density(tmp_path: Path) -> None:
    step = Profanity(OfflineWords(), profane_words(), 0.01)
    once, doc = PROSE * 2 + " Shit!", Document(PROSE * 2 + " Shit!", "0", metadata={})
    assert step.filter(doc) is True
    assert (doc.text, doc.metadata) == (once, {"profane_words": 1})
    innocent = "Dick Cox of Scunthorpe shot a cock pheasant; the ass brayed, and Essex analysed the breast cancer data."
    assert step.filter(Document(innocent, "0", metadata={})) is True
    (tmp_path / "words.txt").write_text("# ours\nHeart  # the organ\n\n", "utf-8")
    assert profane_words(tmp_path / "words.txt") == {"heart"}
    assert clean(PROSE, profanity_words=tmp_path / "words.txt")[0] == "profanity"
    assert clean(PROSE, profanity_words=tmp_path / "words.txt", profanity=1)[0] is None


def test_a_word_file_that_cannot_serve_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="cannot be read"):
        profane_words(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n", "utf-8")
    with pytest.raises(PhialError, match="holds no words"):
        profane_words(tmp_path / "empty.txt")


def test_configuration_is_strict_and_chooses_the_steps() -> None:
    with pytest.raises(ValidationError):
        CleanConfig(langauges=("en",))  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        CleanConfig(heuristics=("gophr",))  # type: ignore[arg-type]
    names = [step.name for step in clean_steps(CleanConfig())]
    assert names == "html,encoding,language,private data,profanity,gopher quality,gopher repetition,c4,fineweb".split(
        ","
    )
    few = CleanConfig(html="never", personal=(), secrets="keep", profanity=1, heuristics=("c4", "gopher"))
    assert [step.name for step in clean_steps(few)] == ["encoding", "language", "gopher quality", "c4"]


def test_steps_travel_to_workers_and_share_one_split() -> None:
    steps = clean_steps(CleanConfig(html="never"))
    doc = Document(PROSE, "0", metadata={})
    assert all(step.filter(doc) is True for step in steps)
    again = pickle.loads(pickle.dumps(steps))
    doc = Document(PROSE, "0", metadata={})
    assert all(step.filter(doc) is True for step in again)
    split = [steps[3].words, steps[4].inner.language, steps[5].inner.words, steps[7].inner.language]
    split_again = [again[3].words, again[4].inner.language, again[5].inner.words, again[7].inner.language]
    assert len(set(map(id, split))) == len(set(map(id, split_again))) == 1
    assert split[0] is not split_again[0] and split_again[0].word_tokenize(doc.text) is split_again[0]._words


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        ("don't", ["do", "n't"]),
        ("they’ll", ["they", "’ll"]),
        ("(well-known,", ["(", "well", "-", "known", ","]),
        ("U.S.", ["U.S."]),
        ("end.”", ["end", ".", "”"]),
        ("3.14,", ["3.14", ","]),
        ("wait...", ["wait", "..."]),
        ("https://a.org/b-c?d=e.", ["https://a.org/b-c?d=e", "."]),
        ("Dr.", ["Dr."]),
        ("'", ["'"]),
    ],
)
def test_words(piece: str, words: list[str]) -> None:
    assert split_piece(piece) == words


@given(st.text(max_size=80))
def test_words_and_sentences_lose_nothing(text: str) -> None:
    assert "".join(OfflineWords().word_tokenize(text)) == "".join(text.split())
    spans = sentence_spans(text)
    assert all(a == 0 if n == 0 else a == spans[n - 1][1] for n, (a, _) in enumerate(spans))
    assert "".join(text[a:b] for a, b in spans).split() == text.split()


def test_sentences() -> None:
    text = 'Dr. A. Smith came. "Did he?" asked Mr. Jones! Yes.\nNo full stop here\nEnd.'
    assert OfflineWords().sent_tokenize(text) == [
        "Dr. A. Smith came.", '"Did he?"', "asked Mr. Jones!", "Yes.", "No full stop here", "End.",
    ]  # fmt: skip
