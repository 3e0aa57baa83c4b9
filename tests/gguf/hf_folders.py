"""Tiny Hugging Face folders as transformers saves them, each with a tokenizer of its family trained on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from phial.tokenizer.pretokenizers import PATTERNS

torch.set_num_threads(1)
TEXT = [
    "Once upon a time there was a small model that lived on a telephone.",
    "The small model read the textbook and answered the question of the knight.",
    "In 1234 there were 567 towers; don't count them again, and again, and again!",
    "What is the answer to the question? The answer is in the textbook.",
] * 20
PROBES = ["Once upon a time", "  two  spaces", "don't 12345", "naïve é 你好 😀\n\nnew line\t", "", " ", "the the the"]
SPECIALS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
N_VOCAB = 512  # more than any of the tokenizers has
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}<|assistant|>\n"
SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def longrope(pairs: int = 8) -> dict[str, Any]:
    """Factor lists of a Phi-3 whose original context is 64."""
    short, long = [1.0 + 0.05 * i for i in range(pairs)], [1.08 + 0.7 * i for i in range(pairs)]
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}


def make_folder(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, **save: Any) -> PreTrainedModel:
    """Write a folder (SentencePiece for phi3, byte-level for the others) and return the model that it holds."""
    torch.manual_seed(3)
    model = MODELS[architecture]().to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(0.15 / weight.std())
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder, **save)
    settings: dict[str, Any] = {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>", "add_bos_token": False}
    if architecture.startswith("phi3"):
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        settings |= {"bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": True}
        added = {str(400 + i): {"content": t, "special": True, "rstrip": False} for i, t in enumerate(SPECIALS)}
        settings["added_tokens_decoder"] = added
    else:
        byte_level(architecture).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


MODELS = {
    "phi3": lambda: Phi3ForCausalLM(
        Phi3Config(**SIZES, original_max_position_embeddings=64, rope_parameters=longrope(), pad_token_id=400)
    ),
    "phi3 window": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, sliding_window=7, pad_token_id=400)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama 3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },  # fmt: skip
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
}


def sentencepiece_model() -> bytes:
    """A Llama-like tokenizer.model: BPE, byte fallback, no normalisation; 400 pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=out, vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def byte_level(architecture: str) -> tokenizers.Tokenizer:
    """A byte-level tokenizer cut like SmolLM's (llama) or like Qwen2's."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if architecture == "qwen2":
        steps = [pre_tokenizers.Split(tokenizers.Regex(PATTERNS["qwen2"][0]), "isolated")]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer
