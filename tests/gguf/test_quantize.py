"""Quantising a file or folder: what is written runs, keeps its metadata, errs as reported and has the size planned."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import ARCHITECTURES, write_tiny

from phial.config import ModelConfig
from phial.engine.engine import Engine
from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf import quantize as quantizing
from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import read_gguf, write_gguf
from phial.gguf.imatrix import ImportanceMatrix
from phial.gguf.mixes import RECIPES
from phial.gguf.quantize import Source, SourceTensor, open_source, plan, with_matrix, write

MINI = ModelConfig(  # Phi-3-mini
    "phi3", 32064, 3072, 32, 32, 32, 96, 8192, 4096, 1e-5, 1e4, 96, rope_interleaved=False, sliding_window=2047
)  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {a: write_tiny(folder / f"{a}.gguf", a, GGMLType.F16) for a in ARCHITECTURES}


def made(path: Path, target: Path, recipe: str = "Q4_K_M", **options: Any) -> list[quantizing.TensorReport]:
    matrix = options.pop("matrix", None)
    with open_source(path) as source:
        chosen = plan(source, recipe, importance=matrix is not None, **options)
        return write(chosen if matrix is None else with_matrix(chosen, matrix, "m.gguf"), target)


def matrix_for(path: Path, seed: int = 1) -> ImportanceMatrix:
    """Random mean squares of very different sizes."""
    rng, matrix = np.random.default_rng(seed), ImportanceMatrix(["text.txt", "other"], 512, chunk_count=7)
    with read_gguf(path) as file:
        for name, info in file.tensors.items():
            if len(info.shape) == 2:
                matrix.sums[name] = rng.lognormal(0, 2, info.shape[1]).astype(np.float32)
                matrix.counts[name] = 512 * 7
    return matrix


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_runs_and_says_nearly_the_same(tmp_path, sources, architecture: str, recipe: str) -> None:
    target = tmp_path / "q.gguf"
    reports = made(sources[architecture], target, recipe)
    tokens = list(range(3, 40))
    logits = []
    for path in (sources[architecture], target):
        with Engine.open(path, n_threads=1) as engine, engine.session(64) as session:
            logits.append(session.eval(tokens))
    # Errors of independent matrices add as squares; 3 % are the core's 8-bit activations (test_native.py).
    expected = math.hypot(0.03, *(report.relative for report in reports))
    assert np.std(logits[0] - logits[1]) < 2 * expected * np.std(logits[0])


def test_metadata_is_copied_and_only_what_it_says_of_types_changes(tmp_path, sources) -> None:
    matrix = matrix_for(sources["phi3"])
    made(sources["phi3"], tmp_path / "plain.gguf", "Q5_K_M")
    made(tmp_path / "plain.gguf", tmp_path / "again.gguf", "Q4_K_S", matrix=matrix, allow_requantize=True)
    made(tmp_path / "again.gguf", tmp_path / "without.gguf", "Q4_0", allow_requantize=True)
    with read_gguf(sources["phi3"]) as before:
        wanted, types = before.metadata, before.value_types
    found = {}
    for name in ("plain", "again", "without"):
        with read_gguf(tmp_path / f"{name}.gguf") as after:
            found[name] = dict(after.metadata)
            assert all(after.value_types[key] == kind for key, kind in types.items())
            np.testing.assert_equal({key: after.metadata[key] for key in wanted}, wanted)
            assert list(after.tensors) == list(before.tensors)
    more = {name: {k: v for k, v in metadata.items() if k not in wanted} for name, metadata in found.items()}
    assert more["plain"] == {"general.quantization_version": 2, "general.file_type": 17}
    assert more["again"] == {
        "general.quantization_version": 2,
        "general.file_type": 14,
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": 7,
    }
    assert more["without"] == {"general.quantization_version": 2, "general.file_type": 2}  # an old matrix's keys go


def test_the_errors_reported_are_those_of_what_is_in_the_file(tmp_path, sources) -> None:
    matrix = matrix_for(sources["llama"])
    for name, options in (("plain", {}), ("weighted", {"matrix": matrix})):
        reports = made(sources["llama"], tmp_path / name, "Q4_K_M", **options)
        with read_gguf(sources["llama"]) as before, read_gguf(tmp_path / name) as after:
            assert [r.name for r in reports] == [n for n, i in before.tensors.items() if len(i.shape) == 2]
            for report in reports:
                x, y = before.dequantized(report.name).astype(float), after.dequantized(report.name).astype(float)
                w = np.broadcast_to(matrix.weights(report.name) if options else np.float32(1), x.shape).astype(float)
                assert report.rmse == pytest.approx(math.sqrt(np.average((x - y) ** 2, weights=w)), rel=1e-4)
                assert report.relative == pytest.approx(report.rmse / math.sqrt(np.average(x * x, weights=w)), rel=1e-4)
                assert (report.type, report.n_bytes) == (after.tensors[report.name].type, len(after.data(report.name)))
                assert report.bits == 8 * report.n_bytes / x.size


def test_the_size_planned_is_the_size_written(tmp_path, sources) -> None:
    for recipe in RECIPES:
        with open_source(sources["qwen2"]) as source:
            chosen = plan(source, recipe)
            write(chosen, tmp_path / "q.gguf")
            assert chosen.size == (tmp_path / "q.gguf").stat().st_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_phi_3_mini_has_the_size_of_the_formula_within_three_percent(recipe: str) -> None:
    """bytes = parameters * (b + s/B) / 8: code bits, scale bits and block size of each type; no data needed."""
    bits = {  # b, s, B; K blocks: their super-block's scales and minimums together
        "Q4_0": (4, 16, 32), "Q4_1": (4, 32, 32), "Q8_0": (8, 16, 32), "Q3_K": (3, 112, 256), "Q4_K": (4, 128, 256),
        "Q5_K": (5, 128, 256), "Q6_K": (6, 144, 256), "F32": (32, 0, 1),
    }  # fmt: skip
    tensors = {
        name: SourceTensor(shape, GGMLType.F32, lambda: iter([])) for name, shape in MINI.tensor_shapes().items()
    }
    assert sum(math.prod(t.shape) for t in tensors.values()) == 3_821_079_552
    chosen = plan(Source(MINI, {"tokenizer.ggml.tokens": ["token"] * 32064}, tensors), recipe)
    formula = 0.0
    for name, kind in chosen.types.items():
        b, s, block = bits[kind.name]
        formula += math.prod(tensors[name].shape) * (b + s / block) / 8
    assert chosen.size == pytest.approx(formula, rel=0.03)
    if recipe in ("Q8_0", "Q4_0", "Q4_1"):  # one type but for the output: the plain formula holds
        b, s, block = bits[recipe]
        assert chosen.size == pytest.approx(3_821_079_552 * (b + s / block) / 8, rel=0.03)


def test_a_matrix_moves_error_away_from_the_columns_it_weighs(tmp_path, sources) -> None:
    matrix = matrix_for(sources["phi3"])
    plain = {r.name: r for r in made(sources["phi3"], tmp_path / "a", "Q4_1")}
    assert all(r.relative > 0.01 for r in plain.values() if r.type == GGMLType.Q4_1)
    weighted = {r.name: r for r in made(sources["phi3"], tmp_path / "b", "Q4_1", matrix=matrix)}
    with read_gguf(sources["phi3"]) as before, read_gguf(tmp_path / "a") as unaware:
        for name, report in weighted.items():
            error = np.square(unaware.dequantized(name) - before.dequantized(name))
            measured = math.sqrt(np.average(error.mean(0), weights=matrix.weights(name)))
            assert report.rmse < 0.97 * measured or report.type != GGMLType.Q4_1, name


def test_a_block_type_that_stays_is_copied_byte_by_byte(tmp_path) -> None:
    source = write_tiny(tmp_path / "source.gguf", "llama", GGMLType.Q8_0)
    reports = made(source, tmp_path / "q.gguf", "Q8_0")
    with read_gguf(source) as before, read_gguf(tmp_path / "q.gguf") as after:
        for name in before.tensors:
            np.testing.assert_array_equal(before.data(name), after.data(name))
    assert {report.relative for report in reports} == {0.0}
    assert quantizing.worst(reports, 5) == set()


def test_a_coarse_source_is_taken_only_where_that_was_said(tmp_path) -> None:
    source = write_tiny(tmp_path / "source.gguf", "llama", GGMLType.Q4_0)
    with pytest.raises(ArgumentError, match="is Q4_0 already") as caught:
        made(source, tmp_path / "q.gguf", "Q4_K_M")
    assert "--allow-requantize" in caught.value.hint
    assert not (tmp_path / "q.gguf").exists()
    made(source, tmp_path / "q.gguf", "Q4_K_M", allow_requantize=True)
    fine = write_tiny(tmp_path / "fine.gguf", "llama", GGMLType.Q8_0)
    made(fine, tmp_path / "q.gguf", "Q4_K_M")


def test_rope_factors_and_vectors_stay_float(tmp_path, sources) -> None:
    with read_gguf(sources["phi3"]) as file:
        tensors = [(n, i.shape, i.type, file.data(n)) for n, i in file.tensors.items()]
        for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
            factors = np.linspace(1, 3, 32, dtype=np.float32)
            tensors.append((name, factors.shape, GGMLType.F32, quantize(factors, GGMLType.F32)))
        keys = {"phi3.context_length": 1024, "phi3.rope.scaling.original_context_length": 512}
        write_gguf(tmp_path / "long.gguf", file.typed_metadata() | keys, tensors)
    made(tmp_path / "long.gguf", tmp_path / "q.gguf", "Q4_0")
    with read_gguf(tmp_path / "long.gguf") as before, read_gguf(tmp_path / "q.gguf") as after:
        vectors = [name for name, info in after.tensors.items() if len(info.shape) == 1]
        assert {"rope_factors_long.weight", "rope_factors_short.weight", "output_norm.weight"} <= set(vectors)
        for name in vectors:
            assert after.tensors[name].type == GGMLType.F32
            np.testing.assert_array_equal(before.data(name), after.data(name))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])  # rows permuted; RoPE factors
def test_a_folder_gives_the_file_that_its_conversion_gives(tmp_path, architecture: str) -> None:
    hf_folders = pytest.importorskip("tests.gguf.hf_folders", reason="transformers writes the folders")
    from phial.gguf.convert import hf_to_gguf

    hf_folders.make_folder(tmp_path / "model", architecture)
    hf_to_gguf(tmp_path / "model", tmp_path / "f32.gguf", "f32")
    made(tmp_path / "model", tmp_path / "direct.gguf", "Q4_0")
    made(tmp_path / "f32.gguf", tmp_path / "detour.gguf", "Q4_0")
    with read_gguf(tmp_path / "direct.gguf") as direct, read_gguf(tmp_path / "detour.gguf") as detour:
        np.testing.assert_equal(direct.metadata, detour.metadata)
        assert direct.tensors.keys() == detour.tensors.keys()
        for name in direct.tensors:
            assert direct.tensors[name].type == detour.tensors[name].type
            np.testing.assert_array_equal(direct.data(name), detour.data(name), name)


def rewritten(path: Path, target: Path, name: str, values: np.ndarray) -> Path:
    """The file with one tensor replaced."""
    with read_gguf(path) as file:
        tensors = [
            (n, i.shape, i.type, quantize(values, i.type) if n == name else file.data(n))
            for n, i in file.tensors.items()
        ]
        write_gguf(target, file.typed_metadata(), tensors)
    return target


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_weights_that_are_not_finite_are_one_error_and_no_file(tmp_path, sources, name: str, value: float) -> None:
    with read_gguf(sources["llama"]) as file:
        values = file.dequantized(name)
    values.reshape(-1)[7] = value
    broken = rewritten(sources["llama"], tmp_path / "broken.gguf", name, values)
    with pytest.raises(FormatError, match=f"tensor {name} holds NaN or infinity"):
        made(broken, tmp_path / "q.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.gguf"}


def test_a_truncated_source_is_refused(tmp_path, sources) -> None:
    whole = sources["llama"].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(FormatError, match="cut.gguf"):
        made(tmp_path / "cut.gguf", tmp_path / "q.gguf")
    assert not (tmp_path / "q.gguf").exists()


@pytest.mark.parametrize("reason", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, sources, monkeypatch, reason: BaseException) -> None:
    (tmp_path / "q.gguf").write_text("what was there before")
    real, count = quantizing._encoded, 0

    def failing(*arguments: Any) -> Iterator[np.ndarray]:
        nonlocal count
        count += 1
        if count == 9:
            raise reason
        yield from real(*arguments)

    monkeypatch.setattr(quantizing, "_encoded", failing)
    with pytest.raises(PhialError if isinstance(reason, OSError) else KeyboardInterrupt):
        made(sources["llama"], tmp_path / "q.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]
    assert (tmp_path / "q.gguf").read_text() == "what was there before"


def test_another_models_matrix_is_refused(tmp_path, sources) -> None:
    matrix = matrix_for(sources["llama"])
    with pytest.raises(FormatError, match=r"no entry for blk.0.attn_qkv.weight"):
        made(sources["phi3"], tmp_path / "q", matrix=matrix)
    short = replace(matrix, sums=matrix.sums | {"blk.1.ffn_up.weight": np.ones(32, np.float32)})
    with pytest.raises(FormatError, match=r"has 32 columns for blk.1.ffn_up.weight, the weight has 256"):
        made(sources["llama"], tmp_path / "q", matrix=short)


def test_llama_cpps_matrices_without_an_output_are_taken(tmp_path, sources) -> None:
    matrix = matrix_for(sources["llama"])
    for name in ("output.weight", "token_embd.weight"):
        del matrix.sums[name]
    made(sources["llama"], tmp_path / "q", matrix=matrix)


def test_progress_ends_at_all_parameters(tmp_path, sources) -> None:
    calls: list[tuple[str, int, int]] = []
    with open_source(sources["llama"]) as source:
        write(plan(source, "Q8_0"), tmp_path / "q", progress=lambda *call: calls.append(call))
        total = sum(math.prod(t.shape) for t in source.tensors.values())
    assert [name for name, _, _ in calls[:-1]] == list(source.tensors) and calls[-1] == ("", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
