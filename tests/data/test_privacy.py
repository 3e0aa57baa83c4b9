"""Masking: planted private data with exact outcomes, look-alikes that must stay, and text around it never touched."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datatrove", reason="phial[data] is not installed")

from datatrove.data import Document

from phial.data.personal import KINDS, Span, find_personal, iban_is_valid, luhn
from phial.data.privacy import MaskPrivate, apart, mask
from phial.data.secret_patterns import entropy, find_secrets, looks_random

AWS = "AKIA" + "IOSFODNN7EXAMPLE"  # in two pieces, so that scanners of this repository stay quiet
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
SLACK = "xoxb-" + "17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"
RANDOM = "f3Gk9Q2xLm8ZpT4vWc7Yb1Nd"
KEY_BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9Oi\n-----END RSA PRIVATE KEY-----"


def run(text: str, **settings: object) -> tuple[list[Document], Document]:
    """What the step passes on for one text, and the document itself, which it changes in place."""
    doc = Document(text, "0", metadata={})
    return list(MaskPrivate(**settings).run(iter([doc]), 0, 1)), doc  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+news@mail.example.com.", "Write to [EMAIL]."),
        ("<a@b.de>, O'Neil <o_neil@uni-bonn.de>", "<[EMAIL]>, O'Neil <[EMAIL]>"),
        ("mailto:Bob@Company.Example today", "mailto:[EMAIL] today"),
        ("josé.núñez@correo.es,请联系abc@x.com。", "[EMAIL],请联系[EMAIL]。"),
        ("Call +49 (0)30 1234 5678 now", "Call [PHONE] now"),
        ("Call (415) 555-2671 or 415-555-2671.", "Call [PHONE] or [PHONE]."),
        ("Tel.: 030/1234567, Fax 030 1234568", "Tel.: [PHONE], Fax [PHONE]"),
        ("my phone number is 07700 900123!", "my phone number is [PHONE]!"),
        ("+14155552671", "[PHONE]"),
        ("from 85.214.132.117 port 22", "from [IP] port 22"),
        ("the server 8.8.4.4 answers", "the server [IP] answers"),
        ("52.18.3.7 asked; remote 3.18.3.7 too", "[IP] asked; remote [IP] too"),
        ("http://93.184.216.34:8080/x", "http://[IP]:8080/x"),
        ("login ip=85.214.132.117.", "login ip=[IP]."),
        ("2a02:8109:9ac0:1::5f3 joined", "[IP] joined"),
        ("card 4111 1111 1111 1111 exp 09/27", "card [CARD] exp 09/27"),
        ("5500-0000-0000-0004 and 378282246310005", "[CARD] and [CARD]"),
        ("Amex 3782 822463 10005.", "Amex [CARD]."),
        ("IBAN DE89 3704 0044 0532 0130 00, BIC", "IBAN [IBAN], BIC"),
        ("GB82WEST12345698765432 FR1420041010050500013M02606", "[IBAN] [IBAN]"),
        ("NL91 ABNA 0417 1643 00 THANKS", "[IBAN] THANKS"),
    ],
)
def test_planted_personal_data_is_masked_and_nothing_else(text: str, masked: str) -> None:
    kept, doc = run(text)
    assert kept == [doc]
    assert doc.text == masked


@pytest.mark.parametrize(
    "text",
    [
        "Chrome 91.0.4472.124, OpenSSL 3.0.2.1, version 10.15.7.1, v1.2.3.4, tool-85.10.20.30",
        "name==85.10.20.30 and agent/85.10.20.30",
        "Sections 3.2.1.4 and 1.2.3.4 of the standard; OID 1.3.6.1.4.1.311",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISBN 9780306406157, ISSN 2049-3630",
        "On 2024-01-15, 15.01.2024 and 01/15/2024 at 12:30:45, from 1914-1918 and 2019/2020",
        "Order 4111 1111 1111 1112 and 1234567890123456 and 4111111111111112",  # no Luhn sum
        "Serial 0000000000000000 and 1111 2222 3333 4444",  # nobody issues these
        "DE89 3704 0044 0532 0130 01 and GB82WEST12345698765431 and DE12 34",  # remainder or length wrong
        "127.0.0.1, 192.168.1.20, 10.0.0.254, 172.16.5.4, 203.0.113.77, 0.0.0.0, 255.255.255.0, 300.1.2.3",
        "::1, fe80::1, 2001:db8::1, a::b, std::vector, 12:30:45:10, dead::beef",
        "git@github.com:owner/repository.git ssh://git@host.org/path @decorator user@localhost",
        "y = a@b.T + x@weights.mean(0) - q@k.to(device) + x@loss.grad",
        "pi = 3.14159265358979, 6.62607015e-34, 0.4111111111111111, 1,234,567,890, 299792458, 1234567890",
        "range(1000, 2000, 30); Decimal('+35236450.6'); id=4111111111111111; #1234567",
        "10 000 000 people, 100-200-300 points, 24-7-365, 555-1234, 1-2-3-4-5-6-7-8",
        "uuid 123e4567-e89b-12d3-a456-426614174000 and sha 4111111111111111abcdef",
        "https://shop.org/item/4111111111111111/415-555-2671x",
    ],
)
def test_look_alikes_stay_as_they_are(text: str) -> None:
    _, doc = run(text)
    assert doc.text == text
    assert doc.metadata == {}


@pytest.mark.parametrize(
    ("text", "masked", "kind"),
    [
        (f"id {AWS}.", "id [SECRET].", "aws key"),
        (f"git clone with {GITHUB}", "git clone with [SECRET]", "github token"),
        (f'slack = "{SLACK}"', 'slack = "[SECRET]"', "slack token"),
        (f"see\n{KEY_BLOCK}\nbelow", "see\n[SECRET]\nbelow", "private key"),
        (KEY_BLOCK[:70] + "\nThe rest is lost.", "[SECRET]\nThe rest is lost.", "private key"),
        (f"API_KEY = '{RANDOM}'", "API_KEY = '[SECRET]'", "assigned value"),
        (f'{{"client_secret": "{RANDOM}"}}', '{"client_secret": "[SECRET]"}', "assigned value"),
        (f"Authorization: Bearer {RANDOM}", "Authorization: Bearer [SECRET]", "assigned value"),
        ("postgres://admin:s3cr3tpw@db.host.org/x", "postgres://admin:[SECRET]@db.host.org/x", "password"),
    ],
)
def test_planted_secrets_are_masked_or_drop_the_document(text: str, masked: str, kind: str) -> None:
    kept, doc = run(text)
    assert (kept, doc.text, doc.metadata) == ([doc], masked, {"secrets": {kind: 1}})
    dropped = Document(text, "0", metadata={})
    assert MaskPrivate(secrets="drop").filter(dropped) == (False, f"secrets: {kind}")
    assert dropped.text == masked  # what lies in the folder of dropped documents spreads no key
    assert run(text, secrets="keep", kinds=())[1].text == text


@pytest.mark.parametrize(
    "text",
    [
        "API_KEY = 'your-api-key-here'; token: str = os.environ['GITHUB_TOKEN_1']",
        "The key: understanding. The secret = practice_makes_perfect. token = tokenizer.encode_batch_2(text)",
        "password = 'correcthorsebatterystaple'; key=aaaaaaaaaaaaaaaaaaaa1; auth: xxxxxxxxxxxxxxxxxxx1",
        "-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9Oi\n-----END CERTIFICATE-----",
        "sk-learn is scikit-learn; ghp_short; AKIA; postgres://user:password@localhost/db; ftp://host:21/a@b",
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 has the fix",  # a hash that nothing calls a key
    ],
)
def test_fillers_code_and_certificates_are_no_secrets(text: str) -> None:
    assert run(text)[1].text == text


def test_counts_by_kind_stand_in_the_metadata_and_kinds_can_be_left_out() -> None:
    text = f"a@b.com, c@d.org, +44 20 7946 0958, {AWS}"
    assert run(text)[1].metadata == {"personal": {"email": 2, "phone": 1}, "secrets": {"aws key": 1}}
    assert run(text, kinds=("phone",))[1].text == "a@b.com, c@d.org, [PHONE], [SECRET]"


def test_of_two_spans_that_overlap_the_first_given_stays() -> None:
    spans = [Span(5, 9, "a"), Span(0, 6, "b"), Span(9, 12, "c"), Span(6, 8, "d"), Span(0, 5, "e"), Span(4, 20, "f")]
    assert apart(spans) == [Span(0, 5, "e"), Span(5, 9, "a"), Span(9, 12, "c")]


def test_checksums() -> None:
    assert luhn("79927398713") and not any(luhn(f"7992739871{digit}") for digit in "012456789")
    assert iban_is_valid("CH9300762011623852957") and not iban_is_valid("CH9300762011623852958")
    assert not iban_is_valid("ZZ9300762011623852957") and not iban_is_valid("CH93007620116238529")


def test_entropy_tells_keys_from_words() -> None:
    assert entropy("aaaa") == 0 and entropy("abcd") == 2 and entropy("") == 0
    assert looks_random(RANDOM) and not looks_random("a1a1a1a1a1a1a1a1a1a1") and not looks_random("12345678901234567")


PLANTED = {
    "someone@mail.org": "[EMAIL]",
    "DE89370400440532013000": "[IBAN]",
    "4111 1111 1111 1111": "[CARD]",
    "85.214.132.117": "[IP]",
    "+49 30 12345678": "[PHONE]",
    GITHUB: "[SECRET]",
}
plain = st.text(alphabet=string.ascii_letters + " \n'äß–“漢", max_size=40)


@given(st.lists(st.tuples(plain, st.sampled_from(sorted(PLANTED))), max_size=6), plain)
def test_masking_never_touches_the_text_between(parts: list[tuple[str, str]], end: str) -> None:
    text = "".join(f"{before} ; {secret} ; " for before, secret in parts) + end
    expected = "".join(f"{before} ; {PLANTED[secret]} ; " for before, secret in parts) + end
    assert run(text)[1].text == expected


@given(st.text(alphabet="0123456789 .:-+()/@abcDEkey=_\n", max_size=200))
def test_any_text_keeps_what_lies_outside_the_spans(text: str) -> None:
    spans = apart([*find_secrets(text), *find_personal(text, KINDS)])
    masked, at = mask(text, spans), 0
    outside = [
        text[a:b] for a, b in zip([0, *(s.end for s in spans)], [*(s.start for s in spans), len(text)], strict=True)
    ]
    for piece in outside:  # every piece comes back, in order, with only placeholders between
        assert masked[at:].startswith(piece)
        at += len(piece)
        if masked[at:].startswith("["):
            at = masked.index("]", at) + 1
    assert at == len(masked)
