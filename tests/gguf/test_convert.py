"""Conversion both ways: bit-identical weights, transformers' logits, equal tokens, one clear error for bad input."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from safetensors.numpy import load_file, save_file
from tests.gguf.hf_folders import MODELS, PROBES, TEMPLATE, make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from phial.engine.engine import Engine
from phial.engine.reference import GGUFWeights, ReferenceCache, ReferenceModel
from phial.engine.sampling import SamplingParams
from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.blocks import GGMLType, dequantize, quantize
from phial.gguf.container import read_gguf
from phial.gguf.convert import gguf_to_hf, hf_to_gguf
from phial.gguf.hf_tokenizer_files import tokenizer_json
from phial.gguf.sentencepiece_file import merges_of, scores_of, write_model
from phial.hf.folder import read_folder
from phial.tokenizer.tokenizer import Tokenizer
from phial.tokenizer.vocabulary import read_vocabulary

TOKENS = [(7 * i * i + 3) % 400 for i in range(100)]  # beyond the tiny LongRoPE model's original 64


def weights(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a folder, shards joined, as the safetensors library reads it."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {n: (str(t.dtype), t.shape, t.tobytes()) for file in files for n, t in file.items()}


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind, with its F32 GGUF file beside the weights as f32.gguf and the way back in back/."""
    made = {}
    for kind in MODELS:
        folder = made[kind] = tmp_path_factory.mktemp("hf") / kind.replace(" ", "-")
        make_folder(folder, kind)
        hf_to_gguf(folder, folder / "f32.gguf", "f32")
        gguf_to_hf(folder / "f32.gguf", folder / "back")
    return made


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder of its own, to be damaged."""
    make_folder(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def test_a_round_trip_through_f32_is_bit_identical(folder) -> None:
    assert weights(folder / "back") == weights(folder)


def test_a_round_trip_gives_the_same_gguf_file_again(folder, tmp_path) -> None:
    hf_to_gguf(folder / "back", tmp_path / "again.gguf", "f32")
    assert (tmp_path / "again.gguf").read_bytes() == (folder / "f32.gguf").read_bytes()


@pytest.mark.parametrize("n", [50, 100])
def test_the_engines_compute_transformers_logits(folder, n) -> None:
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([TOKENS[:n]])).logits[0].numpy()
    assert np.abs(theirs).max() > 1
    with Engine.open(folder / "f32.gguf", backend="native", n_threads=1) as engine:
        native = engine.session(128).eval(TOKENS[:n], all_logits=True)
        reference = ReferenceModel(engine.config, GGUFWeights(read_gguf(engine.path)))
        cache, long = ReferenceCache(engine.config), engine.config.uses_long(n)
    np.testing.assert_allclose(reference.forward(np.array(TOKENS[:n]), cache, long, all_logits=True), theirs, atol=1e-4)
    np.testing.assert_allclose(native, theirs, atol=3e-2)  # its cache holds float16


def test_the_folder_written_back_computes_the_same_logits(folder) -> None:
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(path)(torch.tensor([TOKENS])).logits
            for path in (folder, folder / "back")
        )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_tokens_are_equal_before_and_after(folder) -> None:
    tokenizer = Tokenizer.from_gguf(read_gguf(folder / "f32.gguf").metadata)
    ours = [tokenizer.encode(text) for text in PROBES]
    if (folder / "tokenizer.model").exists():
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        again = sentencepiece.SentencePieceProcessor(model_file=str(folder / "back" / "tokenizer.model"))
        assert ours == [[1, *theirs.encode(text)] for text in PROBES]
        assert [theirs.encode(text) for text in PROBES] == [again.encode(text) for text in PROBES]
    else:
        before = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert ours == [before.encode(text).ids for text in PROBES]
    after = AutoTokenizer.from_pretrained(folder / "back")
    assert ours == [after.encode(text) for text in PROBES]
    marked = "<|user|>Hello<|end|>"
    assert tokenizer.encode(marked, special=True) == after.encode(marked)
    assert [after.decode(ids, skip_special_tokens=True) for ids in ours] == [tokenizer.decode(ids) for ids in ours]


def test_phi3s_own_vocabulary_yields_its_published_merges_and_survives_both_files(shared_data) -> None:
    metadata = read_gguf(shared_data / "tokenizer" / "phi-3" / "ggml-vocab-phi-3.gguf").metadata
    vocabulary = read_vocabulary(metadata)
    assert vocabulary.scores is not None
    merges = merges_of(vocabulary.tokens, vocabulary.scores.tolist(), vocabulary.types)
    assert len(merges) == 61249  # phi3-spec section 2.1
    written = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))
    pieces = sentencepiece.SentencePieceProcessor(model_proto=write_model(vocabulary))
    ours = Tokenizer.from_gguf(metadata)
    for text in ["Hello world", "1234", "\n", "é", "😀", *PROBES[:4]]:
        ids = ours.encode(text, add_bos=False)
        assert written.encode(text, add_special_tokens=False).ids == pieces.encode(text) == ids
    prompt = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert written.encode(prompt, add_special_tokens=False).ids == [
        32010,
        15043,
        32007,
        32001,
    ]  # section 2.3, variant B
    again = scores_of(vocabulary.tokens, vocabulary.types, merges)
    assert merges_of(vocabulary.tokens, again, vocabulary.types) == merges


def test_sentencepiece_is_read_from_tokenizer_json_alone_too(folders, tmp_path) -> None:
    folder = folders["phi3"]
    for path in (folder / "back").iterdir():
        if path.name != "tokenizer.model":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    hf_to_gguf(tmp_path, tmp_path / "json.gguf", "f32")
    before, after = (Tokenizer.from_gguf(read_gguf(p).metadata) for p in (folder / "f32.gguf", tmp_path / "json.gguf"))
    assert [after.encode(text) for text in PROBES] == [before.encode(text) for text in PROBES]


def test_metadata_has_window_factors_attention_factor_template_and_ids(folders) -> None:
    file = read_gguf(folders["phi3"] / "f32.gguf")
    scaling = json.loads((folders["phi3"] / "config.json").read_text())["rope_parameters"]
    assert file.metadata["phi3.rope.scaling.original_context_length"] == 64
    assert file.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)
    for name in ("long", "short"):
        np.testing.assert_array_equal(
            file.dequantized(f"rope_factors_{name}.weight"), np.float32(scaling[f"{name}_factor"])
        )
    assert file.metadata["phi3.attention.sliding_window"] == 0
    assert read_gguf(folders["phi3 window"] / "f32.gguf").metadata["phi3.attention.sliding_window"] == 7
    assert file.metadata["tokenizer.chat_template"] == TEMPLATE
    assert file.metadata["tokenizer.ggml.eos_token_id"] == 400 and file.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert file.metadata["tokenizer.ggml.token_type"].tolist()[398:407] == [1, 1, 3, 3, 3, 3, 3, 5, 5]
    assert [read_gguf(folders[k] / "f32.gguf").metadata["tokenizer.ggml.pre"] for k in ("llama", "qwen2")] == [
        "smollm",
        "qwen2",
    ]
    assert AutoTokenizer.from_pretrained(folders["phi3"] / "back").chat_template == TEMPLATE


@pytest.mark.parametrize("kind", ["su", "longrope", "yarn"])
def test_phi3_accepts_every_name_of_longrope_in_the_old_layout(folders, tmp_path, kind) -> None:
    back = folders["phi3"] / "back"
    for path in back.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path / "config.json", lambda c: c["rope_scaling"].update(type=kind))
    hf_to_gguf(tmp_path, tmp_path / "x.gguf", "f32")
    assert (tmp_path / "x.gguf").read_bytes() == (folders["phi3"] / "f32.gguf").read_bytes()


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_matrices_get_the_type_asked_for_and_vectors_stay_f32(folders, tmp_path, type) -> None:
    hf_to_gguf(folders["phi3"], tmp_path / "x.gguf", type)
    kind, source = GGMLType[type.upper()], load_file(folders["phi3"] / "model.safetensors")
    with read_gguf(tmp_path / "x.gguf") as file:
        for name, info in file.tensors.items():
            assert info.type == (kind if len(info.shape) == 2 else GGMLType.F32), name
        matrix = source["model.layers.1.mlp.down_proj.weight"]
        expected = dequantize(quantize(matrix, kind), kind, matrix.shape)
        np.testing.assert_array_equal(file.dequantized("blk.1.ffn_down.weight"), expected)


def test_bfloat16_shards_come_through_unchanged(tmp_path) -> None:
    model = make_folder(tmp_path / "bf16", "llama", torch.bfloat16, max_shard_size="100KB")
    assert len(list((tmp_path / "bf16").glob("*.safetensors"))) > 1
    hf_to_gguf(tmp_path / "bf16", tmp_path / "x.gguf", "bf16")
    gguf_to_hf(tmp_path / "x.gguf", tmp_path / "back", "bf16", shard_bytes=100_000)
    shards = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(shards) > 1 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in model.state_dict().items())


def rewrite(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {n: t.copy() for n, t in load_file(folder / "model.safetensors").items()}
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", lambda c: c.update(values))


def tokenizer(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "tokenizer.json", lambda t: t.update(values))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def lie(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def shard(folder: Path) -> None:
    places = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def outside(folder: Path) -> None:
    places = {"weight_map": {"lm_head.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


DOWN = "model.layers.0.mlp.down_proj.weight"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (shard, "model-00002-of-00002.safetensors"),
    "a shard elsewhere": (outside, "../other.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken JSON": (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
    "a cut file": (cut, "lies at"),
    "a header that lies": (lie, "header of"),
    "a missing tensor": (rewrite(lambda t: t.pop(DOWN)), DOWN),
    "an unknown tensor": (rewrite(lambda t: t.update(extra=np.ones(3, np.float32))), "extra"),
    "a wrong shape": (rewrite(lambda t: t.update({DOWN: t[DOWN][1:]})), r"\(63, 96\)"),
    "NaN": (rewrite(lambda t: t[DOWN].__setitem__((5, 5), np.nan)), f"{DOWN} holds NaN"),
    "integers": (rewrite(lambda t: t.update({DOWN: t[DOWN].astype(np.int32)})), "I32"),
    "values too large": (rewrite(lambda t: t[DOWN].__setitem__((5, 5), 1e6)), DOWN),
    "an unknown architecture": (config(architectures=["GemmaForCausalLM"]), "Gemma"),
    "an unknown key": (config(final_logit_softcapping=30.0), "final_logit_softcapping"),
    "biases": (config(attention_bias=True), "attention_bias"),
    "another activation": (config(hidden_act="gelu"), "hidden_act"),
    "an unknown rotation": (config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
    "an unknown rotation key": (config(rope_parameters={"rope_type": "default", "mscale": 2.0}), "mscale"),
    "an absurd llama3": (config(rope_parameters=LLAMA3), "low_freq_factor"),
    "too few rows": (config(vocab_size=256), "256"),
    "a number that is none": (config(rms_norm_eps="1e-5"), "rms_norm_eps"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "an unknown pre-tokenizer": (tokenizer(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    "an unknown pattern": (
        tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}),
        "unknown pre-tokenizer",
    ),
    "a tokenizer of another shape": (tokenizer(normalizer=[5]), "tokenizer file is damaged"),
    "another tokenizer model": (tokenizer(model={"type": "WordPiece", "vocab": {}}), "WordPiece"),
    "an unknown end token": (
        lambda f: change(f / "tokenizer_config.json", lambda s: s.update(eos_token="<stop>")),
        "<stop>",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_error_that_names_it_and_leaves_nothing(llama, tmp_path, damage) -> None:
    apply, named = DAMAGE[damage]
    apply(llama)
    with pytest.raises(PhialError, match=named):
        hf_to_gguf(llama, tmp_path / "out.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize("name", ["long_factor", "short_factor"])
def test_a_factor_list_of_wrong_length_is_refused(tmp_path, name) -> None:
    make_folder(tmp_path / "phi3", "phi3")
    change(tmp_path / "phi3" / "config.json", lambda c: c["rope_parameters"][name].pop())
    with pytest.raises(FormatError, match="7 factors for 8 rotated pairs"):
        hf_to_gguf(tmp_path / "phi3", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_q8_0_needs_rows_of_whole_blocks(llama, tmp_path) -> None:
    rewrite(lambda t: [t.update({n: np.ones((*t[n].shape[:-1], 80), np.float32)}) for n in t if "down_proj" in n])(
        llama
    )
    rewrite(lambda t: [t.update({n: np.ones((80, 64), np.float32)}) for n in t if "gate" in n or "up_" in n])(llama)
    config(intermediate_size=80)(llama)
    with pytest.raises(ArgumentError, match="rows of 80 values"):
        hf_to_gguf(llama, tmp_path / "out.gguf", "q8_0")


def test_a_folder_with_something_in_it_is_not_written_to(folders, tmp_path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ArgumentError, match="not an empty folder"):
        gguf_to_hf(folders["llama"] / "f32.gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_way_back_leaves_no_folder(folders, tmp_path) -> None:
    data = bytearray((folders["llama"] / "f32.gguf").read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))  # the last weight
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(FormatError, match="NaN"):
        gguf_to_hf(tmp_path / "nan.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["nan.gguf"]


def test_stripping_special_tokens_that_gguf_cannot_express_are_noted(tmp_path) -> None:
    make_folder(tmp_path / "small", "phi3")
    settings = tmp_path / "small" / "tokenizer_config.json"
    change(settings, lambda s: [token.update(rstrip=True) for token in s["added_tokens_decoder"].values()])
    notes = hf_to_gguf(tmp_path / "small", tmp_path / "x.gguf")
    assert len(notes) == 1 and "5 special tokens swallow the whitespace" in notes[0]


def test_our_reader_sees_what_the_safetensors_library_wrote(folders) -> None:
    ours = {n: (str(t.raw.dtype), t.shape, t.raw.tobytes()) for n, t in read_folder(folders["qwen2"]).items()}
    assert ours == weights(folders["qwen2"])


@pytest.mark.slow
def test_smollm2_written_as_a_folder_answers_the_same_in_transformers(smollm2, tmp_path) -> None:
    gguf_to_hf(smollm2, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :].tolist()
    with Engine.open(smollm2, backend="reference") as engine:
        greedy = SamplingParams(temperature=0)
        ours = list(engine.session(256).generate(prompt, greedy, max_tokens=16, stop_ids=engine.tokenizer.eog_ids))
        texts = ["Hello world", "  def f(x):\n\treturn 12345", "naïve é 你好 😀", "<|im_start|>user\n"]
        assert [engine.tokenizer.encode(t, special=True) for t in texts] == [tokenizer.encode(t) for t in texts]
    assert [t for t in theirs if t not in (0, 2)] == [t for t in ours if t not in (0, 2)]
    assert "Paris" in tokenizer.decode(ours)
