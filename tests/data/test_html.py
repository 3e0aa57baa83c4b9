"""Pages to text: what a reader came for stays, menus and footers go, and what cannot be read is dropped by name."""

from __future__ import annotations

import pytest

pytest.importorskip("datatrove", reason="phial[data] is not installed")
# An old pip installs trafilatura without lxml_html_clean, without which it cannot be imported.
pytest.importorskip(
    "trafilatura", reason="trafilatura is not installed, or without lxml_html_clean", exc_type=ImportError
)

from datatrove.data import Document

from phial.data.html import HtmlToText, extract, is_html

PARAGRAPHS = [
    "The heart pumps blood through the body, and each beat begins in a small group of cells.",
    "These cells fire on their own, without a nerve telling them to, about once a second.",
    "The signal spreads through both upper chambers, waits a moment, and then reaches the lower ones.",
]
PAGE = (
    "<!DOCTYPE html><html><head><title>How hearts beat</title><script>var x = 'tracking';</script></head><body>"
    "<nav><ul><li><a href='/'>Home</a></li><li><a href='/shop'>Our shop</a></li></ul></nav>"
    f"<article><h1>How hearts beat</h1>{''.join(f'<p>{text}</p>' for text in PARAGRAPHS)}</article>"
    "<footer><p>Copyright 2020. All rights reserved.</p></footer></body></html>"
)


def run(text: str, when: str = "auto", max_chars: int = 10_000, **metadata: str) -> tuple[object, Document]:
    doc = Document(text, "0", metadata=dict(metadata))
    return HtmlToText(when, max_chars).filter(doc), doc  # type: ignore[arg-type]


def test_a_page_becomes_its_text_and_title() -> None:
    page = extract(PAGE)
    assert page.title == "How hearts beat"
    assert [line for line in page.text.splitlines() if line != page.title] == PARAGRAPHS


def test_the_step_keeps_the_title_in_the_metadata() -> None:
    doc = Document(PAGE, "0", metadata={"source": "web"})
    assert list(HtmlToText().run(iter([doc]), 0, 1)) == [doc]
    assert doc.metadata == {"source": "web", "title": "How hearts beat"}
    assert PARAGRAPHS[1] in doc.text and "shop" not in doc.text and "tracking" not in doc.text and "<" not in doc.text


@pytest.mark.parametrize(
    ("text", "metadata", "expected"),
    [
        (PAGE, {}, True),
        ("  <!-- made by hand --><HTML><body>x</body></HTML>", {}, True),
        ("<?xml version='1.0'?>\n<html xmlns='x'></html>", {}, True),
        ("plain words", {"path": "pages/one.HTM#3"}, True),
        ("<p>a fragment</p>", {"html": True}, True),
        (PAGE, {"html": False}, False),  # whoever read it knows better
        ("Write <html> at the start of the page.", {"path": "lesson.md"}, False),
        ("if a < body and b > html: pass", {}, False),
    ],
)
def test_what_counts_as_a_page(text: str, metadata: dict[str, object], expected: bool) -> None:
    assert is_html(Document(text, "0", metadata=metadata)) is expected


@pytest.mark.parametrize("page", ["<html><body></body></html>", "<html><script>let x = 1;</script></html>", "<html"])
def test_a_page_without_text_is_dropped_and_can_be_read(page: str) -> None:
    result, doc = run(page, "always")
    assert result == (False, "html: no text")
    assert doc.text == page


def test_a_page_over_the_limit_is_dropped_and_one_at_it_is_not() -> None:
    assert run(PAGE, max_chars=len(PAGE) - 1)[0] == (False, "html: page too large")
    assert run(PAGE, max_chars=len(PAGE))[0] is True


def test_never_leaves_pages_alone_and_other_text_passes_untouched() -> None:
    assert run(PAGE, "never")[1].text == PAGE
    assert run("Just a < b.\n")[1].text == "Just a < b.\n"


def test_the_same_page_twice_gives_the_same_text() -> None:
    step = HtmlToText()
    docs = [Document(PAGE, str(n), metadata={}) for n in range(5)]
    assert len({doc.text for doc in step.run(iter(docs), 0, 1)}) == 1 and len(docs[4].text) > 100


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 20_000 + "x" + "</div>" * 20_000,
        "<html>\x00\x01<p>\ud800</p></html>",
        "<table>" * 500,
        "&#xFFFFFF;" * 100,
    ],
)
def test_hostile_pages_end_in_a_decision(page: str) -> None:
    result, _ = run(page, "always", max_chars=1_000_000)
    assert result is True or str(result[1]).startswith("html: ")  # type: ignore[index]
