"""Masking of personal data and secrets as one step of the clean stage; what is found stands in personal.py and
secret_patterns.py.

Found text is replaced by a placeholder, [EMAIL], [IBAN], [CARD], [IP], [PHONE] or [SECRET], and counted in the
document's metadata ("personal": {"email": 2}, "secrets": {"aws key": 1}). All other text stays as it is, letter by
letter.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from phial.data.personal import KINDS, Kind, Span, find_personal
from phial.data.secret_patterns import find_secrets

SecretAction = Literal["mask", "drop", "keep"]


def apart(spans: Iterable[Span]) -> list[Span]:
    """The spans in order of place, without those that overlap one given before them."""
    taken: list[Span] = []
    for span in spans:
        place = bisect(taken, span)
        before, after = taken[place - 1 : place], taken[place : place + 1]
        if all(other.end <= span.start for other in before) and all(span.end <= other.start for other in after):
            taken.insert(place, span)
    return taken


def placeholder(kind: str) -> str:
    """What stands in the place of a span: the kind of personal data, or [SECRET]."""
    return f"[{kind.upper()}]" if kind in KINDS else "[SECRET]"


def mask(text: str, spans: Iterable[Span]) -> str:
    """The text with a placeholder for each span; the spans in order and apart from each other."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], placeholder(span.kind)]
        at = span.end
    return "".join([*parts, text[at:]])


class MaskPrivate(BaseFilter):
    """Masks personal data of the given kinds; masks secrets, or drops documents that hold one.

    A document dropped for its secret has it masked too, so that the folder of dropped documents spreads none.
    """

    name = "private data"

    def __init__(self, kinds: tuple[Kind, ...] = KINDS, secrets: SecretAction = "mask") -> None:
        super().__init__()
        self.kinds = kinds
        self.secrets = secrets

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        secrets = [] if self.secrets == "keep" else find_secrets(doc.text)
        spans = apart([*secrets, *find_personal(doc.text, self.kinds)])
        if not spans:
            return True
        doc.text = mask(doc.text, spans)
        personal = Counter(span.kind for span in spans if span.kind in KINDS)
        found = Counter(span.kind for span in spans if span.kind not in KINDS)
        for key, counts in (("personal", personal), ("secrets", found)):
            if counts:
                doc.metadata[key] = dict(sorted(counts.items()))
                self.stat_update(*counts)
        if found and self.secrets == "drop":
            return False, f"secrets: {min(span for span in spans if span.kind not in KINDS).kind}"
        return True
