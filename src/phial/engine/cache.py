"""Which pages of the key-value cache belong to whom: reference counts, copy before write, prefix reuse.

A page holds the keys and values of `page_tokens` consecutive positions for all layers; its bytes live in the backend
(PageStore). Here are only the books: PagePool counts owners, PageTable is one sequence's list of pages, PrefixCache
keeps full pages of ended sequences for the next one that begins alike. Not safe for use by several threads at once:
the engine holds its lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phial.engine.adapters import NO_ADAPTERS, Mix
from phial.errors import ArgumentError, PhialError

CACHE_TYPES = ("f16", "bf16", "q8_0")


class PageStore(Protocol):
    """What a backend offers: pages of bytes, addressed by small integers."""

    @property
    def page_tokens(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    def new_page(self) -> int: ...
    def free_page(self, page: int, /) -> None: ...
    def copy_page(self, source: int, target: int, /) -> None: ...
    def read_page(self, page: int, /) -> bytes: ...
    def write_page(self, page: int, data: bytes, /) -> None: ...
    def rotate_keys(self, page: int, cos: NDArray[np.float32], sin: NDArray[np.float32], /) -> None:
        """Turn every key of a page, all layers: slot by slot by these angles, (page_tokens, rope_dim/2)."""
        ...


class PagePool:
    """Pages with reference counts: a page is freed when its last owner lets go.

    Attributes:
        store: where the bytes are.
        prefixes: pages kept for reuse; they fill what open sessions were promised but do not use, or the budget.
        promised: pages that open sessions may fill, all together.
        abandoned: tables, with their tokens, of sessions that were dropped without close(). Python may drop them at
            any moment, in any thread, so they only queue here until the next call that takes pages.
    """

    def __init__(self, store: PageStore, prefix_bytes: int) -> None:
        self.store = store
        self.page_tokens = store.page_tokens
        self.promised = 0
        self.abandoned: deque[tuple[PageTable, list[int]]] = deque()
        self._owners: dict[int, int] = {}
        self.prefixes = PrefixCache(self, max(0, prefix_bytes) // store.page_bytes)

    @property
    def n_pages(self) -> int:
        """How many pages are allocated."""
        return len(self._owners)

    def owners(self, page: int) -> int:
        """How many owners a page has; 0 where it is not allocated."""
        return self._owners.get(page, 0)

    def take(self) -> int:
        """Allocate a page for one owner. Beyond both promise and budget, kept prefixes are given up first."""
        self.collect()
        while self.n_pages >= max(self.promised, self.prefixes.max_pages) and self.prefixes.drop_idle():
            pass
        try:
            page = self.store.new_page()
        except MemoryError as error:
            raise PhialError(
                f"no memory for cache page {self.n_pages + 1} of {self.store.page_bytes} bytes",
                "use a smaller context (n_ctx), cache_type='q8_0', or a smaller model",
            ) from error
        self._owners[page] = 1
        return page

    def collect(self) -> None:
        """Close the tables of abandoned sessions."""
        while self.abandoned:
            table, tokens = self.abandoned.popleft()
            table.cut(0, tokens)
            table.close()

    def close(self) -> None:
        """Free every page; tables still open must not be used again."""
        self.abandoned.clear()
        self.prefixes.clear()
        for page in self._owners:
            self.store.free_page(page)
        self._owners.clear()

    def share(self, page: int) -> int:
        """Add an owner and return the page."""
        self._owners[page] += 1
        return page

    def release(self, page: int) -> None:
        """Take an owner away; the last one frees the page."""
        self._owners[page] -= 1
        if not self._owners[page]:
            del self._owners[page]
            self.store.free_page(page)

    def writable(self, page: int) -> int:
        """Return the page where it has one owner, else a copy of it for this owner (copy on write)."""
        if self._owners[page] == 1:
            return page
        copy = self.take()
        self.store.copy_page(page, copy)
        self.release(page)
        return copy


class PageTable:
    """The pages of one sequence and how many of its positions are filled; a context manager that releases them.

    Attributes:
        pages: page ids in order of position.
        n_tokens: positions filled, all with keys of one factor set and one mix of adapters.
        long: that factor set.
        exact: whether they are what computing them would give; False after turning them (rope_switch.py).
        adapters: that mix.
    """

    def __init__(self, pool: PagePool, n_ctx: int) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self.n_tokens = 0
        self.long = False
        self.exact = True
        self.adapters = NO_ADAPTERS
        self._promised = -(-n_ctx // pool.page_tokens)
        pool.collect()
        pool.promised += self._promised

    def prepare(self, n: int) -> None:
        """Make room for n more positions: new pages at the end, an own copy of a shared page about to be written."""
        size = self.pool.page_tokens
        for index in range(self.n_tokens // size, len(self.pages)):
            self.pages[index] = self.pool.writable(self.pages[index])
        while len(self.pages) * size < self.n_tokens + n:
            self.pages.append(self.pool.take())

    def cut(self, n: int, tokens: Sequence[int]) -> None:
        """Keep the first n positions; full pages that go are offered for reuse. tokens: ids of the filled positions."""
        size = self.pool.page_tokens
        if n // size < self.n_tokens // size:
            self.pool.prefixes.keep(self, tokens)
        self.n_tokens = min(n, self.n_tokens)
        self.exact = self.exact or not self.n_tokens
        while (len(self.pages) - 1) * size >= self.n_tokens and self.pages:
            self.pool.release(self.pages.pop())

    def adopt(self, pages: Sequence[int]) -> None:
        """Share these full pages and hold them instead of the present ones."""
        shared = [self.pool.share(page) for page in pages]
        self.n_tokens = 0  # the present ones hold a beginning of the same tokens: nothing to remember
        self.cut(0, ())
        self.pages, self.n_tokens = shared, len(shared) * self.pool.page_tokens

    def append_page(self, data: bytes) -> None:
        """Fill the next full page with these bytes, for what it held before."""
        page = self.pool.take()
        self.pool.store.write_page(page, data)
        index = self.n_tokens // self.pool.page_tokens
        replaced, self.pages[index:] = self.pages[index:], [page]
        self.n_tokens = len(self.pages) * self.pool.page_tokens
        for old in replaced:
            self.pool.release(old)

    def restore(self, pages: Sequence[bytes], n_tokens: int, long: bool, exact: bool) -> None:
        """Fill an empty table with pages of a saved session."""
        assert not self.pages
        for data in pages:
            self.pages.append(self.pool.take())
            self.pool.store.write_page(self.pages[-1], data)
        self.n_tokens, self.long, self.exact = n_tokens, long, exact

    def close(self) -> None:
        """Release every page and give the promise back."""
        while self.pages:
            self.pool.release(self.pages.pop())
        self.n_tokens = 0
        self.pool.promised -= self._promised
        self._promised = 0

    def __enter__(self) -> PageTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class PrefixCache:
    """Full pages of ended sequences, found again by the tokens that led to them; least recently used go first.

    A page that a session holds too costs nothing to keep, but counts against the budget all the same, so that the
    budget bounds what stays when all sessions close.
    """

    def __init__(self, pool: PagePool, max_pages: int) -> None:
        self.max_pages = max_pages
        self._pool = pool
        self._pages: OrderedDict[bytes, int] = OrderedDict()  # key → page, least recently used first

    def __len__(self) -> int:
        return len(self._pages)

    def keep(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Remember the table's full pages if exact; tokens are the ids of its filled positions, as far as known."""
        if not table.exact:
            return
        n = min(min(table.n_tokens, len(tokens)) // self._pool.page_tokens, self.max_pages)
        keys = page_keys(tokens[: n * self._pool.page_tokens], self._pool.page_tokens, table.long, table.adapters)
        for key, page in zip(reversed(keys), reversed(table.pages[:n]), strict=True):  # the first is the last to go
            if key not in self._pages:
                self._pages[key] = self._pool.share(page)
            self._pages.move_to_end(key)
        while len(self._pages) > self.max_pages:
            self._pool.release(self._pages.popitem(last=False)[1])

    def find(self, tokens: Sequence[int], long: bool, adapters: Mix = NO_ADAPTERS) -> list[int]:
        """Return the pages kept for the longest known prefix of tokens, still owned by the cache alone."""
        keys = page_keys(tokens, self._pool.page_tokens, long, adapters)
        known = next((i for i, key in enumerate(keys) if key not in self._pages), len(keys))
        for key in reversed(keys[:known]):
            self._pages.move_to_end(key)
        return [self._pages[key] for key in keys[:known]]

    def drop_idle(self) -> bool:
        """Give up the least recently used page that nobody else holds; False where there is none."""
        for key, page in self._pages.items():
            if self._pool.owners(page) == 1:
                del self._pages[key]
                self._pool.release(page)
                return True
        return False

    def clear(self) -> None:
        """Give up every page."""
        while self._pages:
            self._pool.release(self._pages.popitem()[1])


def page_keys(tokens: Sequence[int], page_tokens: int, long: bool, adapters: Mix) -> list[bytes]:
    """The key of each full page of these tokens: the chain hash of all tokens to its end, factor set and adapters.

    Keys and values depend on nothing else beside the model, the cache type and how the backend computes.
    """
    ids = np.asarray(tokens, dtype="<i4")
    keys, key = [], (b"long" if long else b"short") + adapters.key
    for end in range(page_tokens, len(ids) + 1, page_tokens):
        key = blake2b(ids[end - page_tokens : end].tobytes(), digest_size=16, key=key).digest()
        keys.append(key)
    return keys


def check_cache_type(cache_type: str) -> None:
    """Raise ArgumentError where the cache type is not one of CACHE_TYPES."""
    if cache_type not in CACHE_TYPES:
        raise ArgumentError(f"cache_type is {cache_type!r}", f"use one of: {', '.join(CACHE_TYPES)}")
