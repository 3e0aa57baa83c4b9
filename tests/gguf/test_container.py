"""The reader on correct files: values, shapes, views, and real files from other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.gguf import craft

from phial.errors import FormatError, PhialError
from phial.gguf.container import TensorInfo, read_gguf
from phial.gguf.formats import GGMLType


@pytest.fixture(params=[2, 3])
def valid_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "valid.gguf"
    path.write_bytes(craft.valid(request.param))
    return path


def test_versions_2_and_3_are_read_with_exact_values(valid_path: Path) -> None:
    with read_gguf(valid_path) as file:
        assert file.version in (2, 3)
        assert file.alignment == 32
        numbers = file.metadata.pop("numbers")
        assert numbers.dtype == np.int32 and numbers.tolist() == [1, -2, 3]
        assert file.metadata == {"general.architecture": "phi3", "tokenizer.ggml.tokens": ["a", "bc"], "count": 7}
        data_start = valid_path.stat().st_size - len(craft.DATA)
        assert file.tensors == {
            "matrix": TensorInfo("matrix", (2, 32), GGMLType.Q4_0, data_start, 36),
            "vector": TensorInfo("vector", (4,), GGMLType.F32, data_start + 64, 16),
        }
        assert file.data("matrix").tobytes() == bytes(range(36))
        assert file.dequantized("vector").tolist() == [1, 2, 3, 4]
        assert file.dequantized("matrix").shape == (2, 32)


def test_data_is_a_read_only_view_that_outlives_close(valid_path: Path) -> None:
    file = read_gguf(valid_path)
    view = file.data("matrix")
    assert not view.flags.writeable and not view.flags.owndata
    file.close()
    assert view.tobytes() == bytes(range(36))
    with pytest.raises(ValueError, match="closed"):
        file.data("matrix")


def test_released_pages_are_read_again_with_the_same_content(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    path = tmp_path / "large.gguf"
    path.write_bytes(craft.build([], [craft.tensor(b"t", [content.size // 4], craft.TYPE_F32, 0)], content.tobytes()))
    with read_gguf(path) as file:
        before = file.data("t")
        file.release("t")
        assert np.array_equal(before, content)


def test_bytes_that_are_not_utf8_survive_as_surrogate_escapes(tmp_path: Path) -> None:
    raw = b"\xff\xc3"
    path = tmp_path / "bytes.gguf"
    words = craft.key(b"words", craft.ARRAY, craft.array(craft.STRING, 1, craft.text(raw)))
    path.write_bytes(craft.build([words, craft.key(b"word", craft.STRING, craft.text(raw))], []))
    with read_gguf(path) as file:
        assert file.metadata["words"][0].encode("utf-8", "surrogateescape") == raw
        assert file.metadata["word"].encode("utf-8", "surrogateescape") == raw


def test_alignment_of_the_file_moves_the_data(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    keys = [craft.key(b"general.alignment", craft.U32, craft.u32(256))]
    path.write_bytes(craft.build(keys, [craft.tensor(b"v", [1], craft.TYPE_F32, 0)], b"\0\0\x80\x3f", alignment=256))
    with read_gguf(path) as file:
        assert file.alignment == 256 and file.tensors["v"].offset == 256
        assert file.dequantized("v").tolist() == [1]


def test_unaligned_end_of_a_file_without_tensors_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(b"GGUF" + craft.u32(3) + craft.u64(0) + craft.u64(1) + craft.COUNT)
    with read_gguf(path) as file:
        assert file.metadata == {"count": 7} and file.tensors == {}


@pytest.mark.parametrize("make", ["missing", "folder", "pipe", "nul"])
def test_what_is_no_regular_file_is_a_clear_error(tmp_path: Path, make: str) -> None:
    path = tmp_path / ("a\0b" if make == "nul" else make)
    if make == "folder":
        path.mkdir()
    elif make == "pipe":
        import os

        os.mkfifo(path)
    with pytest.raises(PhialError) as caught:
        read_gguf(path)
    assert not isinstance(caught.value, FormatError) and caught.value.hint


def test_real_model_reads_whole(smollm2: Path) -> None:
    with read_gguf(smollm2) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert len(file.tensors) == 272
        embedding = file.tensors["token_embd.weight"]
        assert (embedding.shape, embedding.type) == ((49152, 576), GGMLType.Q8_0)
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
        end = max(info.offset + info.n_bytes for info in file.tensors.values())
        assert end == smollm2.stat().st_size
        assert 0.02 < file.dequantized("blk.0.attn_q.weight").std() < 0.5


def test_vocabulary_files_of_llama_cpp_read_whole(shared_data: Path) -> None:
    sizes = {"phi-3": 32064, "llama-spm": 32000, "bert-uncased": 30522}
    for folder, size in sizes.items():
        (path,) = (shared_data / "tokenizer" / folder).glob("*.gguf")
        with read_gguf(path) as file:
            assert len(file.metadata["tokenizer.ggml.tokens"]) == size
            assert file.tensors == {}
