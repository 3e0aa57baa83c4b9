"""Where requests and secrets go: redirects, tokens, index passwords, proxies, HF_ENDPOINT."""

from __future__ import annotations

from typing import Any

import pytest

from phial.errors import PhialError
from phial.hub import Store
from phial.hub.request import SourceError, request, shown, split_credentials

TOKEN = "hf_secrettoken"


def test_hf_endpoint_is_the_hub_that_is_asked_and_its_redirect_is_followed(hub: Any) -> None:
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert [(method, path) for method, path, _ in hub.front.requests] == [("HEAD", hub.path), ("GET", hub.path)]
    assert [(method, path) for method, path, _ in hub.cdn.requests] == [("GET", "/blob?signature=hidden")]


def test_hf_token_goes_to_the_hub_and_never_to_the_cdn(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Store().pull(hub.spec)
    assert [headers.get("authorization") for _, _, headers in hub.front.requests] == [f"Bearer {TOKEN}"] * 2
    assert TOKEN not in str(hub.cdn.requests)


def test_without_a_token_no_authorization_is_sent(hub: Any) -> None:
    Store().pull(hub.spec)
    assert all("authorization" not in headers for _, _, headers in hub.front.requests)


def test_the_token_survives_a_redirect_on_the_same_host(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.front.answers["/renamed"] = hub.front.answers[hub.path]
    hub.front.answers[hub.path] = type(hub.blob)(status=307, headers={"Location": "/renamed"})
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for headers in hub.front.gets())
    assert TOKEN not in str(hub.cdn.requests)


def test_a_token_that_could_break_out_of_its_header_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a b\u00e9")
    with pytest.raises(PhialError, match="token holds"):
        Store().pull(hub.spec)
    assert hub.front.requests == []


def test_endless_redirects_are_given_up(hub: Any) -> None:
    hub.front.answers[hub.path].headers["Location"] = hub.path
    with pytest.raises(PhialError, match="redirects more than 8 times"):
        Store().pull(hub.spec)
    assert len(hub.front.gets()) == 9


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://h/x", "http://[bad/x"]
)
def test_a_redirect_to_anything_but_http_is_refused(hub: Any, target: str) -> None:
    hub.front.answers[hub.path].headers["Location"] = target
    with pytest.raises(PhialError, match="no http|for an address"):
        Store().pull(hub.spec)


def test_a_redirect_cannot_make_us_send_credentials_of_its_choosing(hub: Any) -> None:
    hub.front.answers[hub.path].headers["Location"] = hub.cdn.url.replace("//", "//user:pass@") + "/blob"
    Store().pull(hub.spec)
    assert all("authorization" not in headers for headers in hub.cdn.gets())


def test_a_redirect_from_https_to_http_is_refused() -> None:
    from phial.hub.request import _next_hop

    with pytest.raises(SourceError, match="unencrypted"):
        _next_hop("https://hub.example/a", "http://cdn.example/b")
    assert _next_hop("https://hub.example/a", "/b") == "https://hub.example/b"


def test_http_proxy_is_used(hub: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = stand_in()
    proxy.answers = {f"http://hub.invalid{hub.path}": hub.front.answers[hub.path], f"{hub.cdn.url}/blob": hub.blob}
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert [path.partition("?")[0] for _, path, _ in proxy.requests] == [
        *[f"http://hub.invalid{hub.path}"] * 2,
        f"{hub.cdn.url}/blob",
    ]
    assert hub.front.requests == hub.cdn.requests == []


def test_all_proxy_is_used_and_no_proxy_exempts(hub: Any, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = stand_in()
    proxy.answers = {f"http://hub.invalid{hub.path}": hub.front.answers[hub.path]}
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("all_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Store().pull(hub.spec).read_bytes() == hub.content
    assert len(proxy.requests) == 2 and len(hub.cdn.gets()) == 1


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "file:///tmp"])
def test_an_endpoint_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(PhialError, match="HF_ENDPOINT"):
        Store().pull("hf:acme/Tiny-GGUF/tiny.gguf")


def test_offline_mode_fetches_nothing(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PhialError, match="HF_HUB_OFFLINE"):
        Store().pull(hub.spec)
    assert hub.front.requests == []


def test_credentials_and_signatures_are_never_shown() -> None:
    assert shown("https://user:pass@host:8/a/b?signature=x#y") == "https://host:8/a/b"
    assert split_credentials("https://us%40er:p@host/a") == ("https://host/a", "Basic dXNAZXI6cA==")


def test_a_re_encoded_body_is_refused(stand_in: Any) -> None:
    server = stand_in()
    server.answers["/x"] = type_of_answer(server)(b"abc", headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceError, match="re-encoded"), request(f"{server.url}/x") as reply:
        reply.whole(100)


def type_of_answer(server: Any) -> Any:
    """The stand-in's Answer class, which lives in conftest.py."""
    return server.answer.__globals__["Answer"]
