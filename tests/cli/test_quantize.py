"""`phial quantize`: what is written, shown and drawn, a calibration that goes on, and every mistake in two lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_models import write_tiny

from phial import threads
from phial.cli import calibrate as calibrating
from phial.engine.engine import Engine
from phial.eval.windows import plan_windows
from phial.gguf import imatrix
from phial.gguf.blocks import GGMLType
from phial.gguf.container import read_gguf, write_gguf

GOLDEN = Path(__file__).parents[1] / "golden"

TEXT = "".join(f"once upon a time there was a {word}, and it was {i}.\n" for i, word in enumerate(["hat", "dog"] * 12))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("source") / "f16.gguf", "llama", GGMLType.F16))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two threads wait for each other at every barrier of these tiny models."""
    monkeypatch.setattr(threads, "available_cores", lambda: 1)


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    return "text.txt"


def test_the_file_is_written_and_the_errors_shown_on_stderr(invoke, source, tmp_path) -> None:
    done = invoke("quantize", source, "q.gguf", "--type", "q4_k_m")
    assert (done.status, done.out) == (0, "")
    rows = [line.split() for line in done.err.splitlines()]
    assert ["TENSOR", "TYPE", "BITS", "RMSE", "%", "OF", "RMS"] in rows
    assert sum(row[-1:] == ["*"] for row in rows) == 5
    assert done.err.splitlines()[-1].startswith("wrote q.gguf: Q4_K_M, ")
    with read_gguf(tmp_path / "q.gguf") as file:
        assert file.tensors["blk.0.ffn_up.weight"].type == GGMLType.Q4_K
        assert file.tensors["output.weight"].type == GGMLType.Q6_K


def test_json_has_the_same_for_programs(invoke, source, tmp_path) -> None:
    found = json.loads(invoke("quantize", source, "q.gguf", "--type", "Q4_K_S", "--output-type", "q8_0", "--json").out)
    assert found["bytes"] == (tmp_path / "q.gguf").stat().st_size and found["matrix"] is None
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["output.weight"]["type"] == "Q8_0" and by_name["output.weight"]["bits_per_weight"] == 8.5
    assert sum(tensor["worst"] for tensor in found["tensors"]) == 5
    largest = max(found["tensors"], key=lambda tensor: tensor["relative_rmse"])
    assert largest["worst"] and 0.01 < largest["relative_rmse"] < 0.2


def test_a_dry_run_says_types_and_size_and_writes_nothing(invoke, source, tmp_path) -> None:
    dry = ["quantize", source, "q.gguf", "--type", "Q4_0", "--embedding-type", "F16", "--dry-run"]
    shown = invoke(*dry)
    planned = json.loads(invoke(*dry, "--json").out)
    assert list(tmp_path.iterdir()) == []
    types = {tensor["name"]: tensor["type"] for tensor in planned["tensors"]}
    assert (types["token_embd.weight"], types["output.weight"], types["output_norm.weight"]) == ("F16", "Q6_K", "F32")
    assert f"{planned['bytes'] / 1e6:,.1f} MB" in shown.out.splitlines()[-1]
    assert ["blk.0.ffn_down.weight", "256", "x", "512", "F16", "Q4_0", "73,728"] in [
        line.split() for line in shown.out.splitlines()
    ]
    invoke(*[argument for argument in dry if argument != "--dry-run"])
    assert (tmp_path / "q.gguf").stat().st_size == planned["bytes"]


def test_calibrating_measures_saves_and_uses_the_matrix_of_the_text(invoke, source, text, tmp_path) -> None:
    done = invoke("quantize", source, "q.gguf", "--calibrate", text, "--ctx", "64", "--save-imatrix", "m.gguf")
    assert done.status == 0 and "weighted by the importance matrix" in done.err
    with Engine.open(source) as engine:
        ids = engine.tokenizer.encode(TEXT)
        windows = plan_windows(len(ids), 64, bos=engine.tokenizer.bos_id)
        expected = [engine.input_squares(windows.tokens(ids, i)) for i in range(windows.count)]
    matrix = imatrix.load(tmp_path / "m.gguf")
    assert (matrix.datasets, matrix.chunk_size, matrix.chunk_count) == ([text], 64, windows.count)
    for name, sums in matrix.sums.items():
        np.testing.assert_allclose(sums, sum(chunk[name] for chunk in expected), rtol=1e-5, err_msg=name)
    with read_gguf(tmp_path / "q.gguf") as file:
        kept = {key: value for key, value in file.metadata.items() if key.startswith("quantize.")}
    assert kept == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": text,
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": windows.count,
    }
    again = invoke("quantize", source, "again.gguf", "--imatrix", "m.gguf")
    assert again.status == 0
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "q.gguf").read_bytes()


def test_a_stopped_calibration_goes_on_and_ends_the_same(invoke, source, text, tmp_path, monkeypatch) -> None:
    usual = ["quantize", source, "q.gguf", "--calibrate", text, "--ctx", "64", "--save-imatrix", "m.gguf"]
    calls, real = 0, Engine.input_squares

    def stopping(self, tokens):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, tokens)

    monkeypatch.setattr(Engine, "input_squares", stopping)
    stopped = invoke(*usual)
    assert stopped.status == 130 and "stopped after 2 of" in stopped.err and "kept in m.gguf.partial" in stopped.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf.partial", "text.txt"]
    other = invoke(*[a if a != "64" else "32" for a in usual])
    assert other.status == 2 and "belongs to another calibration" in other.err
    resumed = invoke(*usual)
    assert resumed.status == 0 and "going on from m.gguf.partial: 2 of" in resumed.err
    assert not (tmp_path / "m.gguf.partial").exists()
    invoke(*[argument if argument != "m.gguf" else "whole.gguf" for argument in usual])
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_the_sums_so_far_are_saved_now_and_then(invoke, source, text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(calibrating, "_SAVE_EVERY", 0.0)
    kept, real = [], imatrix.save

    def watching(matrix, path):
        kept.append((Path(path).name, matrix.chunk_count))
        real(matrix, path)

    monkeypatch.setattr(imatrix, "save", watching)
    invoke("quantize", source, "q.gguf", "--calibrate", text, "--ctx", "64", "--save-imatrix", "m.gguf")
    assert kept[:2] == [("m.gguf.partial", 1), ("m.gguf.partial", 2)] and kept[-1][0] == "m.gguf"


def test_a_folder_is_calibrated_without_leaving_its_conversion(invoke, text, tmp_path) -> None:
    hf_folders = pytest.importorskip("tests.gguf.hf_folders", reason="transformers writes the folders")
    hf_folders.make_folder(tmp_path / "model", "llama")
    done = invoke("quantize", "model", "q.gguf", "--type", "Q4_0", "--calibrate", text, "--ctx", "32")
    assert done.status == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "q.gguf", "text.txt"]


def test_the_report_is_a_picture(invoke, source, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    done = invoke("quantize", source, "q.gguf", "--report", "r.png")
    assert done.status == 0 and "drew r.png" in done.err
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_report_is_refused_before_any_work(invoke, source, tmp_path, monkeypatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = invoke("quantize", source, "q.gguf", "--report", "r.png")
    assert done.status == 2 and "needs matplotlib" in done.err and "phial[plot]" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--type", "Q4_K"], "type 'Q4_K' is no recipe"),
        (["--output-type", "IQ1_S"], "there is no tensor type 'IQ1_S'"),
        (["--calibrate", "text.txt", "--ctx", "4096"], "tokens, one window needs 4096"),
        (["--calibrate", "text.txt", "--ctx", "2"], "a window of 2 tokens is too small"),
        (["--calibrate", "missing.txt"], "No such file or directory: missing.txt"),
        (["--calibrate", "text.txt", "--imatrix", "m"], "--calibrate and --imatrix exclude each other"),
        (["--save-imatrix", "m"], "--save-imatrix has nothing to save"),
        (["--calibrate", "text.txt", "--save-imatrix", "text.txt"], "text.txt exists already"),
        (["--calibrate", "text.txt", "--save-imatrix", "no/m"], "no is no folder"),
        (["--imatrix", "text.txt"], "magic is b'once'"),
        (["--report", "r.pdf"], "--report r.pdf is no .png file"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_a_mistake_is_two_lines_and_no_file(invoke, source, text, tmp_path, arguments, message) -> None:
    done = invoke("quantize", source, "q.gguf", *arguments)
    assert (done.status, done.out) == (2, "")
    lines = [line for line in done.err.splitlines() if not line.startswith(("calibrating", "quantising"))]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"] and message in lines[0], done.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_the_target_is_no_folder_and_not_the_source(invoke, source, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder is a folder" in invoke("quantize", source, "folder").err
    assert "no is no folder" in invoke("quantize", source, "no/q.gguf").err
    (tmp_path / "link.gguf").symlink_to(source)
    before = Path(source).read_bytes()
    for same in (source, "link.gguf"):
        done = invoke("quantize", source, same)
        assert done.status == 2 and "is the source itself" in done.err
    assert Path(source).read_bytes() == before


def test_a_quantised_source_needs_a_word(invoke, tmp_path) -> None:
    write_tiny(tmp_path / "q4.gguf", "llama", GGMLType.Q4_0)
    done = invoke("quantize", "q4.gguf", "q.gguf")
    assert done.status == 2 and "is Q4_0 already" in done.err and "--allow-requantize" in done.err
    assert invoke("quantize", "q4.gguf", "q.gguf", "--allow-requantize").status == 0


def wide_copy(path: Path, target: Path) -> None:
    """The model with every weight as the F32 that the file means."""
    with read_gguf(path) as file:
        tensors = [(n, i.shape, GGMLType.F32, file.dequantized(n).view(np.uint8)) for n, i in file.tensors.items()]
        write_gguf(target, file.typed_metadata(), tensors)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_model_keeps_its_perplexity_and_a_matrix_helps_where_bits_are_few(invoke, smollm2, tmp_path) -> None:
    essay = gzip.decompress((GOLDEN / "subjection-of-women.txt.gz").read_bytes()).decode()
    (tmp_path / "first.txt").write_text(
        essay[: len(essay) // 2], "utf-8"
    )  # calibrated on one half, measured on the other
    (tmp_path / "second.txt").write_text(essay[len(essay) // 2 :], "utf-8")
    wide_copy(smollm2, tmp_path / "f32.gguf")
    usual = ["perplexity", "second.txt", "--ctx", "256", "--windows", "16"]
    assert invoke(*usual, "-m", "f32.gguf", "--save-base", "base").status == 0
    found = {}
    first = ["--calibrate", "first.txt", "--ctx", "256", "--save-imatrix", "m.gguf"]
    for name, options in {
        "Q8_0": first, "Q4_K_M": ["--imatrix", "m.gguf"], "Q3_K_M": ["--imatrix", "m.gguf"], "Q3_K_M plain": [],
    }.items():  # fmt: skip
        assert invoke("quantize", "f32.gguf", "q.gguf", "--type", name.split()[0], *options).status == 0
        found[name] = json.loads(invoke(*usual, "-m", "q.gguf", "--kld", "base", "--json").out)
    change = {name: values["log_ratio"]["value"] for name, values in found.items()}
    divergence = {name: values["kl"]["value"] for name, values in found.items()}
    assert abs(change["Q8_0"]) < 0.005
    assert change["Q4_K_M"] < 0.05  # the quality gate: less than 5 %
    assert divergence["Q8_0"] < divergence["Q4_K_M"] < divergence["Q3_K_M"] < 0.9 * divergence["Q3_K_M plain"]
