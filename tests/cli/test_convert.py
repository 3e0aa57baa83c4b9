"""`phial convert`: which way it goes, what it says and where, and the two lines for a mistake."""

from __future__ import annotations

import json

from phial.gguf.container import read_gguf


def test_a_gguf_file_becomes_a_folder_and_the_folder_a_gguf_file(invoke, tiny, tmp_path) -> None:
    there = invoke("convert", tiny, "folder", "--type", "bf16")
    assert (there.status, there.out) == (0, "")
    assert "wrote folder" in there.err and "tensors" in there.err
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back = invoke("convert", "folder", "back.gguf", "--type", "q8_0")
    assert (back.status, back.out) == (0, "")
    with read_gguf(tiny) as before, read_gguf(tmp_path / "back.gguf") as after:
        assert {n: (i.shape, i.type) for n, i in before.tensors.items()} == {
            n: (i.shape, i.type) for n, i in after.tensors.items()
        }
        assert after.metadata["tokenizer.ggml.tokens"] == before.metadata["tokenizer.ggml.tokens"]
        assert after.metadata["general.name"] == before.metadata["general.name"]


def test_mistakes_are_two_lines_and_leave_nothing(invoke, tiny, tmp_path) -> None:
    for arguments, named in [
        ((tiny, "folder", "--type", "q8_0"), "type 'q8_0'"),
        ((tiny, "folder", "--type", "q4_k"), "type 'q4_k'"),
        ((tiny, "x.gguf"), "named as a file"),
        ((str(tmp_path), "x.gguf"), "no config.json"),
        ((str(tmp_path), str(tmp_path)), "is a folder"),
        ((str(tmp_path / "absent"), "x.gguf"), "absent"),
    ]:
        done = invoke("convert", *arguments)
        assert done.status == 2 and done.out == ""
        assert done.err.startswith("error: ") and named in done.err and done.err.count("\nhint: ") == 1
        assert list(tmp_path.iterdir()) == []


def test_a_converted_model_runs(invoke, tiny) -> None:
    invoke("convert", tiny, "folder")
    invoke("convert", "folder", "again.gguf", "--type", "f16")
    done = invoke("run", "-m", "./again.gguf", "--raw", "--temperature", "0", "-n", "4", "once upon a time")
    assert done.status == 0 and done.out.strip() != ""
