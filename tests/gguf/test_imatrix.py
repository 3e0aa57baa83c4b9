"""The importance matrix's file: what is written is read, llama.cpp's layout, and every impossible number refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phial.errors import FormatError, PhialError
from phial.gguf import imatrix
from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import write_gguf
from phial.gguf.imatrix import ImportanceMatrix

NAME = "blk.0.attn_q.weight"


def made(chunks: int = 3, columns: int = 8) -> ImportanceMatrix:
    matrix = ImportanceMatrix(["text.txt"], 16)
    rng = np.random.default_rng(2)
    for _ in range(chunks):
        matrix.add({NAME: rng.random(columns), "output.weight": 1e3 * rng.random(columns)})
    return matrix


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    matrix = made()
    matrix.run = "abc"
    imatrix.save(matrix, tmp_path / "m.gguf")
    loaded = imatrix.load(tmp_path / "m.gguf")
    assert (loaded.datasets, loaded.chunk_size, loaded.chunk_count, loaded.run) == (["text.txt"], 16, 3, "abc")
    assert loaded.counts == {NAME: 48.0, "output.weight": 48.0}
    for name, sums in matrix.sums.items():
        np.testing.assert_array_equal(loaded.sums[name], sums)
        np.testing.assert_allclose(loaded.weights(name), sums / 48, rtol=1e-6)


def test_the_file_has_the_keys_and_tensors_of_llama_cpp(tmp_path: Path) -> None:
    imatrix.save(made(), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    value = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF")}
    assert value == {
        "general.type": "imatrix",
        gguf.Keys.IMatrix.DATASETS: ["text.txt"],
        gguf.Keys.IMatrix.CHUNK_COUNT: 3,
        gguf.Keys.IMatrix.CHUNK_SIZE: 16,
    }
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes == {
        f"{NAME}.in_sum2": [8], f"{NAME}.counts": [1], "output.weight.in_sum2": [8], "output.weight.counts": [1],
    }  # fmt: skip


def test_a_column_that_no_token_reached_has_equal_weights() -> None:
    matrix = ImportanceMatrix([], 16, sums={NAME: np.zeros(4, np.float32)}, counts={NAME: 0})
    np.testing.assert_array_equal(matrix.weights(NAME), 1)


class Model:
    """Inputs that follow from the tokens."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.calls = factor, 0

    def input_squares(self, tokens: Any) -> dict[str, np.ndarray]:
        self.calls += 1
        return {NAME: self.factor * np.square(np.array(tokens, float)) * np.pi}


CHUNKS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]


def test_a_calibration_that_stops_and_goes_on_has_the_same_bits(tmp_path: Path) -> None:
    whole = ImportanceMatrix([], 3)
    assert len(list(imatrix.calibrate(Model(), CHUNKS, whole))) == 4
    first = ImportanceMatrix([], 3)
    steps = imatrix.calibrate(Model(), CHUNKS, first)
    next(steps), next(steps)
    imatrix.save(first, tmp_path / "partial")
    rest, model = imatrix.load(tmp_path / "partial"), Model()
    list(imatrix.calibrate(model, CHUNKS, rest))
    assert model.calls == 2 and rest.chunk_count == 4
    np.testing.assert_array_equal(rest.sums[NAME], whole.sums[NAME])
    assert rest.counts == whole.counts == {NAME: 12}


def test_inputs_that_are_not_finite_are_refused_with_their_weight() -> None:
    with pytest.raises(FormatError, match=f"inputs of {NAME} are not finite"):
        list(imatrix.calibrate(Model(np.nan), CHUNKS, ImportanceMatrix([], 3)))


def stored(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    usual = {"general.type": "imatrix", "imatrix.datasets": ["t"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 4}
    kept = {key: value for key, value in (usual | metadata).items() if value is not None}
    listed = [
        (name, values.shape, GGMLType.F32, quantize(values.astype(np.float32), GGMLType.F32))
        for name, values in tensors.items()
    ]
    write_gguf(path, kept, listed)
    return path


ONES = {f"{NAME}.in_sum2": np.ones((1, 8)), f"{NAME}.counts": np.ones((1, 1))}  # llama.cpp's shapes


def test_the_shapes_of_llama_cpp_are_read(tmp_path: Path) -> None:
    assert imatrix.load(stored(tmp_path / "m", {}, ONES)).sums[NAME].shape == (8,)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.type": "model"}, ONES, "is no importance matrix: general.type is 'model'"),
        ({"general.type": None}, ONES, "general.type is None"),
        ({"imatrix.chunk_count": None}, ONES, "imatrix.chunk_count is None, not int"),
        ({"imatrix.datasets": "t"}, ONES, "imatrix.datasets is 't', not list"),
        ({}, {f"{NAME}.in_sum2": np.ones(8)}, "has sums but no counts"),
        ({}, {"other": np.ones(8)}, "holds no sums"),
        ({}, {f"{NAME}.in_sum2": -np.ones(8), f"{NAME}.counts": np.ones(1)}, "negative or infinite"),
        ({}, {f"{NAME}.in_sum2": np.full(8, np.nan), f"{NAME}.counts": np.ones(1)}, "negative or infinite"),
        ({}, {f"{NAME}.in_sum2": np.ones(8), f"{NAME}.counts": np.full(1, np.inf)}, "negative or infinite"),
        ({}, {f"{NAME}.in_sum2": np.ones((4, 8)), f"{NAME}.counts": np.ones((4, 1))}, "4 counts: matrices of experts"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(tmp_path: Path, metadata: dict, tensors: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        imatrix.load(stored(tmp_path / "m", metadata, tensors))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(b"\x10\0\0\0" * 100)
    with pytest.raises(FormatError, match="magic"):
        imatrix.load(tmp_path / "old.dat")
    with pytest.raises(PhialError, match="cannot open"):
        imatrix.load(tmp_path / "none")
