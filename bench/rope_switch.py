"""What crossing LongRoPE's original context costs in time and in exactness: `python bench/rope_switch.py [--json]`.

A text of 4096 tokens is evaluated, then the next 256, the first of them alone: the call that switches the factor set.
rope_switch="reprefill" against "rerotate" by the KL divergence of the 256 next-token distributions from those of
transformers, in nats, by the perplexity of the text, and by the processor time of that one call, all threads together.
Two yardsticks: transformers with the two sets exchanged, and keys left in the old set under queries of the new one.

Models, both float32: the random one of long_context.py on random tokens, where attention is sharp and every error
shows; and SmolLM2-135M on a text, its own frequencies as the short set and, as the long one, those stretched by parts
(YaRN, arXiv 2309.00071) to STRETCH times the context, which it endures without training. `--speed` only times turning
the keys of 4096 tokens of Phi-3.5-mini. Left out: models trained with LongRoPE, of which none can be had without a
download.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from engine import processor
from long_context import SHAPE, Weights, random_weights, transformers_model, write_model
from make_random_gguf import VOCABULARY, tokenizer_metadata
from numpy.typing import NDArray

import phial
from phial import _native, hub
from phial.config import PRESETS, ModelConfig, longrope_attn_factor
from phial.engine import native_backend
from phial.engine.cache import CACHE_TYPES
from phial.engine.engine import Engine
from phial.engine.rope_switch import turns
from phial.engine.session import Session
from phial.gguf.container import GGUFFile, read_gguf
from phial.tokenizer.tokenizer import Tokenizer

ORIGINAL, AFTER, STRETCH = 4096, 256, 4.0
SPEED_PAGES = 8
ESSAY = Path(__file__).resolve().parents[1] / "tests" / "golden" / "subjection-of-women.txt.gz"
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A LongRoPE model and prompts of ORIGINAL + AFTER tokens."""

    name: str
    config: ModelConfig
    weights: Weights
    tokenizer: dict[str, Any]
    prompts: list[list[int]]


@dataclass(frozen=True)
class Measured:
    """Means over the prompts. seconds: processor time of the call that crosses; None where nothing crosses."""

    model: str
    way: str
    kl: float
    perplexity: float
    seconds: float | None


def random_case(options: argparse.Namespace) -> Case:
    rng = np.random.default_rng(options.seed + 1)
    prompts = rng.integers(259, VOCABULARY, (options.prompts, ORIGINAL + AFTER)).tolist()
    return Case("random", SHAPE, random_weights(options.seed), tokenizer_metadata(None), prompts)


def smollm2_case(options: argparse.Namespace) -> Case:
    with read_gguf(hub.resolve("smollm2-135m", download=True)) as file:
        tokenizer = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
        ids = Tokenizer.from_gguf(file.metadata).encode(gzip.open(ESSAY, "rt", encoding="utf-8").read())
        plain = ModelConfig.from_gguf(file.metadata, {name: info.shape for name, info in file.tensors.items()})
        config = stretched(plain)
        weights = as_phi3(file, config)
    starts = np.linspace(0, len(ids) - ORIGINAL - AFTER, options.prompts).astype(int)
    return Case("SmolLM2-135M", config, weights, tokenizer, [ids[s : s + ORIGINAL + AFTER] for s in starts])


def stretched(config: ModelConfig) -> ModelConfig:
    """The config as phi3 with LongRoPE: ones as short factors, the long ones by how often a pair turns in ORIGINAL."""
    turns = ORIGINAL * config.inv_freq(False).astype(np.float64) / (2 * np.pi)
    slow = np.clip((32 - turns) / (32 - 1), 0, 1)
    return replace(
        config,
        architecture="phi3",
        rope_interleaved=False,
        rope_short_factors=(1.0,) * len(turns),
        rope_long_factors=tuple((1 / (1 - slow + slow / STRETCH)).tolist()),
        rope_original_context=ORIGINAL,
        n_ctx_train=int(STRETCH * ORIGINAL),
        rope_attn_factor=longrope_attn_factor(int(STRETCH * ORIGINAL), ORIGINAL),
    )


def as_phi3(file: GGUFFile, config: ModelConfig) -> Weights:
    """A llama file's weights under phi3's names: Q, K and V fused, gate and up fused, pairs (i, i + half)."""

    def halves(name: str, heads: int) -> NDArray[np.float32]:
        rows = file.dequantized(name)
        return np.ascontiguousarray(rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))

    weights = {name: file.dequantized(f"{name}.weight") for name in ("token_embd", "output_norm")}
    for i in range(config.n_layer):
        at = f"blk.{i}."
        q, k = halves(f"{at}attn_q.weight", config.n_head), halves(f"{at}attn_k.weight", config.n_head_kv)
        weights[f"{at}attn_qkv"] = np.concatenate([q, k, file.dequantized(f"{at}attn_v.weight")])
        gate, up = (file.dequantized(f"{at}ffn_{name}.weight") for name in ("gate", "up"))
        weights[f"{at}ffn_up"] = np.concatenate([gate, up])
        for name in ("attn_norm", "attn_output", "ffn_norm", "ffn_down"):
            weights[at + name] = file.dequantized(f"{at}{name}.weight")
    return weights


def their_rows(model: Any, tokens: list[int]) -> Logits:
    """Logits of the last AFTER positions from transformers, which sees all tokens at once."""
    with torch.inference_mode():
        out = model(torch.tensor(tokens)[None], logits_to_keep=AFTER, use_cache=False)
    return np.asarray(out.logits[0].numpy())


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def divergence(truth: Logits, got: Logits) -> float:
    p, q = log_softmax(truth), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def loss(logits: Logits, tokens: list[int]) -> float:
    """Mean loss of the tokens that follow the positions of these logits."""
    following = tokens[ORIGINAL + 1 :]
    return float(-log_softmax(logits[:-1])[np.arange(len(following)), following].mean())


def cross(session: Session, tokens: list[int]) -> tuple[Logits, float]:
    """Logits after each of the last AFTER tokens, and the processor seconds of the first of them."""
    start = time.process_time()
    first = session.eval(tokens[ORIGINAL : ORIGINAL + 1])
    seconds = time.process_time() - start
    return np.concatenate([first[None], session.eval(tokens[ORIGINAL + 1 :], all_logits=True)]), seconds


def compare(case: Case, options: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    path = folder / "model.gguf"
    write_model(path, case.config, case.weights, case.tokenizer)
    right, exchanged = (transformers_model(case.config, case.weights, exchanged=value) for value in (False, True))
    found: dict[str, list[tuple[float, float, float]]] = {}
    open_options = {"n_threads": options.threads, "cache_type": options.cache_type, "prefix_bytes": 0}
    with Engine.open(path, **open_options) as engine:
        for tokens in case.prompts:
            truth, answers = their_rows(right, tokens), {}
            answers["transformers"] = truth, 0.0
            for way in ("reprefill", "rerotate", "old keys kept"):
                engine.rope_switch = way
                with engine.session(len(tokens)) as session:
                    session.eval(tokens[:ORIGINAL])
                    session._table.long = way == "old keys kept"
                    answers[way] = cross(session, tokens)
            answers["sets exchanged"] = their_rows(exchanged, tokens), 0.0
            for way, (logits, seconds) in answers.items():
                found.setdefault(way, []).append((divergence(truth, logits), loss(logits, tokens), seconds))
    for way, rows in found.items():
        kl, mean_loss = np.mean([row[:2] for row in rows], axis=0)
        seconds = float(np.median([row[2] for row in rows])) if way.startswith("re") else None
        yield Measured(case.name, way, float(kl), float(np.exp(mean_loss)), seconds)


def speed() -> dict[str, float]:
    """Processor seconds to turn the keys of ORIGINAL tokens of Phi-3.5-mini, one thread, by cache type."""
    config, seconds = PRESETS["phi-3.5-mini"], {}
    for cache_type in CACHE_TYPES:
        store = _native.Cache(native_backend._make_model(config, 1), cache_type)
        pages = [store.new_page() for _ in range(SPEED_PAGES)]
        for page in pages:  # ones in 16 bits, a small scale in q8_0: finite in every type
            store.write_page(page, b"\x00\x3c" * (store.page_bytes // 2))
        start = time.process_time()
        for i, page in enumerate(pages):
            store.rotate_keys(page, *turns(config, True, i * store.page_tokens, store.page_tokens))
        took = time.process_time() - start
        seconds[cache_type] = took * ORIGINAL / (SPEED_PAGES * store.page_tokens)
    return seconds


def markdown(table: list[Measured], options: argparse.Namespace) -> str:
    ours = f"transformers {transformers.__version__}, torch {torch.__version__}, phial {phial.__version__}"
    lines = [
        f"Measured {date.today().isoformat()} on {processor()}, {options.threads} of {os.cpu_count()} threads, by",
        f"`python bench/rope_switch.py --prompts {options.prompts}`, {options.cache_type} cache: {ours}.",
        "",
        "| model | way | KL from transformers | perplexity | CPU seconds of the crossing call |",
        "|---|---|--:|--:|--:|",
    ]
    for m in table:
        seconds = "" if m.seconds is None else f"{m.seconds:.2f}"
        perplexity = "" if m.model == "random" else f"{m.perplexity:.2f}"  # of random tokens it says nothing
        lines.append(f"| {m.model} | {m.way} | {m.kl:.1e} | {perplexity} | {seconds} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Re-rotating cached keys against computing them again.")
    parser.add_argument("--models", nargs="*", default=["random", "smollm2"], choices=["random", "smollm2"])
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache-type", default="f16")
    parser.add_argument("--speed", action="store_true", help="only time turning the keys of Phi-3.5-mini's shape")
    parser.add_argument("--json", action="store_true", help="one row a line")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        if options.speed:
            print(json.dumps({key: round(value, 3) for key, value in speed().items()}))
            return
        cases = {"random": random_case, "smollm2": smollm2_case}
        table = []
        for name in options.models:
            for measured in compare(cases[name](options), options, Path(folder)):
                table.append(measured)
                if options.json:
                    print(json.dumps(asdict(measured)), flush=True)
    if not options.json:
        print(markdown(table, options))


if __name__ == "__main__":
    main()
