"""Where a text names or reaches a person: e-mail addresses, phone numbers, network addresses, cards, bank accounts.

Every kind has a pattern that finds candidates and a check that rejects look-alikes, because masking a version number
or an ISBN spoils a text: cards need an issuer's prefix, its length and the Luhn sum (ISO/IEC 7812), account numbers
their country's length and the remainder modulo 97 (ISO 13616), network addresses must be ones a person could have
(neither private, nor reserved for documentation), phone numbers a country code, North American form or a word such as
"phone" before them. Names, streets and birthdays are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Kind = Literal["email", "iban", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = ("email", "iban", "card", "ip", "phone")  # in order of precedence where two overlap


class Span(NamedTuple):
    """text[start:end] is of this kind."""

    start: int
    end: int
    kind: str


_EMAIL = re.compile(
    r"(?<![\w.+%/@\u00c0-\u024f-])[\w\u00c0-\u024f](?:[\w.+%'\u00c0-\u024f-]{0,62}[\w+%\u00c0-\u024f-])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"([A-Za-z]{2,24})(?![\w@(]|-\w|:[\w~/]|\.\w)",
    re.ASCII,
)
# Longer endings of names in common use: `a @ b.mean` in a program reads like an address but for its ending.
_ENDINGS = frozenset(
    "com org net edu gov mil int info biz name pro jobs mobi travel museum coop aero app dev xyz online site tech "
    "store blog cloud email shop club live news world today company agency digital media network systems solutions "
    "services support group team academy school university college health care law legal finance bank london berlin "
    "example test invalid".split()
)

_DIGITS = re.compile(r"\d(?:[ \u00a0().\-/\u2010\u2011]{0,3}\d){6}")  # cheap: without one there is no phone or card

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ \u00a0]?[A-Z0-9]{3})")
_IBAN_COUNTRIES = (
    "15:NO 16:BE 18:DK,FI,FO,GL,NL 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,XK 21:CH,HR,LI,LV 22:BG,BH,CR,DE,GB,GE,IE,ME,RS "
    "23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST 26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM "
    "28:AL,AZ,BY,CY,DO,GT,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE 31:MT,SC 32:LC 33:RU"
)
_IBAN_LENGTH = {
    country: int(length)
    for length, countries in (pair.split(":") for pair in _IBAN_COUNTRIES.split())
    for country in countries.split(",")
}

_CARD = re.compile(
    r"(?<![\w.,/=-])"
    r"(?:\d{13,19}|\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{2,4}(?:\1\d{3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5})"
    r"(?!\w|[-/]\w|[.,]\d)"
)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<!\d[,-])(?:{_BYTE}\.){{3}}{_BYTE}(?![\w-]|\.[\w*])")
# What is handed out: 2000::/3.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}[0-9A-Fa-f:](?![\w:])")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|versions?|release|build|firmware|driver|update|upgrade|kernel|sections?|chapter|figure|fig|table|"
    r"clause|rule|article|step|lemma|theorem|oid)[.:=]?\s*|§\s*|==|(?<!/)/|[-_~])$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(
    r"\b(?:ip|ipv4|addr|address(?:es)?|hosts?|servers?|clients?|peer|remote|router|visitor|dns|ping|gateway|login)\b",
    re.IGNORECASE,
)

# A country code (ITU-T E.164) and groups; the North American form; any groups after a word that announces a number.
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:\+[1-9]\d{0,2}(?:[ \u00a0.\-/\u2010\u2011]?(?:\(\d{1,4}\)|\d{1,12})){1,6}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\)[ \u00a0]?|[2-9]\d\d[-.\u2010\u2011])[2-9]\d\d[-.\u2010\u2011 ]\d{4})"
    r"(?!\w|[-/.,]\d)"
)
_CALLED = re.compile(
    r"\b(?:tel(?:ephone|efon)?|phone|ph|fax|mobile|mob|cell|call|whatsapp|sms|hotline|helpline|handy)\b"
    r"(?:[ .]*(?:number|no|nr|us|me|at|on|is|now)\b){0,3}[.: )]{0,4}"
    r"(\+?\(?\d(?:[ \u00a0().\-/\u2010\u2011]{0,2}\d){6,14})(?!\w|[-/.,]\d)",
    re.IGNORECASE,
)


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_is_valid(number: str) -> bool:
    """Whether an account number without spaces has its country's length and the remainder 1 modulo 97 (ISO 13616)."""
    if len(number) != _IBAN_LENGTH.get(number[:2]):
        return False
    return int("".join(str(int(letter, 36)) for letter in number[4:] + number[:4])) % 97 == 1


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        ending = match[1].lower()
        if (len(ending) == 2 or ending in _ENDINGS) and ".." not in match[0]:
            yield Span(match.start(), match.end(), "email")


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTH.get(match[0][:2])
        number, at = match[0], match.end()
        while length and len(number) < length and at < len(text):
            if text[at] in " \u00a0" and len(number) % 4 == 0 and at + 1 < len(text):
                at += 1  # groups of four, as printed
            if not (text[at].isascii() and (text[at].isdigit() or text[at].isupper())):
                break
            number, at = number + text[at], at + 1
        if iban_is_valid(number) and not text[at : at + 1].isalnum():
            yield Span(match.start(), at, "iban")


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if digits.isascii() and _ISSUERS.fullmatch(digits) and luhn(digits):
            yield Span(match.start(), match.end(), "card")


def _ips(text: str) -> Iterator[Span]:
    if "." in text:
        for match in _IPV4.finditer(text):
            before = text[max(0, match.start() - 24) : match.start()]
            # Four small numbers are sections and versions far more often than machines.
            parts = [int(part) for part in match[0].split(".")]
            likely = max(parts) >= 100 or min(parts) >= 10 or parts[0] >= 32 or _ADDRESS_BEFORE.search(before)
            if likely and not _VERSION_BEFORE.search(before) and ipaddress.IPv4Address(match[0]).is_global:
                yield Span(match.start(), match.end(), "ip")
    if ":" in text:
        for match in _IPV6.finditer(text):
            try:
                if ipaddress.IPv6Address(match[0]).is_global:
                    yield Span(match.start(), match.end(), "ip")
            except ValueError:
                continue


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        decimal = re.fullmatch(r"\+\d+\.\d+", match[0])
        if not decimal and 8 <= sum(letter.isdigit() for letter in match[0]) <= 15:
            yield Span(match.start(), match.end(), "phone")
    for match in _CALLED.finditer(text):
        if sum(letter.isdigit() for letter in match[1]) <= 15:
            yield Span(match.start(1), match.end(1), "phone")


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _ips,
    "phone": _phones,
}


def find_personal(text: str, kinds: tuple[Kind, ...] = KINDS) -> list[Span]:
    """The spans of the given kinds, which may overlap, in order of precedence."""
    digits = _DIGITS.search(text) is not None
    wanted = (kind for kind in KINDS if kind in kinds and (digits or kind not in ("card", "phone")))
    return [span for kind in wanted for span in _FINDERS[kind](text)]
