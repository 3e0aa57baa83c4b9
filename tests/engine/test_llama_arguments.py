"""The constructor: every argument of llama_cpp.Llama works, is answered on stderr, or raises; none is swallowed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.engine.fake_engine import FakeEngine, fake_llama

from phial.engine import llama_core
from phial.engine.llama import Llama
from phial.errors import ArgumentError, PhialError

# arguments and defaults of llama_cpp.Llama 0.3.36, in its order
DEFAULTS: dict[str, Any] = {
    "n_gpu_layers": 0, "split_mode": 1, "main_gpu": 0, "tensor_split": None, "vocab_only": False, "use_mmap": True,
    "use_mlock": False, "kv_overrides": None, "seed": 0xFFFFFFFF, "n_ctx": 512, "n_batch": 512, "n_ubatch": 512,
    "n_threads": None, "n_threads_batch": None, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
    "rope_freq_base": 0.0, "rope_freq_scale": 0.0, "yarn_ext_factor": -1.0, "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_orig_ctx": 0, "logits_all": False, "embedding": False,
    "offload_kqv": True, "flash_attn": False, "op_offload": None, "swa_full": None, "no_perf": False,
    "last_n_tokens_size": 64, "lora_base": None, "lora_scale": 1.0, "lora_path": None, "numa": False,
    "chat_format": None, "chat_handler": None, "draft_model": None, "tokenizer": None, "type_k": None, "type_v": None,
    "spm_infill": False, "verbose": True,
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "kv_overrides": {"a": 1}, "rope_scaling_type": 2, "rope_freq_base": 10000.0, "rope_freq_scale": 0.5,
    "yarn_ext_factor": 1.0, "yarn_attn_factor": 2.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0,
    "yarn_orig_ctx": 2048, "attention_type": 1, "lora_base": "x", "lora_path": 5, "lora_scale": 0.5,
    "draft_model": 5, "pooling_type": 4, "type_k": 0, "type_v": 8, "n_ctx": -1, "n_batch": 0,
    "n_ubatch": "x", "n_threads": -1, "n_gpu_layers": -2, "last_n_tokens_size": -2, "seed": 1.5,
    "chat_format": "phi-3", "tokenizer": object(), "spm_infill": True,
}  # fmt: skip
ANSWERED: dict[str, Any] = {
    "split_mode": 2, "main_gpu": 1, "tensor_split": [1.0], "use_mmap": False, "use_mlock": True, "n_batch": 64,
    "n_ubatch": 64, "flash_attn": True, "op_offload": True, "swa_full": True, "numa": True, "n_gpu_layers": 35,
}  # fmt: skip
QUIET: dict[str, Any] = {"offload_kqv": False, "op_offload": False, "swa_full": False, "n_threads": 0, "no_perf": True}


def test_the_signature_is_that_of_llama_cpp() -> None:
    import inspect

    parameters = inspect.signature(Llama).parameters
    assert list(parameters) == ["model_path", *DEFAULTS]
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in DEFAULTS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_raises_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        fake_llama(monkeypatch, tmp_path, [b"x"], **{name: REFUSED[name]})
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ANSWERED)
def test_what_changes_nothing_is_answered_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    fake_llama(monkeypatch, tmp_path, [b"x"], **{name: ANSWERED[name]})
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert name in err or "no GPU backend" in err


def test_defaults_and_honoured_values_are_quiet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_llama(monkeypatch, tmp_path, [b"x"], **{**DEFAULTS, "chat_format": "chatml", "verbose": False})
    fake_llama(monkeypatch, tmp_path, [b"x"], **QUIET)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("given", "said"), [(35, "0 of 35 layers"), (-1, "0 of 3 layers")])
def test_layers_for_a_gpu_are_answered_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], given: int, said: str
) -> None:
    llm = fake_llama(monkeypatch, tmp_path, [b"x"], n_gpu_layers=given)
    llm("P")
    llm("P")
    assert capfd.readouterr().err == f"phial: no GPU backend: {said} offloaded, running on CPU\n"


def test_threads_and_cache_type_reach_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Opener:
        @staticmethod
        def open(path: str, **options: Any) -> FakeEngine:
            seen.update(options, path=path)
            return FakeEngine([], [], [])

    monkeypatch.setattr(llama_core, "Engine", Opener)
    path = tmp_path / "m.gguf"
    path.touch()
    Llama(str(path), n_threads=3, n_threads_batch=5, type_k=8, type_v=8, verbose=False)
    assert seen == {"path": str(path), "n_threads": 3, "n_threads_batch": 5, "cache_type": "q8_0"}
    Llama(str(path), type_k=30, type_v=30, verbose=False)
    assert seen["cache_type"] == "bf16"
    Llama(path, verbose=False)
    assert seen == {"path": str(path), "n_threads": None, "n_threads_batch": None, "cache_type": "f16"}


def test_a_context_of_zero_is_the_trained_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fake_llama(monkeypatch, tmp_path, [b"x"], n_ctx=0).n_ctx() == 256


def test_a_missing_model_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no-such-model"):
        Llama("./no-such-model.gguf")


def test_an_unknown_argument_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="n_gpu_layer"):
        Llama(tmp_path / "x.gguf", n_gpu_layer=1)  # type: ignore[call-arg]


def test_verbose_tells_timings_and_no_perf_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    llm = fake_llama(monkeypatch, tmp_path, [b"x", b"y"], verbose=True)
    assert capfd.readouterr().err == "phial: a fake: fake (none), context of 512 tokens\n"
    llm("P")
    out, err = capfd.readouterr()
    assert out == "" and "2 prompt tokens" in err and "2 new ones" in err
    llm._timings = False
    llm("PQ")
    assert "prompt tokens in" not in capfd.readouterr().err


def test_a_pickled_llama_opens_the_model_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llm = fake_llama(monkeypatch, tmp_path, [b"Hello"], n_ctx=77, seed=3)
    copy = pickle.loads(pickle.dumps(llm))
    assert (copy.n_ctx(), copy.model_path) == (77, llm.model_path)
    assert copy("P", temperature=0)["choices"][0]["text"] == "Hello"


def test_a_closed_llama_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llm = fake_llama(monkeypatch, tmp_path, [b"x"])
    engine = llm.model
    llm.close()
    llm.close()
    assert engine.closed  # type: ignore[attr-defined]
    with pytest.raises(PhialError, match="no weights"):
        llm("P")
