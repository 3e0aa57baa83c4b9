"""The books of the page cache, against a model that simply remembers everything."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from tests.engine.toy_backend import PAGE_TOKENS, ToyStore

from phial.engine.cache import PagePool, PageTable, check_cache_type
from phial.errors import ArgumentError, PhialError


def make_pool(prefix_pages: int = 8) -> PagePool:
    return PagePool(ToyStore(), prefix_pages * ToyStore.page_bytes)


def write(table: PageTable, tokens: list[int], new: list[int]) -> None:
    """Append tokens to a table as a backend would."""
    table.prepare(len(new))
    for position, token in enumerate(new, table.n_tokens):
        table.pool.store.pages[table.pages[position // PAGE_TOKENS]][position % PAGE_TOKENS] = token, table.long, 0  # type: ignore[attr-defined]
    table.n_tokens += len(new)
    tokens += new


def content(table: PageTable) -> list[int]:
    pages = [row for page in table.pages for row in table.pool.store.pages[page].tolist()]  # type: ignore[attr-defined]
    return [token for token, _, _ in pages[: table.n_tokens]]


class CacheMachine(RuleBasedStateMachine):
    """Sequences over four tokens (so that prefixes meet) written, cut, closed and begun again from kept pages."""

    tables: Bundle[Any] = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(5)
        self.open: list[tuple[PageTable, list[int]]] = []

    @rule(target=tables, long=st.booleans(), n_ctx=st.integers(1, 40))
    def begin(self, long: bool, n_ctx: int) -> Any:
        entry = PageTable(self.pool, n_ctx), list[int]()
        entry[0].long = long
        self.open.append(entry)
        return entry

    @rule(entry=tables, new=st.lists(st.integers(0, 3), min_size=1, max_size=14))
    def append(self, entry: Any, new: list[int]) -> None:
        write(*entry, new)

    @rule(entry=tables, n=st.integers(0, 40))
    def cut(self, entry: Any, n: int) -> None:
        table, tokens = entry
        table.cut(n, tokens)
        del tokens[n:]

    @rule(entry=tables, wanted=st.lists(st.integers(0, 3), max_size=24))
    def reuse(self, entry: Any, wanted: list[int]) -> None:
        table, tokens = entry
        pages = self.pool.prefixes.find(wanted, table.long)
        table.adopt(pages)
        tokens[:] = wanted[: len(pages) * PAGE_TOKENS]

    @rule(entry=consumes(tables))
    def close(self, entry: Any) -> None:
        table, tokens = entry
        self.open.remove(entry)
        table.cut(0, tokens)
        table.close()

    @rule(entry=consumes(tables))
    def abandon(self, entry: Any) -> None:
        self.open.remove(entry)
        self.pool.abandoned.append(entry)
        self.pool.collect()

    @invariant()
    def every_sequence_holds_its_own_tokens(self) -> None:
        for table, tokens in self.open:
            assert content(table) == tokens

    @invariant()
    def owners_are_counted_right_and_nothing_leaks(self) -> None:
        owners = Counter(page for table, _ in self.open for page in table.pages)
        owners.update(self.pool.prefixes._pages.values())
        assert {page: self.pool.owners(page) for page in owners} == dict(owners)
        assert set(self.pool.store.pages) == set(owners)  # type: ignore[attr-defined]
        assert self.pool.n_pages == len(owners)

    @invariant()
    def budget_and_promises_hold(self) -> None:
        assert len(self.pool.prefixes) <= 5
        assert self.pool.promised == sum(table._promised for table, _ in self.open)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_books_agree_with_a_simple_model = CacheMachine.TestCase


def test_a_shared_page_is_copied_before_it_is_written() -> None:
    pool = make_pool()
    first, second = PageTable(pool, 8), PageTable(pool, 8)
    tokens: list[int] = []
    write(first, tokens, [1, 2, 3, 4])
    pool.prefixes.keep(first, tokens)
    second.adopt(pool.prefixes.find([1, 2, 3, 4], False))
    second.cut(2, tokens)
    write(second, [1, 2], [9])
    assert content(first) == [1, 2, 3, 4]
    assert content(second) == [1, 2, 9]
    assert first.pages != second.pages


def test_pages_are_found_by_tokens_and_factor_set_and_only_from_the_start() -> None:
    pool = make_pool()
    table = PageTable(pool, 12)
    tokens: list[int] = []
    write(table, tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    pages = list(table.pages)
    table.cut(0, tokens)
    find = pool.prefixes.find
    assert find([1, 2, 3, 4, 5, 6, 7, 8, 9], False) == pages[:2]
    assert find([1, 2, 3, 4, 5, 6, 7, 0], False) == pages[:1]
    assert find([1, 2, 3], False) == []
    assert find([5, 6, 7, 8], False) == []
    assert find([1, 2, 3, 4], True) == []


def test_the_budget_drops_the_least_recently_used_prefix_and_its_end_first() -> None:
    pool = make_pool(3)
    for start in (0, 10):
        table = PageTable(pool, 8)
        tokens: list[int] = []
        write(table, tokens, [start + i for i in range(8)])
        table.cut(0, tokens)
        table.close()
    assert len(pool.prefixes) == 3
    assert len(pool.prefixes.find([0, 1, 2, 3, 4, 5, 6, 7], False)) == 1
    assert len(pool.prefixes.find([10, 11, 12, 13, 14, 15, 16, 17], False)) == 2


def test_kept_prefixes_give_way_where_the_pool_would_outgrow_promise_and_budget() -> None:
    pool = make_pool(8)
    tokens: list[int] = []
    table = PageTable(pool, 32)
    write(table, tokens, list(range(32)))
    table.cut(0, tokens)
    assert pool.n_pages == 8
    write(table, [], [31] * 20)
    assert pool.n_pages == 8  # five new pages took the place of five kept ones
    assert len(pool.prefixes) == 3


def test_a_budget_of_zero_keeps_nothing() -> None:
    pool = make_pool(0)
    table, tokens = PageTable(pool, 8), list[int]()
    write(table, tokens, list(range(8)))
    table.cut(0, tokens)
    assert pool.n_pages == 0


def test_a_page_that_memory_cannot_hold_is_an_error_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()
    table = PageTable(pool, 8)
    write(table, [], [1])

    def exhausted() -> int:
        raise MemoryError

    monkeypatch.setattr(pool.store, "new_page", exhausted)
    with pytest.raises(PhialError, match="cache page 2 of 48 bytes"):
        table.prepare(8)
    assert pool.n_pages == 1


def test_an_unknown_cache_type_is_refused() -> None:
    check_cache_type("q8_0")
    with pytest.raises(ArgumentError, match="q4_0.*\n.*f16, bf16, q8_0"):
        check_cache_type("q4_0")
