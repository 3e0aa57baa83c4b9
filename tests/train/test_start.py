"""Starting points: a folder, a run and a GGUF file give one model, and an export is what was tuned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_models import write_tiny

from phial import Llama
from phial.errors import PhialError
from phial.gguf.convert import gguf_to_hf, hf_to_gguf
from phial.gguf.formats import GGMLType
from phial.train.start import export, open_start

TALK = [{"role": "user", "content": "the time"}]


@pytest.mark.parametrize("architecture", ["phi3", "llama", "qwen2"])
def test_a_file_and_the_folder_made_of_it_are_one_model(architecture: str, tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", architecture)
    gguf_to_hf(file, tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    starts = [open_start(path) for path in (file, tmp_path / "run" / "model", tmp_path / "run")]
    tokens = torch.tensor([[1, 300, 301, 302]])
    ids = [start.template.encode(TALK, start.tokenizer) for start in starts]
    assert ids[0] == ids[1] == ids[2]
    with torch.no_grad():
        logits = [start.model(tokens) for start in starts]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_the_weights_are_those_the_engine_runs(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", "llama", GGMLType.F32)
    start = open_start(file)
    ids = start.template.encode(TALK, start.tokenizer)
    with torch.no_grad():
        ours = start.model(torch.tensor([ids]))[0, -1].numpy()
    llm = Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
    llm.eval(ids)
    theirs = np.array(llm.scores[len(ids) - 1])
    assert int(ours.argmax()) == int(theirs.argmax())
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_export_runs_with_the_template_it_was_tuned_with(kind: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "phi3", GGMLType.F32)
    if kind == "folder":
        gguf_to_hf(path, tmp_path / "source")
        path = tmp_path / "source"
    start = open_start(path, template="phi3-v2")
    export(start, start.model, tmp_path / "out", ends={start.tokenizer.special_tokens["<|end|>"]})
    hf_to_gguf(tmp_path / "out", tmp_path / "out.gguf", "f32")
    again = open_start(tmp_path / "out.gguf")
    assert again.template.encode(TALK, again.tokenizer) == start.template.encode(TALK, start.tokenizer)
    for name, weight in start.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name
    generation = json.loads((tmp_path / "out/generation_config.json").read_text("utf-8"))
    assert start.tokenizer.special_tokens["<|end|>"] in generation["eos_token_id"]
    if kind == "file":
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
        rendered = theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
        assert rendered == start.template.render(TALK)


def test_what_is_no_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="there is no model at"):
        open_start(tmp_path / "none")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(PhialError, match="has not finished"):
        open_start(tmp_path / "run")
    with pytest.raises(PhialError, match="no chat template is called 'phi9'"):
        open_start(write_tiny(tmp_path / "tiny.gguf"), template="phi9")
