"""Opening and closing models: arguments, backends, threads, memory."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import metadata, vocabulary, write_tiny

from phial import threads
from phial.engine import engine as engine_module
from phial.engine import native_backend
from phial.engine.engine import Engine, memory_estimate
from phial.engine.model_file import model_fingerprint, read_config
from phial.engine.sampling import SamplingParams
from phial.errors import ArgumentError, PhialError
from phial.gguf.blocks import GGMLType, random_blocks
from phial.gguf.container import read_gguf, write_gguf
from phial.threads import available_cores

needs_native = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
BACKENDS = [pytest.param("native", marks=needs_native), "reference"]


def resident(field: str = "VmRSS") -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["phi3", "llama", "qwen2"])
def test_every_architecture_opens_and_generates_with_both(tiny: dict[str, Path], name: str, backend: str) -> None:
    with Engine.open(tiny[name], backend=backend) as engine:
        assert engine.backend_name == backend
        assert engine.config.architecture == name
        assert engine.tokenizer.n_vocab == engine.config.n_vocab
        assert engine.metadata["general.name"] == f"tiny {name}"
        ids = list(engine.session(64).generate([1, 5, 9], SamplingParams(seed=1), max_tokens=8))
        assert len(ids) == 8 and all(0 <= i < engine.config.n_vocab for i in ids)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
def test_the_reference_does_not_care_how_a_text_reaches_its_pages(tiny: dict[str, Path], cache_type: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 400, 150).tolist()
    with Engine.open(tiny["llama"], backend="reference", cache_type=cache_type) as engine:
        whole, pieces = engine.session(200), engine.session(200)
        expected = whole.eval(tokens)
        for start in range(0, 150, 50):
            last = pieces.eval(tokens[start : start + 50])
        np.testing.assert_allclose(last, expected, atol=1e-3)
        data = whole.save()
        pieces.load(data)
        np.testing.assert_array_equal(pieces.eval([3]), whole.eval([3]))


def test_without_a_compiled_core_auto_takes_the_reference_and_says_so(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native_backend, "_native", None)
    with Engine.open(tiny["phi3"]) as engine:
        assert (engine.backend_name, engine.kernel_set) == ("reference", "numpy")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "slow" in shown.err
    with pytest.raises(ArgumentError, match="no compiled core"):
        Engine.open(tiny["phi3"], backend="native")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"cache_type": "q4_0"}, "cache_type is 'q4_0'"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"n_threads": 1.5}, "n_threads is 1.5"),
        ({"n_threads_batch": 1000}, "n_threads_batch is 1000"),
        ({"backend": "reference", "kernels": "avx2"}, "kernels is 'avx2'"),
        pytest.param({"kernels": "abacus"}, "no kernel set 'abacus'", marks=needs_native),
    ],
)
def test_bad_arguments_are_named_with_value_and_hint(
    tiny: dict[str, Path], arguments: dict[str, Any], shown: str
) -> None:
    with pytest.raises(ArgumentError, match=shown) as caught:
        Engine.open(tiny["phi3"], **arguments)
    assert caught.value.hint


def test_a_missing_file_is_a_plain_error(tmp_path: Path) -> None:
    for call in (Engine.open, lambda path: memory_estimate(path, 64)):
        with pytest.raises(PhialError, match=r"none\.gguf"):
            call(tmp_path / "none.gguf")


def test_fingerprints_tell_files_of_one_shape_apart(tmp_path: Path) -> None:
    prints = []
    for seed in (1, 1, 2):
        with read_gguf(write_tiny(tmp_path / f"{len(prints)}.gguf", seed=seed)) as file:
            prints.append(model_fingerprint(file, read_config(file)))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_of_a_differently_trained_model_is_refused(tmp_path: Path, backend: str) -> None:
    first, second = (Engine.open(write_tiny(tmp_path / f"{seed}.gguf", seed=seed), backend=backend) for seed in (1, 2))
    with first, second:
        session = first.session(64)
        session.eval([1, 2, 3])
        with pytest.raises(PhialError, match="saved session has the model"):
            second.session(64).load(session.save())


def topology(root: Path, siblings: dict[int, str]) -> Path:
    for cpu, line in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(line + "\n")
    return root


@pytest.mark.parametrize(
    ("allowed", "limit", "cores"),
    [
        ({0, 1, 2, 3}, None, 2),  # two cores of two threads
        ({0, 2}, None, 1),
        ({0, 1}, None, 2),
        ({0, 1, 2, 3}, "max 100000", 2),
        ({0, 1, 2, 3}, "150000 100000", 1),
        ({0, 1, 2, 3}, "50000 100000", 1),
        ({7}, None, 1),  # a processor without topology
    ],
)
def test_threads_default_to_the_physical_cores_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], limit: str | None, cores: int
) -> None:
    cpus = topology(tmp_path / "cpu", {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: allowed, raising=False)
    assert available_cores(cpus, tmp_path / "cpu.max") == cores


def write_random(path: Path, kind: GGMLType, width: int = 256, n_layer: int = 2, context: int = 4096) -> Path:
    """A llama of random blocks, without a quantiser: quick to write at any size."""
    n_vocab, rng = len(vocabulary()[0]), np.random.default_rng(0)
    shapes = {"token_embd": (n_vocab, width), "output_norm": (width,), "output": (n_vocab, width)}
    for i in range(n_layer):
        layer = {"attn_norm": (width,), "ffn_norm": (width,), "ffn_down": (width, 2 * width)}
        layer |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
        layer |= dict.fromkeys(("ffn_gate", "ffn_up"), (2 * width, width))
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    tensors = []
    for name, shape in shapes.items():
        stored = kind if len(shape) == 2 else GGMLType.F32
        data = random_blocks(stored, shape, rng) if len(shape) == 2 else np.ones(shape, np.float32).view(np.uint8)
        tensors.append((f"{name}.weight", shape, stored, data))
    sizes = {
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "block_count": n_layer,
        "attention.head_count": width // 64,
        "attention.head_count_kv": width // 64,
        "context_length": context,
    }
    write_gguf(path, metadata("llama") | {f"llama.{key}": value for key, value in sizes.items()}, tensors)
    return path


@needs_native
@pytest.mark.parametrize("kind", list(GGMLType), ids=lambda kind: kind.name)
def test_the_estimate_of_weights_and_cache_is_what_the_core_takes(tmp_path: Path, kind: GGMLType) -> None:
    path = write_random(tmp_path / "random.gguf", kind)
    for cache_type in ("f16", "bf16", "q8_0"):
        with Engine.open(path, cache_type=cache_type) as engine:
            estimate = memory_estimate(path, 130, cache_type)
            assert estimate.weights == engine._backend.n_bytes  # type: ignore[union-attr]
            assert estimate.cache == 3 * engine.pool.store.page_bytes  # 130 tokens: three pages of 64


@needs_native
def test_the_estimate_counts_both_halves_of_a_fused_matrix(tiny: dict[str, Path]) -> None:
    with Engine.open(tiny["phi3"]) as engine:
        assert memory_estimate(tiny["phi3"], 64).weights == engine._backend.n_bytes  # type: ignore[union-attr]


FULL_CONTEXT = """
import json, sys
from phial.engine.engine import Engine
path, n_ctx, cache_type, backend = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
with Engine.open(path, cache_type=cache_type, backend=backend, n_threads=2) as engine:
    session = engine.session(n_ctx)
    session.eval([i % 400 for i in range(n_ctx)])
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measured_peak(path: Path, n_ctx: int, cache_type: str, backend: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FULL_CONTEXT, str(path), str(n_ctx), cache_type, backend],
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
        env=dict(os.environ),
    )
    return int(json.loads(done.stdout))


linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")


@needs_native
@linux_only
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(smollm2: Path, cache_type: str) -> None:
    estimate = memory_estimate(smollm2, 1024, cache_type, n_threads=2).total
    assert abs(estimate / measured_peak(smollm2, 1024, cache_type, "native") - 1) < 0.1


@needs_native
@linux_only
@pytest.mark.parametrize(("kind", "n_ctx"), [(GGMLType.Q4_K, 256), (GGMLType.F16, 64), (GGMLType.Q4_0, 2000)])
def test_the_estimate_holds_for_larger_random_files(tmp_path: Path, kind: GGMLType, n_ctx: int) -> None:
    path = write_random(tmp_path / "random.gguf", kind, width=1024, n_layer=12)
    estimate = memory_estimate(path, n_ctx, n_threads=2).total
    assert abs(estimate / measured_peak(path, n_ctx, "f16", "native") - 1) < 0.1


@linux_only
def test_the_estimate_holds_for_the_reference(tmp_path: Path) -> None:
    path = write_random(tmp_path / "random.gguf", GGMLType.Q8_0, width=1024, n_layer=4)
    estimate = memory_estimate(path, 64, backend="reference", n_threads=2).total
    assert abs(estimate / measured_peak(path, 64, "f16", "reference") - 1) < 0.1


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [((0,), "n_ctx is 0"), ((64, "f32"), "cache_type is 'f32'"), ((64, "f16", "cuda"), "backend is 'cuda'")],
)
def test_a_bad_estimate_request_is_refused(tiny: dict[str, Path], arguments: tuple[Any, ...], shown: str) -> None:
    with pytest.raises(ArgumentError, match=shown):
        memory_estimate(tiny["phi3"], *arguments[:2], **({"backend": arguments[2]} if len(arguments) > 2 else {}))


def test_too_little_memory_is_said_before_loading(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_module, "available_memory", lambda: 30 << 20)
    Engine.open(tiny["phi3"]).close()
    assert "0.03 GiB" in capsys.readouterr().err
    monkeypatch.setattr(engine_module, "available_memory", lambda: 1 << 40)
    Engine.open(tiny["phi3"]).close()
    assert capsys.readouterr().err == ""


@linux_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_loads_and_closes_stay_flat(tmp_path: Path, backend: str) -> None:
    path = write_random(tmp_path / "random.gguf", GGMLType.Q4_0, width=512 if backend == "native" else 256)

    def cycle() -> None:
        with Engine.open(path, backend=backend, n_threads=2) as engine:
            engine.session(256).eval([1, 2, 3])

    sizes = []
    for i in range(100):
        cycle()
        if i % 10 == 9:
            gc.collect()
            sizes.append(resident())
    assert sizes[-1] - sizes[1] < 2 << 20, [size >> 10 for size in sizes]  # one model's weights are about 3 MB


@needs_native
@linux_only
def test_close_frees_weights_and_pages_though_sessions_are_still_referred_to(tmp_path: Path) -> None:
    path = write_random(tmp_path / "random.gguf", GGMLType.Q8_0, width=1024, n_layer=8)
    engine = Engine.open(path)
    session = engine.session(512)
    session.eval([1] * 512)
    held = memory_estimate(path, 512)
    before = resident()
    engine.close()
    assert before - resident() > 0.9 * (held.weights + held.cache)
    with pytest.raises(PhialError, match="closed"):
        session.eval([1])
