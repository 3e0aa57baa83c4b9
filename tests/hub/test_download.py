"""Pulls from the hub: cut, damaged, mislabelled and full-disk downloads end verified or not at all."""

from __future__ import annotations

import errno
import io
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from phial.errors import PhialError
from phial.hub import Store, download

Usage = namedtuple("Usage", "total used free")


def leftovers(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def stored_names(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / "models").rglob("*") if p.is_file())


def test_a_pull_stores_the_file_and_a_record_and_nothing_else(hub: Any) -> None:
    path = Store().pull(hub.spec)
    assert path.read_bytes() == hub.content
    assert leftovers(path) == ["tiny.Q4_0.gguf", "tiny.Q4_0.gguf.json"]
    [model] = Store().list_models()
    assert (model.name, model.path, model.size, model.sha256) == (hub.spec, path, len(hub.content), hub.sha256)
    assert model.origin == f"hf:acme/Tiny-GGUF/tiny.Q4_0.gguf@{'c' * 40}"


def test_a_cut_is_resumed_within_the_pull_where_it_stopped(hub: Any) -> None:
    hub.blob.cuts = [100_000, 50_000]
    path = Store().pull(hub.spec)
    assert path.read_bytes() == hub.content
    end = len(hub.content) - 1
    assert [r.get("range") for r in hub.cdn.gets()] == [None, f"bytes=100000-{end}", f"bytes=150000-{end}"]


def test_after_too_many_cuts_the_part_is_kept_and_the_next_pull_goes_on_from_it(hub: Any) -> None:
    hub.blob.cuts = [70_000] + [0] * download.TRIES
    with pytest.raises(PhialError) as error:
        Store().pull(hub.spec)
    assert "70000 of" in error.value.message and "70.0 kB are kept" in error.value.hint
    assert Store().list_models() == [] and Store().stored_path(hub.spec) is None
    hub.blob.cuts = []
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert hub.cdn.gets()[-1]["range"].startswith("bytes=70000-")


def test_an_interrupt_keeps_the_part_for_the_next_pull(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:40_000])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "open_part", lambda part: Interrupted(part, "ab"))
        with pytest.raises(KeyboardInterrupt):
            Store().pull(hub.spec)
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert hub.cdn.gets()[-1]["range"].startswith("bytes=40000-")


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: Any) -> None:
    hub.blob.cuts, hub.blob.ranges = [100_000], False
    assert Store().pull(hub.spec).read_bytes() == hub.content


@pytest.mark.parametrize(
    "told", ["bytes 0-9/300404", "bytes 99999-300403/300404", "bytes 100000-300403/7", "lines 1-2/3", ""]
)
def test_a_server_that_sends_another_range_is_refused(hub: Any, told: str) -> None:
    hub.blob.cuts = [100_000] + [0] * download.TRIES
    with pytest.raises(PhialError):
        Store().pull(hub.spec)
    hub.blob.cuts, hub.blob.ranges, hub.blob.status = [], False, 206
    hub.blob.headers["Content-Range"] = told
    with pytest.raises(PhialError, match="sent the range|has 7 bytes, expected 300404"):
        Store().pull(hub.spec)
    assert Store().stored_path(hub.spec) is None


def test_a_flipped_byte_is_found_and_nothing_is_kept(hub: Any) -> None:
    flipped = bytearray(hub.content)
    flipped[123_456] ^= 1
    hub.blob.body = bytes(flipped)
    with pytest.raises(PhialError) as error:
        Store().pull(hub.spec)
    assert hub.sha256 in error.value.message and "sha256" in error.value.message
    assert stored_names(Store()) == []
    hub.blob.body = hub.content
    assert Store().pull(hub.spec).read_bytes() == hub.content


def test_a_byte_flipped_on_disk_between_two_pulls_is_found(hub: Any) -> None:
    hub.blob.cuts = [70_000] + [0] * download.TRIES
    with pytest.raises(PhialError):
        Store().pull(hub.spec)
    [part] = (Store().root / "models").rglob("*.part")
    part.write_bytes(b"X" + part.read_bytes()[1:])
    hub.blob.cuts = []
    with pytest.raises(PhialError, match="sha256"):
        Store().pull(hub.spec)
    assert stored_names(Store()) == []


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_file_of_another_length_is_refused_with_both_numbers(hub: Any, change: int) -> None:
    hub.blob.body = (hub.content + b"x" * 1000)[: len(hub.content) + change]
    with pytest.raises(PhialError) as error:
        Store().pull(hub.spec)
    assert str(len(hub.content)) in error.value.message and str(len(hub.content) + change) in error.value.message
    assert stored_names(Store()) == []


def test_a_body_longer_than_promised_without_a_length_is_stopped(hub: Any) -> None:
    hub.blob.body, hub.blob.length = hub.content + b"more", ""
    with pytest.raises(PhialError, match=f"more than the expected {len(hub.content)} bytes"):
        Store().pull(hub.spec)
    assert stored_names(Store()) == []


def test_a_content_length_that_is_no_number_is_refused(hub: Any) -> None:
    hub.blob.length = "-5"
    with pytest.raises(PhialError):
        Store().pull(hub.spec)


def test_a_disk_too_small_is_refused_before_a_byte_is_fetched(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(PhialError, match="not enough disk space") as error:
        Store().pull(hub.spec)
    assert "300.4 kB needed, 5.0 kB free" in error.value.message
    assert hub.cdn.gets() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_ends_with_the_numbers_and_the_part_goes_on_later(
    hub: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            room = 80_000 - self.tell()
            if room <= 0:
                raise OSError(code, "no room")
            return super().write(bytes(data)[:room]) or 0

    with monkeypatch.context() as patch:
        patch.setattr(download, "open_part", lambda part: Full(part, "ab"))
        with pytest.raises(PhialError) as error:
            Store().pull(hub.spec)
    assert "is full: 80.0 kB of 300.4 kB written" in error.value.message
    assert Store().stored_path(hub.spec) is None
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert hub.cdn.gets()[-1]["range"].startswith("bytes=80000-")


def test_the_hubs_digest_must_be_a_sha256(hub: Any) -> None:
    for etag in ("../../../etc/passwd", '"' + "g" * 64 + '"', "W/../" + "a" * 64):
        hub.front.answers[hub.path].headers["X-Linked-Etag"] = etag
        with pytest.raises(PhialError, match="publishes no size and sha256"):
            Store().pull(hub.spec)
    assert stored_names(Store()) == [] and hub.cdn.gets() == []


def test_a_hub_that_serves_another_file_than_the_catalogue_knows_is_refused_before_the_download(
    hub: Any, tiny: Any
) -> None:
    hub.front.answers[hub.path].headers["X-Linked-Etag"] = "e" * 64
    with pytest.raises(PhialError) as error:
        Store().pull("tiny", source="hf")
    assert "e" * 64 in error.value.message and hub.sha256 in error.value.message
    assert hub.cdn.gets() == []


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "check the name"), (503, "try again later")]
)
def test_a_refusal_says_what_to_do(hub: Any, status: int, hint: str) -> None:
    hub.front.answers[hub.path].status = status
    hub.front.answers[hub.path].headers.clear()
    with pytest.raises(PhialError) as error:
        Store().pull(hub.spec)
    assert f"status {status}" in error.value.message and hint in error.value.hint


def test_the_hub_out_of_order_for_a_moment_is_asked_again(hub: Any) -> None:
    working, broken = hub.front.answers[hub.path], type(hub.blob)(status=503)

    class Recovering(dict[str, Any]):
        def get(self, path: str, default: Any = None) -> Any:
            return broken if len(hub.front.requests) == 1 else super().get(path, default)

    hub.front.answers = Recovering({hub.path: working})
    assert Store().pull(hub.spec).read_bytes() == hub.content


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PhialError, match="cannot reach http://127.0.0.1:9/acme/Tiny-GGUF") as error:
        Store().pull("hf:acme/Tiny-GGUF/tiny.gguf")
    assert "network" in error.value.hint
