"""One HTTP GET or HEAD with everything a download must hold to: redirects, credentials, proxies, certificates.

Redirects are followed by hand, a bounded number of times and to http(s) only, so that a token or an index password
goes to the host it is for and to no other. Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,
NO_PROXY). huggingface-hub's own download checks sizes but no digests and hides resumption, so only its token and
address rules are used (huggingface.py). Bodies are read by the callers.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import os
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import TypeVar

from phial.errors import PhialError

MAX_REDIRECTS = 8
TIMEOUT = 30.0  # seconds without a byte
T = TypeVar("T")

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")  # SSL_CERT_FILE is OpenSSL's own


class SourceError(PhialError):
    """A source could not deliver; another source of the same model may."""


class TransientError(SourceError):
    """A failure that a later attempt may not meet: a cut, a timeout, an overloaded server."""


@dataclass(frozen=True)
class Reply:
    """An answer after its redirects: status, headers (names in any case), final address and the open body."""

    status: int
    headers: Message
    url: str
    body: http.client.HTTPResponse
    hops: tuple[Message, ...]  # headers of the redirects before it, oldest first

    def length(self) -> int | None:
        """Content-Length, or None where the server does not say. Raises SourceError where it is no number."""
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise SourceError(f"{shown(self.url)} answered with Content-Length {text!r}", "try again later")
        return int(text)

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The body in pieces of at most `size` bytes. Raises TransientError on a broken connection."""
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(f"{shown(self.url)} sends a re-encoded body", "use another source")
        while True:
            try:
                piece = self.body.read(size)
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(
                    f"{shown(self.url)} broke off: {error or type(error).__name__}", "run it again to go on"
                ) from error
            if not piece:
                return
            yield piece

    def whole(self, limit: int) -> bytes:
        """The body, at most `limit` bytes of it. Raises SourceError where it is longer."""
        data = b""
        for piece in self.chunks():
            data += piece
            if len(data) > limit:
                raise SourceError(f"{shown(self.url)} sends more than {limit} bytes", "use another source")
        return data


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """Hands every answer back as it came: no redirect is followed and no status raises."""

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        return response

    https_response = http_response


@contextlib.contextmanager
def request(
    url: str, *, method: str = "GET", headers: Mapping[str, str] = {}, secret: str | None = None, until: str = ""
) -> Iterator[Reply]:
    """Opens `url`, following redirects; the body is closed on leaving.

    Args:
        headers: sent on every hop.
        secret: an Authorization value, sent only while scheme, host and port are those of `url`.
            Without it, a `user:password@` in `url` serves.
        until: a redirect that carries this header is itself the answer.

    Raises:
        TransientError: no connection, a timeout, status 408, 429 or 5xx.
        SourceError: any other status of 400 or more, too many redirects, one to another scheme or from https to http.
    """
    url, embedded = split_credentials(url)
    secret, start = secret or embedded, url
    hops: list[Message] = []
    opener = http_opener()
    for _ in range(MAX_REDIRECTS + 1):
        sent = {"Accept-Encoding": "identity", "User-Agent": "phial", **headers}
        if secret and origin(url) == origin(start):
            sent["Authorization"] = secret
        body = _open(opener, urllib.request.Request(url, headers=sent, method=method))
        with body:
            if body.status not in (301, 302, 303, 307, 308) or (until and body.headers.get(until)):
                yield Reply(body.status, body.headers, url, body, tuple(hops))
                return
            hops.append(body.headers)
            url = _next_hop(url, body.headers.get("Location"))
    raise SourceError(
        f"{shown(start)} redirects more than {MAX_REDIRECTS} times", "the server is misconfigured; use another source"
    )


def patiently(action: Callable[[], T], tries: int = 3, pause: float = 0.5) -> T:
    """`action()`, tried again after a TransientError, the last of which is raised."""
    for attempt in range(1, tries):
        try:
            return action()
        except TransientError:
            time.sleep(pause * attempt)
    return action()


def split_credentials(url: str) -> tuple[str, str | None]:
    """(`url` without `user:password@`, the Basic Authorization value it stood for or None)."""
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(
            f"{shown(url)!r} is no http(s) address", "only http:// and https:// addresses are downloaded from"
        )
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), f"Basic {token}"


def shown(url: str) -> str:
    """`url` as it may be printed: without credentials and without the query, which signs CDN addresses."""
    try:
        parts = _split(url)
    except SourceError:
        return "an unreadable address"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what a credential belongs to."""
    parts = _split(url)
    try:
        port = parts.port
    except ValueError as error:
        raise SourceError(f"{shown(url)!r} names no valid port", "check the address") from error
    return parts.scheme, (parts.hostname or "").lower(), port or (443 if parts.scheme == "https" else 80)


def join(base: str, reference: str) -> str:
    """The address that `reference` means on the page `base`, without its fragment."""
    _split(reference)
    return urllib.parse.urldefrag(urllib.parse.urljoin(base, reference))[0]


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(f"a server or a setting gives {url[:200]!r} for an address: {error}", "check it") from error


def _next_hop(url: str, location: str | None) -> str:
    if not location:
        raise SourceError(f"{shown(url)} redirects to nowhere", "the server is misconfigured; use another source")
    target, _ = split_credentials(join(url, location))  # credentials of a server's choosing are dropped
    if url.startswith("https:") and not target.startswith("https:"):
        raise SourceError(f"{shown(url)} redirects to unencrypted {shown(target)}", "use another source")
    return target.replace(" ", "%20")


def _open(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> http.client.HTTPResponse:
    """The response, of whatever status below 400."""
    address = shown(request.full_url)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT)
    except (http.client.InvalidURL, ValueError) as error:
        raise SourceError(
            f"{address} is no usable address: {error}", "check the address and the proxy settings"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            hint = "set SSL_CERT_FILE to your network's certificates"
            raise SourceError(f"{address} shows no trusted certificate: {reason.verify_message}", hint) from error
        hint = "check the network, the address and the proxy settings"
        raise TransientError(f"cannot reach {address}: {reason or type(reason).__name__}", hint) from error
    if response.status >= 400:
        response.close()
        raise _status_error(response.status, address)
    return response


def _status_error(status: int, address: str) -> SourceError:
    if status in (401, 403):
        return SourceError(
            f"{address} refuses access (status {status})", "a gated file needs HF_TOKEN set to a token that may read it"
        )
    if status in (404, 410):
        return SourceError(f"{address} does not exist (status {status})", "check the name, the file and the revision")
    if status == 416:
        return SourceError(f"{address} has no such byte range (status 416)", "the file there is shorter than expected")
    if status in (408, 425, 429) or status >= 500:
        return TransientError(f"{address} is out of order (status {status})", "try again later")
    return SourceError(f"{address} answered with status {status}", "check the address")


def http_opener() -> urllib.request.OpenerDirector:
    """What opens addresses through the environment's proxies and certificates; every status is an answer."""
    proxies = urllib.request.getproxies()
    bundles = tuple(path for name in CA_VARIABLES if (path := os.environ.get(name)))
    if "all" in proxies:
        proxies = {"http": proxies["all"], "https": proxies["all"], **proxies}
    return urllib.request.build_opener(
        _EveryStatus, urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=_certificates(bundles))
    )


@functools.cache  # reading the bundles takes tens of milliseconds, a pull makes several requests
def _certificates(named: tuple[str, ...]) -> ssl.SSLContext:
    """The system's certificates and the bundles other Python tools are told about; certifi's where there are none."""
    context = ssl.create_default_context()
    bundles = list(named)
    if not bundles and not context.cert_store_stats()["x509_ca"]:
        with contextlib.suppress(ImportError):
            import certifi

            bundles.append(certifi.where())
    for path in bundles:
        try:
            context.load_verify_locations(**({"capath": path} if os.path.isdir(path) else {"cafile": path}))
        except OSError as error:
            raise PhialError(
                f"cannot read the certificates in {path}: {error}", f"check {', '.join(CA_VARIABLES)}"
            ) from error
    return context
