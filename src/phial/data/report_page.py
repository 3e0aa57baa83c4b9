"""The HTML around the report's charts: style, tables, examples. One file, no script, nothing from outside.

The page forbids itself scripts and foreign content by its own policy, so that a document in it can do nothing even if
escaping had a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from phial.data.report_charts import count, shown
from phial.data.report_counts import Example

_STYLE = Path(__file__).with_name("report.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Section:
    """A part of the page: an anchor, a heading and what stands below it, already HTML."""

    def __init__(self, anchor: str, title: str, *parts: str) -> None:
        self.anchor, self.title, self.parts = anchor, title, list(parts)


def page(title: str, below: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    links = "".join(f'<a href="#{section.anchor}">{shown(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{shown(section.title)}</h2>{"".join(section.parts)}</section>'
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title)}</title><style>{_STYLE.read_text('utf-8')}</style></head>\n"
        f'<body><header><h1>{shown(title)}</h1><p class="soft">{shown(below)}</p><nav>{links}</nav></header>\n'
        f"{body}\n</body></html>\n"
    )


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """The figures one looks at first: (figure, what it is)."""
    inside = "".join(
        f'<div><b>{shown(figure)}</b><span class="soft">{shown(words)}</span></div>' for figure, words in pairs
    )
    return f'<div class="tiles">{inside}</div>'


def paragraph(words: str) -> str:
    return f'<p class="soft">{shown(words)}</p>'


def heading(words: str) -> str:
    return f"<h3>{shown(words)}</h3>"


def many(pictures: Iterable[str]) -> str:
    """Small pictures side by side."""
    return f'<div class="many">{"".join(f"<div>{picture}</div>" for picture in pictures)}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(colour class, words) in a line."""
    inside = "".join(
        f'<span><svg viewBox="0 0 10 10"><rect width="10" height="10" rx="2" class="{colour}"/></svg>'
        f"{shown(words)}</span>"
        for colour, words in entries
    )
    return f'<div class="legend">{inside}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> str:
    """Cells are escaped; columns in `right` hold numbers."""
    numbers = {columns.index(name) for name in right}

    def cells(kind: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{kind}{' class=n' if place in numbers else ''}>{shown(value)}</{kind}>"
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", columns)}</tr>{body}</table></div>'


def example(one: Example | None, *, kept: bool, missing: str = "") -> str:
    """A document: where it is from, then the beginning of its text; `missing` where there is none."""
    look = "kept" if kept else "gone"
    if one is None:
        return f'<div class="doc {look}"><p class="soft">{shown(missing)}</p></div>'
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in one.metadata.items()]
    cut = (
        "" if len(one.text) == one.length else f" · the first {count(len(one.text))} of {count(one.length)} characters"
    )
    return (
        f'<div class="doc {look}"><p class="soft"><bdi>{shown(one.id)}</bdi> · {shown(" · ".join(facts))}{cut}</p>'
        f"<pre>{shown(one.text)}</pre></div>"
    )


def folded(title: str, inside: str, *, open_: bool = False) -> str:
    """A part that opens at a click, without a script."""
    return f"<details{' open' if open_ else ''}><summary>{shown(title)}</summary>{inside}</details>"


def side_by_side(left: str, right: str) -> str:
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'
