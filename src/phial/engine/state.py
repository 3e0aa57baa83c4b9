"""A saved session as bytes: header, token ids, pages of the key-value cache, sha256. No pickle, nothing executed.

Layout, little-endian: 8 bytes magic; u32 header length; header as JSON (whose cache this is and how large); int32 ids;
the pages as the backend stores them; sha256 of everything before. A version change changes the magic.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phial.engine.adapters import Mix
from phial.engine.cache import PageStore, PageTable
from phial.errors import FormatError, PhialError

MAGIC = b"PHIALKV3"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Identity:
    """Whose keys these are; a session can be loaded only where all of it is equal."""

    model: str  # fingerprint of configuration and weights
    cache_type: str
    backend: str


@dataclass(frozen=True)
class Saved:
    """A parsed session: all its tokens, and the pages of the first n_cached of them; see PageTable."""

    tokens: list[int]
    n_cached: int
    long: bool
    exact: bool
    pages: list[bytes]


def dump(identity: Identity, tokens: Sequence[int], table: PageTable) -> bytes:
    """Return the saved form of a session."""
    store = table.pool.store
    header = {
        **vars(identity),
        "tokens": len(tokens),
        "cached": table.n_tokens,
        "long": table.long,
        "exact": table.exact,
        "adapters": _listed(table.adapters),
        "page_tokens": store.page_tokens,
        "page_bytes": store.page_bytes,
    }
    text = json.dumps(header, sort_keys=True).encode()
    parts = [MAGIC, struct.pack("<I", len(text)), text, np.asarray(tokens, "<i4").tobytes()]
    parts += [store.read_page(page) for page in table.pages]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def parse(data: bytes, identity: Identity, adapters: Mix, store: PageStore) -> Saved:
    """Read what dump wrote; FormatError where it is damaged, PhialError where it belongs elsewhere."""
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a saved session: it begins with {bytes(data[:8])!r}", f"expected {MAGIC!r}")
    if len(data) < len(MAGIC) + 4 + _DIGEST or hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise FormatError(f"the saved session is damaged: checksum of {len(data)} bytes differs", "save it again")
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    start = len(MAGIC) + 4
    try:
        header = json.loads(data[start : start + length])
        n_tokens, n_cached = int(header["tokens"]), int(header["cached"])
        long, exact = bool(header["long"]), bool(header["exact"])
        page_tokens, page_bytes = int(header["page_tokens"]), int(header["page_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the saved session's header is unreadable: {error!r}", "save it again") from error
    _check_owner(header, identity, adapters)
    if (page_tokens, page_bytes) != (store.page_tokens, store.page_bytes):
        raise PhialError(
            f"the saved session has pages of {page_tokens} tokens and {page_bytes} bytes",
            f"this build has {store.page_tokens} and {store.page_bytes}: save it again",
        )
    ids_at = start + length
    pages_at = ids_at + 4 * n_tokens
    n_pages = -(-n_cached // page_tokens)
    expected = pages_at + n_pages * page_bytes + _DIGEST
    if not 0 <= n_cached <= n_tokens or expected != len(data):
        raise FormatError(f"the saved session has {len(data)} bytes, its header asks for {expected}", "save it again")
    tokens = np.frombuffer(data, "<i4", n_tokens, ids_at).tolist()
    return Saved(
        tokens,
        n_cached,
        long,
        exact,
        [data[at : at + page_bytes] for at in range(pages_at, pages_at + n_pages * page_bytes, page_bytes)],
    )


def _listed(adapters: Mix) -> list[list[Any]]:
    return [[adapter.fingerprint, scale] for adapter, scale in adapters.parts]


def _check_owner(header: dict[str, Any], identity: Identity, adapters: Mix) -> None:
    for name, ours in {**vars(identity), "adapters": _listed(adapters)}.items():
        if header.get(name) != ours:
            raise PhialError(
                f"the saved session has the {name.replace('_', ' ')} {header.get(name)!r}, not {ours!r}",
                "load it with the model file, cache type, backend and adapters it was saved with",
            )
