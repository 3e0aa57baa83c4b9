"""Constructed noise for the corpus of bench/data.py: what the web is full of, each kind labelled.

All of it is made here, from word lists and from the corpus's own texts. Kinds whose text should survive (a real text
in a web page, a real text in a broken encoding) carry the tier of the text they were made from.
"""

from __future__ import annotations

import html
import random
from typing import NamedTuple

from corpus_texts import Text


class Made(NamedTuple):
    """A constructed document; `of` is the corpus_id of the text it was made from, with its tier."""

    text: str
    kind: str
    html: bool = False
    tier: str = "noise"
    of: str = ""
    clean: str = ""  # what a perfect cleaner would give back


class Known(NamedTuple):
    """A text of the corpus that noise may be made from."""

    id: str
    tier: str
    text: str


_COMPANIES = "Northwind Brightleaf Quantora Silverpine Oakmere Lumenta Harborline Veltrix Cobaltine Fernway".split()
_ADJECTIVES = "amazing premium exclusive affordable ultimate trusted leading certified luxury unbeatable".split()
_NOUNS = "casino bonus loan watch pills hosting insurance mortgage replica software crypto diet".split()
_PRODUCTS = "Kettle Backpack Headlamp Drill Blender Router Lamp Chair Jacket Mattress Notebook Speaker".split()
_COLOURS = "black white red teal olive navy sand graphite ivory plum".split()
_CITIES = "Berlin Austin Leeds Lyon Osaka Porto Denver Perth Ghent Turin".split()
_MENU = (
    "Home|Products|About us|Contact|Careers|Blog|Support|Login|Register|Cart|Wishlist|News|Events|FAQ|Imprint|"
    "Press|Partners|Downloads|Forum|Gallery|Shipping|Returns|Store finder|Gift cards|Newsletter|Sitemap"
).split("|")
_LEGAL = [
    "{c} uses cookies to improve your experience. By continuing to browse this site you agree to our use of cookies.",
    "These terms of use govern your access to the services provided by {c}. Please read the terms carefully.",
    "{c} may update this policy at any time. Changes take effect when they are posted on this page.",
    "We do not sell your personal information. {c} shares data with partners as described in the privacy notice.",
    "All trademarks are the property of their owners. Copyright {y} {c}. All rights reserved.",
    "To the fullest extent permitted by law, {c} disclaims all warranties, express or implied.",
    "Click here to manage your consent preferences, or contact our data protection officer in {p}.",
    "You must be at least {n} years old to create an account with {c}. Accept all. Reject all. More options.",
]
_SPAM = [
    "Buy {a} {n} online now! Best {n} in {p}, {a} prices, {a} quality, limited offer!!!",
    "Click here for {a} {n} >>> {c}-{n}.example <<< {a} {n} deals",
    "{n} {p} {n} cheap {n} best {n} online {n} {a} {n} review {n}",
    "Earn ${k} per day from home with {a} {n}. No experience needed! Sign up today at {c} {n} {p}!",
    "Looking for {a} {n}? {c} is the number one {n} provider in {p}. Call now, call today, call {c}.",
]


def _fill(template: str, rng: random.Random) -> str:
    return template.format(
        a=rng.choice(_ADJECTIVES),
        n=rng.choice(_NOUNS) if "{n} years" not in template else rng.randint(13, 18),
        p=rng.choice(_CITIES),
        c=rng.choice(_COMPANIES),
        y=rng.randint(2004, 2026),
        k=rng.randint(100, 9999),
    )


def spam(rng: random.Random, _: Known) -> Made:
    return Made("\n".join(_fill(rng.choice(_SPAM), rng) for _ in range(rng.randint(8, 40))), "spam")


def boilerplate(rng: random.Random, _: Known) -> Made:
    return Made("\n".join(_fill(rng.choice(_LEGAL), rng) for _ in range(rng.randint(6, 25))), "boilerplate")


def _menu(rng: random.Random, n: int) -> str:
    items = "".join(f'<li><a href="/{i}">{rng.choice(_MENU)}</a></li>' for i in range(n))
    return f'<nav class="menu"><ul>{items}</ul></nav>'


def navigation(rng: random.Random, _: Known) -> Made:
    bars = "".join(_menu(rng, rng.randint(10, 60)) for _ in range(rng.randint(2, 6)))
    title = f"{rng.choice(_COMPANIES)} {rng.choice(_MENU)}"
    return Made(f"<html><head><title>{title}</title></head><body>{bars}</body></html>", "navigation", html=True)


def product(rng: random.Random, _: Known) -> Made:
    name = f"{rng.choice(_COMPANIES)} {rng.choice(_ADJECTIVES).title()} {rng.choice(_PRODUCTS)}"
    rows = [f"SKU {rng.randint(10**6, 10**7)}", f"EAN {rng.randint(10**12, 10**13)}"]
    rows += [f"{key}: {rng.randint(1, 999)}" for key in ("Weight g", "Width mm", "Height mm", "Depth mm", "In stock")]
    lines = [f"{name} - {rng.choice(_COLOURS)}", f"Price: EUR {rng.randint(5, 900)}.{rng.randint(0, 99):02}", *rows]
    for _ in range(rng.randint(4, 20)):
        other = f"{rng.choice(_COMPANIES)} {rng.choice(_PRODUCTS)} {rng.choice(_COLOURS)}"
        stars = rng.randint(1, 5)
        lines.append(f"Customers also bought: {other} | EUR {rng.randint(5, 900)} | {stars} of 5 stars | Add to cart")
    return Made("\n".join(lines), "product")


def shuffled(rng: random.Random, known: Known) -> Made:
    words = known.text.split()
    rng.shuffle(words)
    return Made(" ".join(words), "shuffled", of=known.id)


def repeated(rng: random.Random, known: Known) -> Made:
    lines = [line for line in known.text.split("\n") if len(line) > 60] or [known.text[:300]]
    chosen = rng.choice(lines)[:600]
    return Made("\n".join([chosen] * rng.randint(8, 30)), "repeated", of=known.id)


def torn(rng: random.Random, known: Known) -> Made:
    """Bytes lost: one character in six is the replacement character."""
    return Made("".join("\ufffd" if rng.random() < 1 / 6 else c for c in known.text), "torn", of=known.id)


def symbols(rng: random.Random, _: Known) -> Made:
    alphabet = "ABCDEFabcdef0123456789+/=#|{}<>"
    lines = ["".join(rng.choice(alphabet) for _ in range(rng.randint(30, 90))) for _ in range(rng.randint(20, 60))]
    return Made("\n".join(lines), "symbols")


def mojibake(rng: random.Random, known: Known) -> Made:
    """UTF-8 read as Windows-1252, with curly quotes and dashes that show it; a cleaner gives the text back."""
    curly = known.text.replace("'", "\u2019").replace(" - ", " \u2014 ").replace('"', "\u201c")
    broken = "".join(
        bytes([b]).decode("cp1252", "ignore") or bytes([b]).decode("latin-1") for b in curly.encode("utf-8")
    )
    return Made(broken, "mojibake", tier=known.tier, of=known.id, clean=curly)


def web_page(rng: random.Random, known: Known) -> Made:
    """A real text within menus, a cookie banner, a side bar and a footer."""
    body = "".join(f"<p>{html.escape(p)}</p>\n" for p in known.text.split("\n") if p.strip())
    banner = html.escape(_fill(_LEGAL[0], rng))
    links = "".join(f'<a href="#">{rng.choice(_PRODUCTS)} {rng.choice(_COLOURS)}</a> ' for _ in range(12))
    footer = " ".join(html.escape(_fill(t, rng)) for t in rng.sample(_LEGAL, 3))
    page = (
        f"<!DOCTYPE html><html><head><title>{html.escape(known.text[:40].strip())}</title><style>p {{margin:0}}</style>"
        f'</head><body><div id="cookie-banner">{banner}<button>OK</button></div>{_menu(rng, 14)}'
        f'<aside class="sidebar"><h4>You may also like</h4>{links}</aside><article>{body}</article>'
        f"<footer>{footer}</footer><script>track({rng.randint(0, 9**9)})</script></body></html>"
    )
    return Made(page, "web page", html=True, tier=known.tier, of=known.id, clean=known.text)


# kind, share of the noise in documents
MAKERS = [
    (spam, 0.14), (boilerplate, 0.12), (navigation, 0.12), (product, 0.12), (shuffled, 0.10), (repeated, 0.08),
    (torn, 0.06), (symbols, 0.06), (mojibake, 0.08), (web_page, 0.12),
]  # fmt: skip


def noise(known: list[Known], count: int, seed: int) -> list[Made]:
    """`count` documents, kinds in their shares, made from `known` where a kind needs a text."""
    rng = random.Random(f"{seed} noise")
    makers, weights = zip(*MAKERS, strict=True)
    return [maker(rng, rng.choice(known)) for maker in rng.choices(makers, weights, k=count)]


def as_text(made: Made, number: int) -> Text:
    return Text(made.text, f"{made.kind.replace(' ', '-')}-{number:05}", html=made.html)
