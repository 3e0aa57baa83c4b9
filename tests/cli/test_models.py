"""`phial pull`, `list`, `rm`, `info`: what they say of a store. How a model is fetched is tests/hub's business."""

from __future__ import annotations

import json
import platform

import numpy
import pytest
from tests.tiny_models import write_tiny

from phial import __version__, hub


@pytest.fixture
def model(tmp_path) -> hub.StoredModel:
    """A model of a store."""
    path = tmp_path / "store" / "models" / "tiny.gguf"
    return hub.StoredModel("tiny", path, 1_500_000, "ab" * 32, "MIT", "hf:a/b/tiny.gguf", "2026-01-01T00:00:00Z", True)


def test_an_empty_store_lists_nothing_and_says_how_to_fill_it(invoke, tmp_path) -> None:
    done = invoke("list")
    assert (done.status, done.out) == (0, "")
    assert str(tmp_path / "store") in done.err and "phial pull" in done.err


def test_list_has_a_line_per_model_and_json_has_all_there_is(invoke, model, monkeypatch) -> None:
    monkeypatch.setattr(hub, "list_models", lambda: [model])
    lines = invoke("list").out.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["tiny", "1.5", "MB", "MIT", str(model.path)]
    (row,) = json.loads(invoke("list", "--json").out)
    assert row == {**vars(model), "path": str(model.path)}


def test_a_damaged_model_is_shown_as_such(invoke, model, monkeypatch) -> None:
    monkeypatch.setattr(hub, "list_models", lambda: [type(model)(**{**vars(model), "intact": False})])
    assert "damaged" in invoke("list").out


def test_list_all_adds_what_can_be_fetched(invoke) -> None:
    names = [row["name"] for row in json.loads(invoke("list", "--all", "--json").out)]
    assert names == hub.names()
    assert "(not fetched)" in invoke("list", "--all").out


def test_pull_prints_the_path_alone_on_stdout(invoke, monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr(hub, "pull", lambda name, source: asked.append((name, source)) or tmp_path / "tiny.gguf")
    done = invoke("pull", "tiny", "--source", "hf")
    assert done.out == f"{tmp_path / 'tiny.gguf'}\n"
    assert asked == [("tiny", "hf")]


def test_pull_prepare_makes_the_file_that_list_shows_and_rm_removes(invoke, tmp_path, monkeypatch) -> None:
    pytest.importorskip("phial._native", reason="the compiled core is not built")
    path = write_tiny(tmp_path / "tiny.gguf")
    done = invoke("pull", "--prepare", str(path))
    made = path.with_name("tiny.gguf.prepared")
    assert (done.status, done.out) == (0, f"{path}\n")
    assert f"prepared: {made}" in done.err and made.is_file()
    assert f"already prepared: {made}" in invoke("pull", "--prepare", str(path)).err

    model = hub.find("smollm2-135m")
    stored = tmp_path / "store" / "models" / model.folder / model.file
    stored.parent.mkdir(parents=True)
    path.rename(stored)
    stored.with_name(f"{stored.name}.prepared").write_bytes(b"x" * 1000)
    record = {
        "name": model.name,
        "size": stored.stat().st_size,
        "sha256": "",
        "licence": "",
        "origin": "",
        "pulled": "",
    }
    stored.with_name(f"{stored.name}.json").write_text(json.dumps(record))
    assert f"{stored} (prepared)" in " ".join(invoke("list").out.split())
    assert [row["prepared"] for row in json.loads(invoke("list", "--json").out)] == [True]
    invoke("rm", model.name)
    assert list((tmp_path / "store" / "models").rglob("*")) == []


def test_rm_removes_every_model_named(invoke, monkeypatch) -> None:
    removed = []
    monkeypatch.setattr(hub, "remove", lambda name: removed.append(name) or 2_000_000)
    done = invoke("rm", "one", "two")
    assert removed == ["one", "two"]
    assert (done.status, done.out) == (0, "")
    assert "removed one, 2.0 MB freed" in done.err


def test_info_names_versions_store_and_kernels(invoke, tmp_path) -> None:
    from phial.engine import hardware

    facts = json.loads(invoke("info", "--json").out)
    assert facts["phial"] == __version__
    assert facts["python"] == platform.python_version()
    assert facts["numpy"] == numpy.__version__
    assert facts["store"] == str(tmp_path / "store")
    assert facts["models"] == []
    core = hardware.core()
    assert facts["kernels"] == (core and core.kernels)
    assert facts["kernel_sets"] == (list(core.kernel_sets) if core else [])
    text = invoke("info").out
    assert all(name.replace("_", " ") in text for name in facts)


def test_info_works_without_the_compiled_core(invoke, monkeypatch) -> None:
    from phial.engine import hardware

    monkeypatch.setattr(hardware, "_native", None)
    assert json.loads(invoke("info", "--json").out)["kernels"] is None
    assert "numpy reference" in invoke("info").out
