"""Files on the Hugging Face hub: where they are, how large, and the sha256 that the hub itself publishes.

Addresses and the token follow huggingface-hub (HF_ENDPOINT, HF_TOKEN, the file its login writes, HF_HUB_OFFLINE).
The hub answers HEAD on a large file with X-Linked-Size and X-Linked-Etag, the sha256, before it redirects to a CDN.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from phial.errors import PhialError
from phial.hub.catalogue import HubFile
from phial.hub.request import Reply, request

DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Published:
    """What the hub says about a file: its address, size in bytes, sha256 and commit (None: it does not say)."""

    url: str
    size: int | None
    sha256: str | None
    commit: str | None


def published(source: HubFile) -> Published:
    """Asks the hub about `source`.

    Raises:
        SourceError: unreachable, missing, refused.
        PhialError: HF_HUB_OFFLINE is set, or HF_ENDPOINT is no http(s) address.
    """
    url = address(source)
    with request(url, method="HEAD", secret=authorization(), until="X-Linked-Etag") as reply:
        etag = _first(reply, "X-Linked-Etag", "ETag")
        size = _first(reply, "X-Linked-Size") or str(reply.length() or "")
        digest = re.fullmatch(r'(?:W/)?"?([0-9a-fA-F]{64})"?', etag or "")
        return Published(
            url,
            int(size) if size.isascii() and size.isdigit() else None,
            digest and digest[1].lower(),
            _first(reply, "X-Repo-Commit"),
        )


def address(source: HubFile) -> str:
    """The /resolve/ address of `source` on HF_ENDPOINT."""
    from huggingface_hub import hf_hub_url

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise PhialError(
            f"HF_HUB_OFFLINE is set: {source} is not fetched", "unset it, or give the path of a local file"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    if not re.match(r"https?://[^/]", endpoint):
        raise PhialError(
            f"HF_ENDPOINT is {endpoint!r}, no http(s) address", f"for example HF_ENDPOINT={DEFAULT_ENDPOINT}"
        )
    return hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=endpoint)


def authorization() -> str | None:
    """The Authorization value for the hub, or None without a token."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise PhialError("the Hugging Face token holds spaces or non-ASCII characters", "check HF_TOKEN")
    return f"Bearer {token}"


def _first(reply: Reply, *names: str) -> str | None:
    """The first of the headers `names` that any hop has, earlier hops first: the hub speaks before its CDN does."""
    for name in names:
        for headers in (*reply.hops, reply.headers):
            if headers.get(name):
                return str(headers[name]).strip()
    return None
