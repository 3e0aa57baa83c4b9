"""Pages on disk: a second engine computes what is not there and nothing else, and no file can change a result.

The books are tested over the toy backend, whose logits depend on everything the pages hold; the bits over the core.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize
from tests.engine.test_session import SessionMachine
from tests.engine.toy_backend import N_VOCAB, ORIGINAL_CONTEXT, PAGE_TOKENS, ToyStore, logits_of, toy_engine

from phial.engine import native_backend
from phial.engine import session as session_module
from phial.engine.adapters import LoadedAdapter
from phial.engine.disk_cache import MAGIC, DiskCache
from phial.engine.engine import Engine

FILE_BYTES = len(MAGIC) + 32 + ToyStore.page_bytes
PROMPT = list(range(5)) * 4  # five pages, of which the last token is never read
no_core = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


def disk(folder: Path, owner: str = "toy", **settings: Any) -> DiskCache:
    return DiskCache(folder, owner, min_tokens=2 * PAGE_TOKENS, **settings)


def computed(cache: DiskCache | None, prompt: list[int], rope_switch: str = "reprefill", **adapters: Any) -> int:
    """How many tokens of the prompt a fresh engine had to compute; its logits are checked."""
    with toy_engine(disk_prefixes=cache, rope_switch=rope_switch) as engine, engine.session(64) as session:
        if adapters:
            engine.adapters.append(adapters["adapter"])
            session.set_adapters([(adapters["adapter"], adapters["scale"])])
        logits = session.eval(prompt[session.reuse_prefix(prompt) :])
        np.testing.assert_array_equal(logits, logits_of(prompt, len(prompt) > ORIGINAL_CONTEXT))
        backend: Any = engine._backend
        return int(backend.tokens_run)


def files(folder: Path) -> list[Path]:
    """The pages, last used first: in the order of the prompt."""
    return sorted(folder.glob("*.page"), key=lambda path: -path.stat().st_mtime_ns)


def test_a_second_engine_reads_the_full_pages_and_computes_the_rest(folder: Path) -> None:
    assert computed(disk(folder), PROMPT) == 20
    assert len(files(folder)) == 5
    assert computed(disk(folder), PROMPT) == 4  # the last token's page: its logits are wanted
    assert computed(disk(folder), [*PROMPT, 7, 8]) == 2
    assert computed(disk(folder), [*PROMPT[:9], 30, 30, 30]) == 4
    assert computed(disk(folder), [6, *PROMPT]) == 21


def test_what_the_session_holds_itself_is_not_read(folder: Path) -> None:
    computed(disk(folder), PROMPT)
    with toy_engine(disk_prefixes=disk(folder)) as engine, engine.session(64) as session:
        session.eval(PROMPT[:10])
        assert session.reuse_prefix(PROMPT) == 16
        assert engine.pool.n_pages == 4
        np.testing.assert_array_equal(session.eval(PROMPT[16:]), logits_of(PROMPT, False))
        assert session.reuse_prefix(PROMPT[:11]) == 10


def test_only_the_prompt_is_kept_and_only_a_long_one(folder: Path) -> None:
    computed(disk(folder), PROMPT[:7])
    assert not folder.exists()
    with toy_engine(disk_prefixes=disk(folder)) as engine, engine.session(64) as session:
        session.eval(PROMPT[session.reuse_prefix(PROMPT) :])
        for answer in [9] * 12:
            session.eval([answer])
    assert len(files(folder)) == 5


def test_factor_set_adapters_and_owner_are_part_of_the_name(folder: Path) -> None:
    computed(disk(folder), PROMPT)
    longer = [*PROMPT, *PROMPT]  # past the original context: the long set
    assert computed(disk(folder), longer) == 40
    assert computed(disk(folder), longer) == 4
    one, other = (LoadedAdapter(name, name, 0) for name in "ab")
    for adapter, scale in ((one, 1.0), (one, 0.5), (other, 1.0)):
        assert computed(disk(folder), PROMPT, adapter=adapter, scale=scale) == 20
        assert computed(disk(folder), PROMPT, adapter=adapter, scale=scale) == 4
    assert computed(disk(folder, "another model"), PROMPT) == 20
    assert computed(disk(folder), PROMPT) == 4


def test_turned_keys_are_never_written(folder: Path) -> None:
    long = [*PROMPT, *PROMPT[:8]]
    with toy_engine(disk_prefixes=disk(folder), rope_switch="rerotate") as engine, engine.session(64) as session:
        session.reuse_prefix(long)
        session.eval(long[:20])
        session.eval(long[20:])
        assert not session._table.exact
    assert not folder.exists()


def test_keys_that_a_saved_session_brought_are_not_written(folder: Path) -> None:
    with toy_engine() as engine, engine.session(64) as session:
        session.eval(PROMPT)
        saved = session.save()
    with toy_engine(disk_prefixes=disk(folder)) as engine, engine.session(64) as session:
        session.load(saved)
        session.reuse_prefix(PROMPT)
    assert not folder.exists()


class DiskMachine(SessionMachine):
    """Any calls in any order over a folder that every example inherits from the ones before."""

    folder = TemporaryDirectory()

    @initialize()
    def begin(self) -> None:
        session_module.BATCH_TOKENS = 6
        cache = disk(Path(self.folder.name), max_bytes=40 * FILE_BYTES)
        self.engine = toy_engine(prefix_pages=6, disk_prefixes=cache)
        self.backend: Any = self.engine._backend
        self.sessions = [self.engine.session(40) for _ in range(3)]
        self.tokens: list[list[int]] = [[], [], []]

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "engine"):
            self.engine.close()


DiskMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
test_any_calls_in_any_order_give_the_logits_of_a_fresh_run = DiskMachine.TestCase


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "a bit of the page":
        data[-1] ^= 1
    elif how == "a bit of the header":
        data[10] ^= 1
    elif how == "truncated":
        del data[-5:]
    elif how == "empty":
        data.clear()
    elif how == "longer":
        data += b"x"
    elif how == "another page":
        data = bytearray(files(path.parent)[0].read_bytes())
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["a bit of the page", "a bit of the header", "truncated", "empty", "longer", "another page"]
)
def test_a_damaged_file_is_a_miss_said_and_replaced(folder: Path, how: str, capsys: Any) -> None:
    computed(disk(folder), PROMPT)
    third = files(folder)[2]
    whole = third.read_bytes()
    damage(third, how)
    assert computed(disk(folder), PROMPT) == 12
    assert "damaged" in capsys.readouterr().err
    assert third.read_bytes() == whole
    assert computed(disk(folder), PROMPT) == 4


def test_what_is_no_file_is_a_miss(folder: Path, capsys: Any) -> None:
    computed(disk(folder), PROMPT)
    first, second = files(folder)[:2]
    first.unlink()
    first.mkdir()
    assert computed(disk(folder), PROMPT) == 20
    first.rmdir()
    computed(disk(folder), PROMPT)
    second.unlink()
    os.mkfifo(second)  # reading it would wait for ever
    assert computed(disk(folder), PROMPT) == 16
    assert capsys.readouterr().err.count("\n") == 2


def test_the_bound_holds_and_the_least_recently_used_go_first(folder: Path) -> None:
    cache = {"max_bytes": 12 * FILE_BYTES}
    prompts = [[first, *PROMPT[1:]] for first in (10, 11, 12)]
    computed(disk(folder, **cache), prompts[0])
    computed(disk(folder, **cache), prompts[1])
    assert computed(disk(folder, **cache), prompts[0]) == 4  # used again
    computed(disk(folder, **cache), prompts[2])
    assert len(files(folder)) == 12
    assert computed(None, prompts[0]) == 20
    assert [computed(disk(folder, **cache), prompt) for prompt in (prompts[0], prompts[2])] == [4, 4]
    assert computed(disk(folder, **cache), prompts[1]) == 12  # of one prompt the end goes first


def test_being_read_is_being_used(folder: Path) -> None:
    computed(disk(folder), PROMPT)
    first, *others = files(folder)
    for path in (first, *others):
        os.utime(path, (0, 0))
    computed(disk(folder), PROMPT[:6])  # too short to be kept, but it reads the first page
    assert first.stat().st_mtime > 0 and not any(path.stat().st_mtime for path in others)


def test_a_prompt_larger_than_the_bound_keeps_its_beginning(folder: Path) -> None:
    computed(disk(folder, max_bytes=3 * FILE_BYTES), PROMPT)
    assert len(files(folder)) == 3
    assert computed(disk(folder, max_bytes=3 * FILE_BYTES), PROMPT) == 8


def test_unfinished_files_go_when_their_writer_is_long_gone(folder: Path) -> None:
    folder.mkdir()
    old, fresh, foreign = folder / "a.part", folder / "b.part", folder / "notes.txt"
    for path in (old, fresh, foreign):
        path.write_text("x")
    os.utime(old, (0, 0))
    computed(disk(folder), PROMPT)
    assert [path.exists() for path in (old, fresh, foreign)] == [False, True, True]


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path, capsys: Any) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    cache = disk(blocked / "prefixes")
    assert computed(cache, PROMPT) == computed(cache, PROMPT) == 20
    said = capsys.readouterr().err
    assert said.startswith("phial: a kept prefix cannot be read")
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_still_read(folder: Path) -> None:
    computed(disk(folder), PROMPT)
    folder.chmod(0o500)
    assert computed(disk(folder), PROMPT) == 4
    folder.chmod(0o700)


def test_a_full_disk_costs_one_line_and_leaves_nothing(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = disk(folder)
    assert computed(cache, PROMPT) == computed(cache, PROMPT) == 20
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().err == f"phial: no prefix is kept in {folder}: No space left on device\n"


def test_many_engines_at_once_share_a_small_folder(folder: Path) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            draw = np.random.default_rng(seed)
            for _ in range(15):
                prompt = [int(draw.integers(3)), *draw.integers(0, N_VOCAB, 1).tolist(), *PROMPT]
                computed(disk(folder, max_bytes=8 * FILE_BYTES), prompt)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(folder.glob("*.part")) == []


def test_the_folder_is_its_owners_alone(folder: Path) -> None:
    computed(disk(folder), PROMPT)
    assert folder.stat().st_mode & 0o77 == 0
    assert all(path.stat().st_mode & 0o77 == 0 for path in files(folder))


@no_core
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_pages_from_disk_give_the_same_bits(tiny: dict[str, Path], folder: Path, cache_type: str) -> None:
    def run(cache_type: str = cache_type, **settings: Any) -> tuple[np.ndarray, int]:
        with Engine.open(tiny["phi3"], cache_type=cache_type, backend="native", **settings) as engine:
            prompt = np.random.default_rng(0).integers(3, engine.config.n_vocab, 300).tolist()
            with engine.session(engine.config.n_ctx_train) as session:
                reused = session.reuse_prefix(prompt)
                return session.eval(prompt[reused:]), reused

    plain, _ = run()
    assert run(prefix_dir=folder)[1] == 0
    logits, reused = run(prefix_dir=folder)
    assert reused == 256
    np.testing.assert_array_equal(logits, plain)
    assert run("bf16", prefix_dir=folder)[1] == 0
    before = native_backend._native.current_kernels()
    try:
        assert run(kernels="scalar", prefix_dir=folder)[1] == 0  # other kernels, other bits
    finally:
        native_backend.choose_kernels(before)
