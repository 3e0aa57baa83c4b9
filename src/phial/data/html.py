"""From a web page to the text a reader came for, with its title, by trafilatura.

Everything here depends on the page alone: trafilatura's own removal of repeated paragraphs stays off, because it
remembers earlier pages and so depends on their order; there is a limit on size instead of one on time, for the same
reason. trafilatura's time grows linearly with the page (about 4 µs a character on pages made to be hard), so that a
page of 2,000,000 characters, the default limit, takes seconds.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from phial.errors import PhialError

HtmlWhen = Literal["auto", "always", "never"]
_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--[\s\S]{0,500}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.I)
_ENDINGS = (".html", ".htm", ".xhtml")


class Page(NamedTuple):
    """A page's main text, paragraphs apart by line breaks, and its title; "" where it has none."""

    text: str
    title: str


def is_html(doc: Document) -> bool:
    """Whether a document is a page: by `html` in its metadata, its file's name, or how its text begins."""
    if "html" in doc.metadata:
        return doc.metadata["html"] is True
    path = str(doc.metadata.get("path", "")).split("#")[0].lower()
    return path.endswith(_ENDINGS) or _START.match(doc.text) is not None


def extract(html: str) -> Page:
    """The main text of a page without menus, comments and footers, favouring precision, and its title.

    Raises:
        PhialError: trafilatura is not installed, or not whole.
    """
    bare_extraction, load_html, extract_title = _trafilatura()
    tree = load_html(html)
    if tree is None:
        return Page("", "")
    title = extract_title(tree) or ""
    found = bare_extraction(tree, favor_precision=True, include_comments=False, deduplicate=False)
    text = (found.text or "") if found is not None else ""
    return Page(text.strip(), " ".join(title.split()))


class HtmlToText(BaseFilter):
    """Replaces pages by their text; the title goes to the metadata. A page without text is dropped as it was."""

    name = "html"

    def __init__(self, when: HtmlWhen = "auto", max_chars: int = 2_000_000) -> None:
        super().__init__()
        self.when = when
        self.max_chars = max_chars

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self.when == "never" or (self.when == "auto" and not is_html(doc)):
            return True
        if len(doc.text) > self.max_chars:
            return False, "html: page too large"
        try:
            page = extract(doc.text)
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError) as error:
            # What trafilatura and lxml raise on broken pages: the page is at fault, and can be read in dropped/.
            doc.metadata["error"] = f"{type(error).__name__}: {error}"
            return False, "html: broken page"
        if not page.text:
            return False, "html: no text"
        doc.text = page.text
        doc.metadata.pop("html", None)
        if page.title:
            doc.metadata["title"] = page.title
        return True


def _trafilatura() -> tuple[Any, Any, Any]:
    """bare_extraction, load_html and extract_title, or a PhialError that says what to install."""
    try:
        from trafilatura import bare_extraction, load_html
        from trafilatura.metadata import extract_title
    except ImportError as error:
        # An old pip leaves out lxml_html_clean, which trafilatura needs, without a word.
        raise PhialError(
            f"trafilatura cannot be loaded: {str(error).splitlines()[0]}", "install phial[data]"
        ) from error
    return bare_extraction, load_html, extract_title
