"""Llama.from_pretrained against a stand-in for the hub on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from phial.engine.llama import Llama
from phial.engine.pretrained import fetch
from phial.errors import ArgumentError, PhialError

FILES = {"tiny-q4.gguf": b"GGUF-four", "tiny-q8.gguf": b"GGUF-eight", "sub/extra.json": b"{}", "README.md": b"hi"}


class Hub(BaseHTTPRequestHandler):
    """acme/tiny with FILES."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix("/acme/tiny/resolve/main/")
        if path == "/api/models/acme/tiny/tree/main":
            listing = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
            self.reply(json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif name in FILES:
            self.reply(FILES[name], {"ETag": f'"{name.rpartition("/")[2]}"', "X-Repo-Commit": "c" * 40})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def reply(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HF_TOKEN", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield server.server_address[0]
    server.shutdown()
    server.server_close()


def test_the_one_file_that_matches_is_fetched(tmp_path: Path) -> None:
    path = fetch("acme/tiny", "*q4.gguf", cache_dir=tmp_path)
    assert (path.name, path.read_bytes()) == ("tiny-q4.gguf", b"GGUF-four")


def test_additional_files_come_too_and_local_dir_holds_them(tmp_path: Path) -> None:
    path = fetch("acme/tiny", "tiny-q8.gguf", ["*.json"], local_dir=tmp_path / "here", cache_dir=tmp_path)
    assert path == tmp_path / "here" / "tiny-q8.gguf"
    assert (tmp_path / "here" / "sub" / "extra.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("pattern", "said"), [("*.gguf", "2 files"), ("*.bin", "no file"), ("", "filename"), (None, "filename")]
)
def test_not_exactly_one_match_is_a_value_error_that_lists_files(
    tmp_path: Path, pattern: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        fetch("acme/tiny", pattern, cache_dir=tmp_path)
    assert isinstance(caught.value, ArgumentError)
    assert not pattern or "tiny-q4.gguf" in caught.value.hint


def test_an_additional_file_must_match_once_too(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"2 files .* match '\*\.gguf'"):
        fetch("acme/tiny", "tiny-q4.gguf", ["*.gguf"], cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["acme/missing", "a/b/c", "../evil"])
def test_a_repository_that_cannot_be_listed_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(PhialError) as caught:
        fetch(name, "*.gguf", cache_dir=tmp_path)
    assert name in caught.value.message


def test_links_are_refused_and_the_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="local_dir_use_symlinks"):
        Llama.from_pretrained("acme/tiny", "*q4.gguf", local_dir_use_symlinks=True)
    with pytest.raises(PhialError, match="GGUF|tiny-q4"):
        Llama.from_pretrained("acme/tiny", "*q4.gguf", cache_dir=tmp_path, verbose=False)
