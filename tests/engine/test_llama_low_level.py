"""Llama's low-level methods: tokens, eval, sample, generate, states, caches, embeddings, static functions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.fake_engine import BOS, EOS, USER, fake_llama

from phial.engine.llama import Llama, LlamaDiskCache, LlamaRAMCache, LlamaState
from phial.engine.llama_state import BaseLlamaCache, load_state, save_state
from phial.errors import ArgumentError, FormatError, PhialError


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Llama:
    return fake_llama(monkeypatch, tmp_path, [b"Hello", b" you"])


@pytest.fixture
def all_logits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Llama:
    return fake_llama(monkeypatch, tmp_path, [b"Hello", b" you"], logits_all=True)


def letters(text: str) -> list[int]:
    return [3 + b for b in text.encode()]


def test_tokens_go_to_bytes_and_back(llm: Llama) -> None:
    assert llm.tokenize(b"a<|user|>") == [BOS, *letters("a<|user|>")]
    assert llm.tokenize(b"a<|user|>", add_bos=False, special=True) == [*letters("a"), USER]
    assert llm.detokenize([BOS, *letters(" a"), USER]) == b"a"
    assert llm.detokenize([*letters(" a"), USER], special=True) == b" a<|user|>"
    with pytest.raises(ArgumentError, match="UTF-8"):
        llm.tokenize(b"\xff")
    with pytest.raises(ArgumentError, match="vocabulary"):
        llm.detokenize([10**6])


def test_a_tokenizer_of_the_users_own_does_the_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Upper:
        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
            return [3 + b for b in text.upper()]

        def detokenize(self, tokens: list[int], prev_tokens: Any = None, special: bool = False) -> bytes:
            return bytes(t - 3 for t in tokens).lower()

    llm = fake_llama(monkeypatch, tmp_path, [b"X"], tokenizer=Upper())
    assert llm.tokenize(b"ab") == letters("AB")
    assert llm("ab", max_tokens=1, logit_bias={3 + ord("Q"): 100})["choices"][0]["text"] == "q"


def test_eval_appends_and_reset_forgets(llm: Llama) -> None:
    llm.eval([BOS, 5])
    llm.eval([])
    llm.eval([6])
    assert (llm.n_tokens, list(llm.eval_tokens), llm.input_ids[:4].tolist()) == (3, [BOS, 5, 6], [BOS, 5, 6, 0])
    assert len(llm.eval_logits) == 1 and len(llm.eval_logits[0]) == llm.n_vocab()
    llm.reset()
    assert (llm.n_tokens, len(llm.eval_logits)) == (0, 0)
    with pytest.raises(ArgumentError, match="nothing was evaluated"):
        llm.sample()


def test_all_logits_are_kept_by_position(all_logits: Llama) -> None:
    all_logits.eval([BOS, 5, 6])
    all_logits.eval([7])
    engine: Any = all_logits.model
    assert np.array_equal(all_logits.scores[2], engine.logits([BOS, 5, 6]))
    assert np.array_equal(np.array(all_logits.eval_logits, np.float32)[3], engine.logits([BOS, 5, 6, 7]))
    assert all_logits.sample(temp=0.0, idx=1) == int(engine.logits([BOS, 5]).argmax())


def test_sample_takes_the_last_position_only_without_all_logits(llm: Llama) -> None:
    llm.eval(llm.tokenize(b"P"))
    assert llm.detokenize([llm.sample(temp=0.0)]) == b"Hello"
    assert llm.sample(temp=0.0, idx=1) == llm.sample(temp=0.0)
    with pytest.raises(ArgumentError, match="position 0"):
        llm.sample(idx=0)


def test_generate_yields_ids_and_takes_tokens_sent_in(llm: Llama) -> None:
    prompt = llm.tokenize(b"P")
    ids = list(itertools.islice(llm.generate(prompt, temp=0.0), 3))
    assert (llm.detokenize(ids[:2]), ids[2]) == (b"Hello you", EOS)
    generator = llm.generate(prompt, temp=0.0)
    first = next(generator)
    generator.send([50, 51])
    assert list(llm.eval_tokens) == [*prompt, first, 50, 51]


def test_generate_without_reset_goes_on_from_what_is_there(llm: Llama) -> None:
    llm.eval([BOS])
    assert llm.detokenize([next(llm.generate(letters("P"), temp=0.0, reset=False))]) == b"Hello"
    llm.reset()
    llm.eval(llm.tokenize(b"P"))
    assert llm.detokenize([next(llm.generate([], temp=0.0, reset=False))]) == b"Hello"


def test_the_same_seed_generates_the_same_ids(llm: Llama) -> None:
    def ids(seed: int) -> list[int]:
        llm.set_seed(seed)
        return list(itertools.islice(llm.generate(letters("zz"), top_k=0, min_p=0.0, top_p=1.0), 6))

    assert ids(1) == ids(1) != ids(2)


def test_a_negative_temperature_draws_from_the_whole_distribution(llm: Llama) -> None:
    llm.set_seed(1)
    drawn = {next(llm.generate(letters("zz"), temp=-1.0, top_k=1)) for _ in range(1)}
    llm.set_seed(2)
    drawn |= {next(llm.generate(letters("zz"), temp=-1.0, top_k=1))}
    assert len(drawn) == 2


def test_a_state_goes_on_where_it_was_saved(llm: Llama, all_logits: Llama) -> None:
    for model in (llm, all_logits):
        model.set_seed(9)
        model.eval(model.tokenize(b"P"))
        state = model.save_state()
        assert state.llama_state_size == len(state.llama_state) > 0
        assert (state.n_tokens, state.seed) == (2, 9)
        model.reset()
        model.eval([7, 8, 9])
        model.set_seed(1)
        model.load_state(state)
        assert list(model.eval_tokens) == model.tokenize(b"P")
        assert model.detokenize([model.sample(temp=0.0)]) == b"Hello"


def test_a_state_without_logits_is_refused_where_they_are_needed(llm: Llama, all_logits: Llama) -> None:
    llm.eval([BOS, 5])
    with pytest.raises(ArgumentError, match="logits of 0 of its 2 tokens"):
        all_logits.load_state(llm.save_state())


def a_state(tokens: list[int], size: int = 10) -> LlamaState:
    ids = np.array(tokens, np.intc)
    return LlamaState(ids, np.zeros((0, 3), np.float32), len(tokens), bytes(size), size, 5)


def test_a_state_survives_its_file_and_a_damaged_file_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "s.state.npz"
    save_state(path, [1, 2], a_state([1, 2]))
    again = load_state(path)
    assert (again.input_ids.tolist(), again.n_tokens, again.seed, again.llama_state) == ([1, 2], 2, 5, bytes(10))
    assert [p.name for p in tmp_path.iterdir()] == ["s.state.npz"]
    data = path.read_bytes()
    for damaged in (data[:100], b"", b"x" * 50, data.replace(b"\x01\0\0\0\x02", b"\x01\0\0\0\x03")):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="s.state.npz"):
            load_state(path)


def test_a_pickle_on_disk_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "s.state.npz"
    np.savez(path.open("wb"), key=np.array([1]), numbers=np.array([print], object), allow_pickle=True)
    with pytest.raises(FormatError):
        load_state(path)


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BaseLlamaCache:
    return LlamaRAMCache() if request.param == "memory" else LlamaDiskCache(tmp_path / "cache")


def test_a_cache_returns_the_longest_shared_prefix(cache: BaseLlamaCache) -> None:
    cache[[1, 2]] = a_state([1, 2])
    cache[[1, 2, 3, 4]] = a_state([1, 2, 3, 4])
    cache[[7]] = a_state([7])
    assert cache[[1, 2, 3, 9]].n_tokens == 4
    assert cache[[1, 2, 3, 9]].n_tokens == 4, "asking takes nothing out"
    assert [1] in cache and [8] not in cache
    with pytest.raises(KeyError):
        cache[[8]]


def test_a_cache_keeps_to_its_capacity_and_drops_the_oldest(tmp_path: Path) -> None:
    for cache in (LlamaRAMCache(25_000), LlamaDiskCache(tmp_path, 25_000)):
        for token in (1, 2, 3):
            cache[[token]] = a_state([token], 10_000)
        assert [1] not in cache and [2] in cache and [3] in cache
        assert 20_000 < cache.cache_size <= 25_000


def test_a_damaged_entry_is_a_miss_and_is_removed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = LlamaDiskCache(tmp_path)
    cache[[1, 2]] = a_state([1, 2])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"rubbish")
    assert [1] not in cache
    assert not path.exists()
    assert "damaged" in capfd.readouterr().err


def test_completions_begin_from_the_cache(llm: Llama, cache: BaseLlamaCache) -> None:
    llm.set_cache(cache)
    text = llm("P", temperature=0.0)["choices"][0]["text"]
    llm.reset()
    llm("entirely else", max_tokens=1)
    before = len(llm.ctx.evaluated)  # type: ignore[attr-defined]
    assert llm("P", temperature=0.0)["choices"][0]["text"] == text
    session: Any = llm.ctx
    assert session.evaluated[before] == letters("P")[0], "the BOS came from the cache"


def test_a_foreign_state_in_the_cache_is_passed_over(llm: Llama) -> None:
    llm.set_cache(LlamaRAMCache())
    assert llm.cache is not None
    llm.cache[llm.tokenize(b"P")] = a_state(llm.tokenize(b"P"))
    assert llm("P", temperature=0.0)["choices"][0]["text"] == "Hello you"


def embedder(monkeypatch: pytest.MonkeyPatch, folder: Path, pooling: int, **arguments: Any) -> Llama:
    return fake_llama(monkeypatch, folder, [b"x"], embedding=True, pooling_type=pooling, **arguments)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (0, [[0, 1, 2, 0], [100, 101, 2, 0]]), (-1, [[0, 1, 2, 0], [100, 101, 2, 0]]),
        (1, [50, 51, 2, 0]), (2, [0, 1, 2, 0]), (3, [100, 101, 2, 0]),
    ],
)  # fmt: skip
def test_embeddings_are_pooled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooling: int, expected: list[Any]
) -> None:
    llm = embedder(monkeypatch, tmp_path, pooling)
    assert llm.embed("a") == expected
    assert llm.pooling_type() == max(pooling, 0)
    assert llm.embed(["a", "a"], return_count=True) == ([expected, expected], 4)
    unit = np.atleast_2d(np.array(llm.embed("a", normalize=True)))
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1.0)


def test_long_texts_are_cut_aloud_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = embedder(monkeypatch, tmp_path, 3, n_ctx=4)
    assert llm.embed("abcdef", return_count=True)[1] == 4
    assert "cut from 7 to 4 tokens" in capfd.readouterr().err
    with pytest.raises(ArgumentError, match="7 tokens"):
        llm.embed("abcdef", truncate=False)


def test_embeddings_have_openais_shape_and_need_the_flag(
    llm: Llama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = embedder(monkeypatch, tmp_path, 1).create_embedding(["a", "b"], model="m")
    assert list(answer) == ["object", "data", "model", "usage"]
    assert [list(item) for item in answer["data"]] == [["object", "embedding", "index"]] * 2
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    with pytest.raises(PhialError, match="embedding=True"):
        llm.create_embedding("a")


def test_static_functions() -> None:
    assert Llama.longest_token_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert Llama.longest_token_prefix([], [1]) == 0
    logprobs = Llama.logits_to_logprobs([[0.0, 0.0], [1000.0, -np.inf]])
    assert logprobs == pytest.approx(np.array([[-np.log(2), -np.log(2)], [0.0, -np.inf]]))
    assert Llama.logits_to_logprobs(np.zeros((2, 3)), axis=0)[0, 0] == pytest.approx(-np.log(2))


def test_logits_kept_under_other_rope_factors_are_not_reused(all_logits: Llama) -> None:
    engine: Any = all_logits.model
    session: Any = all_logits.ctx
    engine.config.uses_long = lambda n: n > 4

    def evaluated_by(prompt: str) -> int:
        before = len(session.evaluated)
        all_logits(prompt, max_tokens=1)
        return len(session.evaluated) - before

    assert evaluated_by("abc") == 4
    assert evaluated_by("abd") == 1, "both short"
    assert evaluated_by("abcde") == 6, "short rows are no use to a long text"
    assert evaluated_by("abcdf") == 1, "both long"
    assert evaluated_by("abc") == 4


def test_an_interrupted_evaluation_leaves_no_stale_logits(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.eval(llm.tokenize(b"P"))

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.ctx, "eval", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm("Pz")
    engine: Any = llm.model
    assert list(llm.eval_tokens) == llm.tokenize(b"P")
    llm.ctx.truncate(1)
    assert np.array_equal(llm.last_logits, engine.logits([BOS]))
