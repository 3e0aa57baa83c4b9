"""Charts of the report as inline SVG: bars and histograms whose colours follow the page's light or dark scheme.

Every text that goes into a chart is escaped by `shown`; numbers are formatted here. No chart needs a script.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

# Characters that end a document early, hide it or turn the direction of what follows: shown by their number.
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")


def shown(text: object) -> str:
    """Text as HTML shows it: escaped, with control, direction and half characters named by their number."""
    return html.escape(_ODD.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(text)), quote=True)


class Part(NamedTuple):
    """A segment of a bar; `colour` is a class of the page's style, k for kept and d0, d1, ... for dropped."""

    value: float
    colour: str
    label: str


class Bar(NamedTuple):
    """A row: its name, its parts from left to right and the words behind it."""

    name: str
    parts: Sequence[Part]
    note: str = ""


def _svg(width: float, height: float, body: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" aria-label="{shown(label)}">'
        + "".join(body)
        + "</svg>"
    )


def _text(x: float, y: float, text: object, *, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{shown(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def bars(rows: Sequence[Bar], label: str, *, width: float = 900, names: float = 190, notes: float = 190) -> str:
    """Horizontal bars on one scale, each with its name on the left and its note on the right."""
    step, thick = 26, 17
    scale = (width - names - notes - 20) / max([sum(p.value for p in row.parts) for row in rows] + [1e-9])
    body = []
    for place, row in enumerate(rows):
        y, x = place * step + 4, names
        body.append(f"<g><title>{shown(row.name)}</title>")
        body.append(_text(names - 8, y + 13, _short(row.name, int(names / 6.7)), anchor="end"))
        body.append("</g>")
        for part in row.parts:
            wide = part.value * scale
            if wide > 0:
                body.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 0.6):.1f}" height="{thick}" class="{part.colour}">'
                    f"<title>{shown(part.label)}</title></rect>"
                )
            x += wide
        body.append(_text(x + 7, y + 13, row.note, style="soft"))
    return _svg(width, len(rows) * step + 4, body, label)


class Column(NamedTuple):
    """A place on the axis of a histogram, with what stands above it, from the bottom up."""

    parts: Sequence[Part]


def histogram(
    columns: Sequence[Column],
    ticks: Sequence[tuple[float, str]],
    label: str,
    *,
    width: float = 900,
    height: float = 200,
    title: str = "",
    note: str = "",
) -> str:
    """Columns side by side; `ticks` are (place on the axis in columns, words). A small one gets a title instead."""
    top, bottom, left = (22 if title else 6), 20, 6
    inner = height - top - bottom
    tallest = max([sum(p.value for p in column.parts) for column in columns] + [1e-9])
    wide = (width - 2 * left) / max(len(columns), 1)
    body = []
    if title:
        body.append(
            f"<g><title>{shown(title)}</title>{_text(left, 14, _short(title, int(width / 12)), style='strong')}"
        )
        body.append(_text(width - left, 14, note, anchor="end", style="soft") + "</g>")
    for place, column in enumerate(columns):
        y = top + inner
        for part in column.parts:
            tall = inner * part.value / tallest
            if tall > 0:
                tall = max(tall, 0.7)
                y -= tall
                body.append(
                    f'<rect x="{left + place * wide + 0.5:.1f}" y="{y:.1f}" width="{max(wide - 1, 0.5):.1f}" '
                    f'height="{tall:.1f}" class="{part.colour}"><title>{shown(part.label)}</title></rect>'
                )
    body.append(f'<path d="M{left} {top + inner + 0.5}H{width - left}" class="axis"/>')
    for where, words in ticks:
        x = left + where * wide
        body.append(f'<path d="M{x:.1f} {top + inner}v4" class="axis"/>')
        anchor = "start" if where <= 0 else "end" if where >= len(columns) else "middle"
        body.append(_text(x, height - 4, words, anchor=anchor, style="soft small"))
    return _svg(width, height, body, label)


def curve(points: Sequence[tuple[float, float, str]], label: str, *, marks: Sequence[float] = ()) -> str:
    """A falling curve of shares: (score 0 to 5, share 0 to 1, words), with lines at `marks`."""
    width, height, left, top, bottom = 900.0, 190.0, 44.0, 8.0, 22.0
    inner_w, inner_h = width - left - 14, height - top - bottom

    def at(score: float, share: float) -> tuple[float, float]:
        return left + inner_w * score / 5, top + inner_h * (1 - share)

    body = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(0.0, share)[1]
        body.append(f'<path d="M{left:g} {y:.1f}H{width - 14:g}" class="grid"/>')
        body.append(_text(left - 6, y + 4, f"{share:.0%}", anchor="end", style="soft small"))
    for place in range(6):
        body.append(_text(at(place, 0)[0], height - 5, place, anchor="middle", style="soft small"))
    for mark in marks:
        x = at(mark, 0)[0]
        body.append(f'<path d="M{x:.1f} {top:g}V{top + inner_h:g}" class="mark"/>')
    line = "L".join("{:.1f} {:.1f}".format(*at(score, share)) for score, share, _ in points)
    body.append(f'<path d="M{line}" class="line"/>')
    for score, share, words in points:
        x, y = at(score, share)
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="k"><title>{shown(words)}</title></circle>')
    return _svg(width, height, body, label)


def count(number: float) -> str:
    """A whole number with thousands apart by commas."""
    return f"{number:,.0f}"


def share(part: float, whole: float) -> str:
    """A percentage in three digits at most; "" of nothing."""
    if not whole:
        return ""
    if part in (0, whole):
        return "100 %" if part else "0 %"
    value = 100 * part / whole
    return "< 0.1 %" if value < 0.1 else f"{min(value, 99.9):.1f} %"


def size(n_bytes: float) -> str:
    """Bytes in units of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
