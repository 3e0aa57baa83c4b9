"""Prepared files: the same bits from mapped, copied and repacked tiles, and no file that does not fit is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_models import ARCHITECTURES, write_tiny

from phial.engine import native_backend, prepared
from phial.engine.engine import Engine
from phial.engine.prepared import MAGIC, prepare, prepared_path
from phial.errors import PhialError
from phial.gguf.blocks import GGMLType, quantize
from phial.gguf.container import read_gguf, write_gguf

pytestmark = pytest.mark.skipif(not native_backend.is_available(), reason="the compiled core is not built")
PROMPT = list(range(3, 40))
Table = dict[str, Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "phi3")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the matrices of an engine came into the core, as engines are opened."""
    ways: list[str] = []

    class Model(native_backend._native.Model):  # type: ignore[misc]
        def set_tensor(self, name: str, layer: int, *rest: Any, **more: Any) -> None:
            if rest[1] > 1:
                ways.append("copied" if more else "repacked")
            super().set_tensor(name, layer, *rest, **more)

        def map_tensor(self, *tensor: Any) -> None:
            ways.append("mapped")
            super().map_tensor(*tensor)

    monkeypatch.setattr(native_backend._native, "Model", Model)
    return ways


def logits(model: Path, **settings: Any) -> np.ndarray:
    with Engine.open(model, backend="native", **settings) as engine, engine.session(64) as session:
        return np.concatenate([session.eval(PROMPT, all_logits=True), session.eval([5], all_logits=True)])


def of_type(path: Path, model: Path, kind: GGMLType) -> Path:
    """A copy of a tiny model with its matrices of another type."""
    with read_gguf(model) as file:
        tensors = []
        for name, info in file.tensors.items():
            type = kind if len(info.shape) == 2 else info.type
            tensors.append((name, info.shape, type, quantize(file.dequantized(name), type)))
        write_gguf(path, file.metadata, tensors)
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mapped_copied_and_repacked_weights_give_the_same_bits(
    tmp_path: Path, architecture: str, packed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", architecture)
    plain = logits(model)
    assert set(packed) == {"repacked"}
    packed.clear()
    assert prepare(model) == (prepared_path(model), True)
    np.testing.assert_array_equal(logits(model), plain)
    assert set(packed) == {"mapped"}
    packed.clear()
    monkeypatch.setattr(prepared, "_in_huge_pages", lambda mapping: False)
    np.testing.assert_array_equal(logits(model), plain)
    assert set(packed) == {"copied"}
    packed.clear()
    np.testing.assert_array_equal(logits(model, prepared=False), plain)
    assert set(packed) == {"repacked"}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_every_type(tmp_path: Path, model: Path, kind: str) -> None:
    other = of_type(tmp_path / "other.gguf", model, GGMLType[kind])
    plain = logits(other)
    prepare(other)
    np.testing.assert_array_equal(logits(other), plain)


def test_the_core_keeps_mapped_weights_alive(model: Path) -> None:
    plain = logits(model)
    prepare(model)
    with Engine.open(model, backend="native") as engine, engine.session(64) as session:
        prepared_path(model).unlink()
        np.testing.assert_array_equal(session.eval(PROMPT, all_logits=True), plain[:-1])


def test_preparing_again_checks_every_byte_and_writes_what_is_damaged(model: Path) -> None:
    path, written = prepare(model)
    whole = path.read_bytes()
    assert written and prepare(model) == (path, False)
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    assert prepare(model) == (path, True)
    assert path.read_bytes() == whole
    assert [other.name for other in model.parent.iterdir() if ".part" in other.name] == []


def refused(model: Path, capsys: Any, why: str) -> None:
    """The prepared file is passed over, with one line, and the answer is the model's."""
    assert prepared_path(model).exists()
    capsys.readouterr()
    plain = logits(model, prepared=False)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(logits(model), plain)
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1 and "phial pull --prepare" in said


def test_a_file_of_another_version_of_the_model_is_not_used(model: Path, tmp_path: Path, capsys: Any) -> None:
    prepare(model)
    os.utime(model, (1, 1))
    refused(model, capsys, "another version of the model")
    assert prepare(model)[1]
    other = of_type(tmp_path / "other.gguf", model, GGMLType.Q8_0)
    shutil.copyfile(prepared_path(model), prepared_path(other))
    refused(other, capsys, "another version of the model")


def test_a_file_laid_out_by_another_build_is_not_used(model: Path, capsys: Any, monkeypatch: Any) -> None:
    prepare(model)
    monkeypatch.setattr(native_backend, "packing_digest", lambda: "other")
    refused(model, capsys, "or of phial")


def cut(n: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-n]


@pytest.mark.parametrize(
    "damage",
    [cut(1), cut(100), cut(5000), lambda data: b"", lambda data: b"x" * 48, lambda data: data[:-8] + b"PHIALPK9"],
)
def test_a_file_cut_short_is_not_used(model: Path, capsys: Any, damage: Callable[[bytes], bytes]) -> None:
    path = prepare(model)[0]
    path.write_bytes(damage(path.read_bytes()))
    refused(model, capsys, "")


def test_a_bit_of_the_table_is_noticed(model: Path, capsys: Any) -> None:
    path = prepare(model)[0]
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    refused(model, capsys, "damaged")


def crafted(table: Table, **changes: Any) -> Table:
    return {**table, "matrices": {**table["matrices"], "output.weight": changes["output"]}}


HOSTILE: dict[str, Callable[[Table], Any]] = {
    "past the end": lambda t: crafted(t, output=[1 << 40, t["matrices"]["output.weight"][1]]),
    "at the end": lambda t: crafted(t, output=[(1 << 20) * 64, t["matrices"]["output.weight"][1]]),
    "negative": lambda t: crafted(t, output=[-64, t["matrices"]["output.weight"][1]]),
    "not on a line": lambda t: crafted(t, output=[32, t["matrices"]["output.weight"][1]]),
    "too small": lambda t: crafted(t, output=[0, 64]),
    "too large": lambda t: crafted(t, output=[0, t["matrices"]["output.weight"][1] + 64]),
    "three numbers": lambda t: crafted(t, output=[0, 64, 64]),
    "text": lambda t: crafted(t, output=["a", "b"]),
    "null": lambda t: crafted(t, output=None),
    "missing": lambda t: {**t, "matrices": {k: v for k, v in t["matrices"].items() if k != "output.weight"}},
    "no matrices": lambda t: {k: v for k, v in t.items() if k != "matrices"},
    "a list": lambda t: [t],
    "a number": lambda t: 7,
    "deep": lambda t: None,
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_table_with_a_right_digest_and_wrong_places_is_not_used(model: Path, capsys: Any, how: str) -> None:
    path = prepare(model)[0]
    data = path.read_bytes()
    length, _, _ = prepared._TAIL.unpack(data[-prepared._TAIL.size :])
    end = len(data) - prepared._TAIL.size - length
    table = HOSTILE[how](json.loads(data[end : end + length]))
    text = json.dumps(table).encode() if how != "deep" else b"[" * 100_000
    path.write_bytes(data[:end] + text + prepared._TAIL.pack(len(text), hashlib.sha256(text).digest(), MAGIC))
    refused(model, capsys, "")


def test_the_core_refuses_tiles_that_do_not_fit() -> None:
    native = native_backend._native
    shape = {"n_vocab": 32, "n_embd": 32, "n_layer": 1, "n_head": 1, "n_head_kv": 1, "head_dim": 32, "n_ff": 32}
    core = native.Model(**shape, rms_norm_eps=1e-5, rope_dim=32, rope_interleaved=False, sliding_window=0, n_threads=1)
    n_bytes = native.packed_bytes(0, 32, 32)
    room = np.zeros(n_bytes + 128, np.uint8)
    start = -room.ctypes.data % 64
    core.map_tensor("token_embd", -1, 0, 32, 32, room[start : start + n_bytes])
    for first, last in ((start + 4, start + 4 + n_bytes), (start, start + n_bytes - 64), (start, start + n_bytes + 64)):
        with pytest.raises(ValueError, match="token_embd"):
            core.map_tensor("token_embd", -1, 0, 32, 32, room[first:last])
    with pytest.raises(ValueError, match="token_embd"):
        core.set_tensor("token_embd", -1, 0, 32, 32, room[start : start + n_bytes + 64], packed=True)


def test_several_prepare_and_open_at_once(model: Path) -> None:
    plain = logits(model)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                prepare(model)
                np.testing.assert_array_equal(logits(model), plain)
                prepared_path(model).unlink(missing_ok=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_two_processes_share_a_file(model: Path) -> None:
    plain = logits(model)
    prepare(model)
    code = (
        "import sys; from phial.engine.engine import Engine; engine = Engine.open(sys.argv[1], backend='native'); "
        f"print(engine.session(64).eval({PROMPT})[:8].tobytes().hex())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == [plain[-2][:8].tobytes().hex()] * 2


def test_no_room_and_no_model_are_errors_with_a_hint(model: Path, monkeypatch: Any) -> None:
    with pytest.raises(PhialError):
        prepare(model.with_name("none.gguf"))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "_write_all", full)
    with pytest.raises(PhialError, match="No space left"):
        prepare(model)
    assert [path.name for path in model.parent.iterdir()] == ["tiny.gguf"]
