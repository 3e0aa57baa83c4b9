"""Where a text holds a secret: keys of known services by their form, private key blocks, passwords in addresses, and
values assigned to names such as "api_key" that are too random to be words.

A model learns to repeat what it read; a key learnt is a key published. Known forms come first because they are
certain. The rest is a judgement: a value counts when it has letters and digits, stands in no list of fillers and has
at least 3.5 bits of entropy a character (hexadecimal: 3.0), which words, paths and "your-api-key-here" do not reach.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from phial.data.personal import Span

# name, what must occur for the pattern to be tried at all (plain search is fast), pattern
_FORMS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (name, tuple(anchors.split()), re.compile(pattern))
    for name, anchors, pattern in (
        ("aws key", "AKIA ASIA", r"(?<![A-Za-z0-9])A[KS]IA[A-Z2-7]{16}(?![A-Za-z0-9])"),
        ("github token", "ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),
        ("github token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{22,255}\b"),
        ("gitlab token", "glpat-", r"\bglpat-[A-Za-z0-9_-]{20,64}"),
        ("slack token", "xox", r"\bxox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,250}"),
        ("slack token", "xapp-", r"\bxapp-\d-[A-Za-z0-9-]{10,250}"),
        ("slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/[A-Za-z0-9/+]{20,80}"),
        ("google key", "AIza", r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
        ("stripe key", "_live_ _test_", r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{16,247}\b"),
        ("model service key", "sk-", r"\bsk-(?=[A-Za-z_-]{0,64}\d)(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_-]{32,250}"),
        ("hugging face token", "hf_", r"\bhf_[A-Za-z0-9]{34}\b"),
        ("npm token", "npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
        ("pypi token", "pypi-AgE", r"\bpypi-AgE[A-Za-z0-9_-]{50,250}"),
        ("sendgrid key", "SG.", r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
        ("json web token", "eyJ", r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{16,1000}"),
        (
            "private key",
            "PRIVATE",  # an unfinished block goes on as long as its lines look like one
            r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[\s\S]{1,8000}?-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"|(?:\s{1,4}[A-Za-z0-9+/=]{16,76}(?![A-Za-z0-9+/=])){0,400})",
        ),
    )
)
_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,64}:([^\s/:@\"'<>]{3,128})@[A-Za-z0-9\[]")
_NAMES = ("key", "secret", "token", "passw", "pwd", "credential", "auth")
_ASSIGNED = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|pwd|credentials?|auth)[A-Za-z0-9_]{0,20}[\"']?\]?"
    r"[ \t]{0,4}(?::=|=>|[:=])[ \t]{0,4}(?:Bearer[ \t]|[\"'`])?([A-Za-z0-9+/_=.~-]{16,512})",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"your|example|placeholder|changeme|xxxx|0000|1234567|abcdef|insert|replace|dummy|sample|redacted|[.]{2}|"
    r"^(?:os|self|config|process|env|settings|request|this|app|get)[._]|(?:[A-Za-z]{3,}[._-]){3}|^(?:[a-z]+[._/-])*[a-z]+\d?$",
    re.IGNORECASE,
)


def entropy(text: str) -> float:
    """Bits a character of the text's own letter frequencies (Shannon)."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) if text else 0.0


def looks_random(value: str) -> bool:
    """Whether an assigned value reads like a key: letters and digits, no filler, high entropy for its alphabet."""
    if not (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)) or _FILLER.search(value):
        return False
    hexadecimal = re.fullmatch(r"[0-9a-f-]+|[0-9A-F-]+", value) is not None
    return entropy(value) >= (3.0 if hexadecimal else 3.5)


def find_secrets(text: str) -> list[Span]:
    """The spans of secrets, which may overlap, the certain kinds first. A URL's password only, not the URL."""
    return [*_known(text), *_passwords(text), *_assigned(text)]


def _known(text: str) -> Iterator[Span]:
    for name, anchors, pattern in _FORMS:
        if any(anchor in text for anchor in anchors):
            yield from (Span(match.start(), match.end(), name) for match in pattern.finditer(text))


def _passwords(text: str) -> Iterator[Span]:
    if "://" in text and "@" in text:
        for match in _PASSWORD.finditer(text):
            if not re.match(r"[<${\[*]|(?:password|passwd|pass|pwd|secret|token|xxx+)$", match[1], re.IGNORECASE):
                yield Span(match.start(1), match.end(1), "password")


def _assigned(text: str) -> Iterator[Span]:
    if "=" not in text and ":" not in text:
        return
    lower = text.lower()
    if any(name in lower for name in _NAMES):
        for match in _ASSIGNED.finditer(text):
            if looks_random(match[1]):
                yield Span(match.start(1), match.end(1), "assigned value")
