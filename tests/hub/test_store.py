"""The store: names to verified files, listing, removing, two pulls at once, PHIAL_HOME."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phial import hub as api
from phial.errors import ArgumentError, PhialError
from phial.hub import home


def test_phial_home_moves_the_store(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIAL_HOME", str(tmp_path / "elsewhere"))
    path = api.pull(hub.spec, progress=False)
    assert path == tmp_path / "elsewhere/models/hf/acme/Tiny-GGUF/tiny.Q4_0.gguf"
    assert api.stored_path(hub.spec) == path
    monkeypatch.setenv("PHIAL_HOME", str(tmp_path / "empty"))
    assert api.stored_path(hub.spec) is None and api.list_models() == []


@pytest.mark.skipif(sys.platform == "win32", reason="XDG_CACHE_HOME is not used on Windows")
def test_without_phial_home_the_store_is_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PHIAL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg/phial"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG rules say: ignore
    assert home() == tmp_path / ".cache/phial"


def test_a_local_file_is_resolved_before_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").write_bytes(b"GGUF")
    assert api.resolve("smollm2-135m") == Path("smollm2-135m")
    assert api.resolve(tmp_path / "smollm2-135m") == tmp_path / "smollm2-135m"


@pytest.mark.parametrize("name", ["missing.gguf", "./missing", "/no/such/dir/x.gguf", "", "a\0b.gguf"])
def test_a_missing_file_says_so(name: str) -> None:
    with pytest.raises(PhialError, match="does not exist"):
        api.resolve(name)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="is a folder"):
        api.resolve(tmp_path)


def test_a_folder_of_a_models_name_does_not_hide_the_model(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    with pytest.raises(PhialError, match="not in the store"):
        api.resolve("smollm2-135m")


def test_a_model_not_stored_is_answered_with_the_command_that_fetches_it(hub: Any) -> None:
    with pytest.raises(PhialError) as error:
        api.resolve(hub.spec)
    assert error.value.hint == f"fetch it: phial pull {hub.spec}"
    assert hub.front.requests == []


def test_resolve_fetches_when_asked_to_and_then_needs_no_network(hub: Any) -> None:
    path = api.resolve(hub.spec, download=True)
    asked = len(hub.front.requests)
    assert api.resolve(hub.spec) == api.resolve(hub.spec, download=True) == api.pull(hub.spec) == path
    assert len(hub.front.requests) == asked


def test_a_stored_file_that_lost_bytes_is_not_used_and_fetched_again(hub: Any) -> None:
    path = api.pull(hub.spec)
    path.write_bytes(hub.content[:-1])
    [listed] = api.list_models()
    assert not listed.intact and api.stored_path(hub.spec) is None
    with pytest.raises(PhialError, match=f"{len(hub.content) - 1} bytes, was verified with {len(hub.content)}"):
        api.resolve(hub.spec)
    assert api.pull(hub.spec).read_bytes() == hub.content


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"size": "x"}', "[" * 100_000, "\x00"])
def test_a_damaged_record_is_rebuilt_from_the_file_without_a_download(hub: Any, record: str) -> None:
    path = api.pull(hub.spec)
    path.with_name(f"{path.name}.json").write_text(record)
    assert api.list_models() == [] and api.stored_path(hub.spec) is None
    before = len(hub.cdn.requests)
    assert api.pull(hub.spec) == path
    assert len(hub.cdn.requests) == before and len(api.list_models()) == 1


def test_the_record_holds_what_the_list_shows(hub: Any, tiny: Any) -> None:
    path = api.pull("tiny", source="hf")
    fields = json.loads(path.with_name(f"{path.name}.json").read_text("utf-8"))
    assert fields["licence"] == "MIT" and fields["sha256"] == hub.sha256 and fields["size"] == len(hub.content)
    assert set(fields) == {"name", "size", "sha256", "licence", "origin", "pulled"}


def test_remove_frees_the_file_its_record_and_its_parts(hub: Any) -> None:
    path = api.pull(hub.spec)
    path.with_name(f"{path.name}.0123456789abcdef.part").write_bytes(b"x" * 10)
    freed = api.remove(hub.spec)
    assert freed >= len(hub.content) + 10
    assert not path.parent.exists() and api.list_models() == []
    assert list((home() / "models").rglob("*")) == []


def test_remove_leaves_the_neighbours_alone(hub: Any) -> None:
    path = api.pull(hub.spec)
    neighbour = path.with_name("other.gguf")
    neighbour.write_bytes(b"GGUF")
    api.remove(hub.spec)
    assert neighbour.read_bytes() == b"GGUF" and not path.exists()


@pytest.mark.parametrize("name", ["smollm2-135m", "zzz", "../..", "hf:../../x.gguf", ""])
def test_removing_what_is_not_stored_is_an_error_and_removes_nothing(hub: Any, name: str) -> None:
    path = api.pull(hub.spec)
    with pytest.raises(PhialError, match="no model"):
        api.remove(name)
    assert path.is_file()


def test_remove_suggests_the_stored_name(hub: Any) -> None:
    api.pull(hub.spec)
    with pytest.raises(PhialError) as error:
        api.remove("hf:acme/Tiny-GGUF/tiny.Q4_1.gguf")
    assert f"`{hub.spec}`" in error.value.hint


def test_a_source_kind_the_model_lacks_is_refused(hub: Any) -> None:
    with pytest.raises(ArgumentError, match="no source of kind 'pypi'"):
        api.pull(hub.spec, source="pypi")


def test_a_silent_pull_says_nothing_and_a_shown_one_speaks_on_stderr_only(
    hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.pull(hub.spec, progress=False)
    assert capsys.readouterr() == ("", "")
    api.remove(hub.spec)
    api.pull(hub.spec)
    shown = capsys.readouterr()
    assert shown.out == "" and hub.sha256 in shown.err and "300.4 kB" in shown.err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX paths")
def test_a_store_that_cannot_be_written_is_one_clear_error(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PHIAL_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(PhialError, match="cannot write to the store"):
        api.pull(hub.spec)


def test_two_processes_pulling_at_once_download_once_and_both_succeed(hub: Any) -> None:
    hub.blob.delay = 0.5
    command = [sys.executable, "-c", f"from phial import hub; print(hub.pull({hub.spec!r}))"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pulls = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [pull.communicate(timeout=60)[0].strip() for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0]
    assert outputs[0] == outputs[1] and Path(outputs[0]).read_bytes() == hub.content
    assert len(hub.cdn.gets()) == 1


def test_importing_the_hub_is_light() -> None:
    heavy = "{'huggingface_hub', 'rich', 'filelock', 'numpy'}"
    code = f"import sys; import phial.hub; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout == "[]\n"
    )
