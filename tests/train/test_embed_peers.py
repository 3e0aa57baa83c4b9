"""Exported embedders in llama.cpp and in sentence-transformers, where they are installed: the vectors are ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny

from phial.config_file import checked
from phial.gguf.convert import hf_to_gguf
from phial.gguf.formats import GGMLType
from phial.train.embed import EmbedConfig, embed, embedder
from phial.train.start import open_start
from phial.train.text_pairs import TextPair

pytestmark = pytest.mark.slow
WORDS = ["the time", "once upon a", "he and she", "in it", "to a", "upon it in the time of the"]
LLAMA_CPP = """
import json, sys, llama_cpp
llm = llama_cpp.Llama(sys.argv[1], embedding=True, verbose=False, n_threads=1)
print(json.dumps([llm.embed(text) for text in json.loads(sys.argv[2])]))
"""


@pytest.fixture(params=[("mean", False), ("last", False), ("mean", True), ("last", True), ("first", True)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A folder, and the vectors of WORDS as queries with a prefix."""
    torch.set_num_threads(1)
    pooling, both = request.param
    settings = {"pooling": pooling, "bidirectional": both, "batch": 3, "query_prefix": "in a: "}
    config = checked(EmbedConfig, settings, "test.toml")
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.F32)
    start = open_start(file, causal=False if both else None, chat=False)
    pairs = [TextPair(text, text[::-1], (), "row") for text in WORDS]
    folder = embed(config, start, pairs, tmp_path / "run", lambda text: None)["model"]
    vectors = embedder(start.model.eval(), config, start)(WORDS, "query")
    return Path(folder), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_llama_cpp_embeds_the_same_without_being_told_how(made: tuple[Path, Any], tmp_path: Path) -> None:
    python = Path(os.environ.get("PHIAL_PEERS") or Path.home() / ".cache" / "phial-peers") / "bin" / "python"
    if not python.is_file():
        pytest.skip("no llama.cpp (make peers)")
    hf_to_gguf(made[0], tmp_path / "made.gguf", "f32")
    texts = json.dumps(["in a: " + text for text in WORDS])
    command = [str(python), "-c", LLAMA_CPP, str(tmp_path / "made.gguf"), texts]
    theirs = np.array(json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout))
    cosines = (made[1] * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.99999
    assert (made[1] @ made[1].T)[np.triu_indices(len(WORDS), 1)].min() < 0.999  # texts are told apart


def test_sentence_transformers_takes_the_folder_as_it_is(made: tuple[Path, Any]) -> None:
    theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = theirs.SentenceTransformer(str(made[0]))
    model.tokenizer.pad_token = model.tokenizer.pad_token or model.tokenizer.unk_token
    vectors = model.encode(WORDS, prompt_name="query", batch_size=4)
    np.testing.assert_allclose(vectors, made[1], atol=1e-6)
