"""Whether engines take the right LongRoPE factors: `python bench/long_context.py [--json] [--page PAGE.md]`.

A random model of Phi-3.5-mini's kind (its factors, original context 4096, heads of 96; few layers, float32 weights) is
written to a GGUF file and given to transformers, phial and llama.cpp. For every prompt length and allocated context:
the KL divergence of the engine's next-token distribution from that of transformers, in nats, averaged over prompts of
random tokens. As a yardstick transformers runs once more with the two factor sets exchanged: that is what the wrong
set costs in this model, whose weights are drawn so that attention is sharp; in a trained one it may cost far less.
Left out: speed, quantised weights, text longer than 8192 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from engine import Row, Worker, processor
from make_random_gguf import VOCABULARY, tokenizer_metadata
from numpy.typing import NDArray

import phial
from phial.config import PRESETS, ModelConfig
from phial.errors import PhialError
from phial.gguf.blocks import GGMLType
from phial.gguf.container import write_gguf

PHI35 = PRESETS["phi-3.5-mini"]
ORIGINAL, HEADS = PHI35.rope_original_context, 2
SHAPE = replace(
    PHI35, n_vocab=VOCABULARY, n_embd=HEADS * PHI35.head_dim, n_head=HEADS, n_head_kv=HEADS, n_layer=3, n_ff=512
)
SHARPNESS = 3.0  # standard deviation of attention scores: a handful of keys take most of the weight
SPREAD = 2.0  # standard deviation of the logits
BEGIN, END = "<!-- table: bench/long_context.py -->", "<!-- end of table -->"
THEIR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
Weights = dict[str, NDArray[np.float32]]


def random_weights(seed: int) -> Weights:
    """Weights by GGUF name, such that every product is of order one and attention scores spread by SHARPNESS."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    width, inner = SHAPE.n_embd, SHAPE.n_ff
    ones = np.ones(width, np.float32)
    weights = {"token_embd": matrix(VOCABULARY, width, gain=width**0.5)}
    for i in range(SHAPE.n_layer):
        qkv = matrix(3 * width, width)
        qkv[: 2 * width] *= SHARPNESS**0.5 / SHAPE.rope_attn_factor
        weights |= {f"blk.{i}.attn_norm": ones, f"blk.{i}.attn_qkv": qkv, f"blk.{i}.attn_output": matrix(width, width)}
        weights |= {f"blk.{i}.ffn_norm": ones, f"blk.{i}.ffn_up": matrix(2 * inner, width)}
        weights[f"blk.{i}.ffn_down"] = matrix(width, inner)
    return weights | {"output_norm": ones, "output": matrix(VOCABULARY, width, gain=SPREAD)}


def write_model(path: Path, config: ModelConfig, weights: Weights, tokenizer: dict[str, Any]) -> None:
    """The model as a GGUF file with the keys and tensors a converted Phi-3.5-mini has."""
    assert config.rope_short_factors and config.rope_long_factors
    arrays = {f"{name}.weight": values for name, values in weights.items()}
    arrays["rope_factors_short.weight"] = np.array(config.rope_short_factors, np.float32)
    arrays["rope_factors_long.weight"] = np.array(config.rope_long_factors, np.float32)
    metadata = {
        "general.architecture": "phi3",
        "general.name": "LongRoPE benchmark",  # "phi-3" here has llama.cpp look for its special tokens
        "phi3.context_length": config.n_ctx_train,
        "phi3.rope.scaling.original_context_length": config.rope_original_context,
        "phi3.rope.scaling.attn_factor": float(config.rope_attn_factor),
        "phi3.embedding_length": config.n_embd,
        "phi3.feed_forward_length": config.n_ff,
        "phi3.block_count": config.n_layer,
        "phi3.attention.head_count": config.n_head,
        "phi3.attention.head_count_kv": config.n_head_kv,
        "phi3.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "phi3.rope.dimension_count": config.rope_dim,
        "phi3.rope.freq_base": config.rope_theta,
        **tokenizer,
    }
    tensors = [(name, a.shape, GGMLType.F32, a.reshape(-1).view(np.uint8)) for name, a in arrays.items()]
    write_gguf(path, metadata, tensors)


def transformers_model(config: ModelConfig, weights: Weights, *, exchanged: bool) -> Any:
    """The same model in transformers; exchanged: short and long factors in each other's place."""
    factors = [list(config.rope_short_factors or ()), list(config.rope_long_factors or ())]
    short, long = reversed(factors) if exchanged else factors
    stretch = config.n_ctx_train / config.rope_original_context
    rope = {"rope_type": "longrope", "rope_theta": config.rope_theta, "factor": stretch}
    rope |= {"short_factor": short, "long_factor": long}
    theirs = transformers.Phi3Config(
        vocab_size=config.n_vocab,
        hidden_size=config.n_embd,
        intermediate_size=config.n_ff,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_head_kv,
        max_position_embeddings=config.n_ctx_train,
        original_max_position_embeddings=config.rope_original_context,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.Phi3ForCausalLM(theirs).eval()
    arrays = weights | ({"output": weights["token_embd"]} if config.tie_embeddings else {})
    model.load_state_dict({their_name(name): torch.from_numpy(values) for name, values in arrays.items()})
    return model


def their_name(name: str) -> str:
    if not name.startswith("blk."):
        return f"{THEIR_NAMES[name]}.weight"
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{THEIR_NAMES[part]}.weight"


def last_logits(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        out = model(torch.from_numpy(tokens.astype(np.int64))[None], logits_to_keep=1, use_cache=False)
    return np.asarray(out.logits[0, -1].numpy(), np.float64)


def divergence(true_logits: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """KL(true || other) of the distributions with these logits, in nats."""
    p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (true_logits, logits))
    return float((np.exp(p) * (p - q)).sum())


@dataclass(frozen=True)
class Measured:
    """Mean KL divergence from transformers for prompts of n tokens in an allocated context."""

    n: int
    context: int
    phial: float
    llama_cpp: float
    other_factors: float

    def row(self) -> Row:
        name = f"KL from transformers, prompt {self.n}, context {self.context}"
        return Row(name, self.phial, self.llama_cpp, self.llama_cpp / max(self.phial, 1e-12), None)


Logits = NDArray[np.float64]
Prompts = list[NDArray[np.int32]]


def mean_divergence(expected: list[Logits], got: list[Logits]) -> float:
    return float(np.mean([divergence(*pair) for pair in zip(expected, got, strict=True)]))


def compare(options: argparse.Namespace, path: Path, engines: list[str]) -> Iterator[Measured]:
    """Measure every length in every context it fits into; `engines` receives what ran."""
    weights = random_weights(options.seed)
    write_model(path, SHAPE, weights, tokenizer_metadata(None))
    rng = np.random.default_rng(options.seed + 1)
    prompts: dict[int, Prompts] = {
        n: [rng.integers(259, VOCABULARY, n).astype(np.int32) for _ in range(options.prompts)] for n in options.lengths
    }
    right, exchanged = (transformers_model(SHAPE, weights, exchanged=value) for value in (False, True))
    expected = {n: [last_logits(right, prompt) for prompt in prompts[n]] for n in prompts}
    other = {
        n: mean_divergence(expected[n], [last_logits(exchanged, prompt) for prompt in prompts[n]]) for n in prompts
    }
    for context in options.contexts:
        with ExitStack() as processes:
            ours = Worker(sys.executable, "phial", processes)
            peer = Worker(str(options.peers / "bin" / "python"), "llama_cpp", processes)
            load = {"path": str(path), "threads": options.threads, "context": context}
            engines[:] = [worker("load", **load)["engine"] for worker in (ours, peer)]
            for n in (n for n in options.lengths if n <= context):
                means = [
                    mean_divergence(expected[n], [np.array(worker("logits", tokens=p.tolist())) for p in prompts[n]])
                    for worker in (ours, peer)
                ]
                yield Measured(n, context, means[0], means[1], other[n])


def markdown(table: list[Measured], engines: list[str], options: argparse.Namespace) -> str:
    """The dated table."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, phial {phial.__version__}"
    lines = [
        f"Measured {date.today().isoformat()} on {processor()}, {options.threads} of {os.cpu_count()} threads, by",
        f"`python bench/long_context.py --prompts {options.prompts} --seed {options.seed}`: {versions};",
        *(f"{engine};" for engine in engines[:-1]),
        f"{engines[-1]}.",
        "",
        "| prompt | set for this length | allocated context | phial | llama.cpp | transformers, sets exchanged |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for m in table:
        kind = "long" if m.n > ORIGINAL else "short"
        values = " | ".join(f"{value:.1e}" for value in (m.phial, m.llama_cpp, m.other_factors))
        lines.append(f"| {m.n} | {kind} | {m.context} | {values} |")
    return "\n".join(lines) + "\n"


def put_into(page: Path, table: str) -> None:
    """Replace what stands between the markers of a page."""
    before, rest = page.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", "utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="KL divergence from transformers across LongRoPE's switch of factors.")
    default_peers = os.environ.get("PHIAL_PEERS") or Path.home() / ".cache" / "phial-peers"
    parser.add_argument("--lengths", type=int, nargs="*", default=[50, 4095, 4096, 4097, 8192], metavar="N")
    parser.add_argument("--contexts", type=int, nargs="*", default=[4096, 16384], metavar="N")
    parser.add_argument("--prompts", type=int, default=8, help="random prompts of each length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", type=Path, default=default_peers, help="environment made by `make peers`")
    parser.add_argument("--json", action="store_true", help="one row a line: name, ours, peer, ratio, limit_fraction")
    parser.add_argument("--page", type=Path, help="put the table between this page's markers")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    table: list[Measured] = []
    engines: list[str] = []
    try:
        if not (options.peers / "bin" / "python").exists():
            raise PhialError(f"no llama.cpp environment at {options.peers}", "make peers, or --peers DIRECTORY")
        with TemporaryDirectory() as folder:
            for measured in compare(options, Path(folder) / "longrope.gguf", engines):
                table.append(measured)
                if options.json:
                    print(json.dumps(asdict(measured.row())), flush=True)
    except PhialError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not options.json:
        print(markdown(table, engines, options))
    if options.page:
        put_into(options.page, markdown(table, engines, options))


if __name__ == "__main__":
    main()
