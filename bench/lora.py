"""What tuning takes: every weight, LoRA on floats, QLoRA on 4-bit blocks; tokens a second and peak memory.

    python bench/lora.py smollm2-135m                         a GGUF file: four ways, a process each
    python bench/lora.py phi-3-mini-4k --random --recompute   a preset of random Q4_0 blocks: QLoRA alone

Steps of the loop's own run_step() on rows of random tokens; a warm-up step first, tokens per second by the clock and by
CPU time, peaks as the system counts them (ru_maxrss, the file's mapped pages included).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from phial import hub
from phial.config import PRESETS
from phial.gguf.blocks import random_blocks
from phial.gguf.formats import GGMLType
from phial.model.transformer import DecoderLayer, Transformer
from phial.train.layers import prepared_layers
from phial.train.loop import LoopConfig, run_step
from phial.train.lora import LoraConfig, add_lora
from phial.train.objective import NextToken
from phial.train.optim import make_optimizers
from phial.train.processes import OneProcess
from phial.train.quantized import QuantizedLinear
from phial.train.start import open_start
from phial.train.state import TrainState, trained

WAYS = {"full": None, "LoRA": "float", "QLoRA, the file's blocks": "file", "QLoRA, q8_0": "q8_0"}


def random_model(preset: str, lora: LoraConfig) -> Transformer:
    """A preset with random Q4_0 matrices in its layers, which never were floats, and small random embeddings."""
    rng = np.random.default_rng(0)
    with torch.device("meta"):
        model = Transformer(replace(PRESETS[preset], rope_interleaved=False))
    for layer in model.modules():
        if not isinstance(layer, DecoderLayer):
            continue
        for parent in (layer.self_attn, layer.mlp):
            for name, matrix in list(parent.named_children()):
                assert isinstance(matrix, nn.Linear)
                raw = random_blocks(GGMLType.Q4_0, tuple(matrix.weight.shape), rng)
                blocks = torch.from_numpy(raw).view(len(matrix.weight), -1)
                setattr(parent, name, QuantizedLinear(GGMLType.Q4_0, blocks, None))
    values = {
        name: torch.ones(p.shape) if p.ndim == 1 else torch.empty(p.shape).normal_(std=0.02)
        for name, p in model.named_parameters()
    }
    model.load_state_dict(values, assign=True)
    add_lora(model, lora)
    return model


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One way, in this process."""
    torch.set_num_threads(args.threads)
    base = WAYS[args.way]
    lora = (
        None if base is None else LoraConfig.model_validate({"rank": args.rank, "alpha": 2 * args.rank, "base": base})
    )
    if args.random:
        assert lora is not None
        model = random_model(args.model, lora)
    else:
        model = open_start(hub.resolve(args.model), lora=lora).model
    loaded = _peak()
    config = LoopConfig.model_validate({"steps": args.steps + 1, "precision": args.precision})
    state = TrainState(model, make_optimizers(model, config.optimizer))
    generator = torch.Generator().manual_seed(0)
    seconds, cpu = [], []
    with prepared_layers(model, recompute=args.recompute, compile=False):
        for _ in range(args.steps + 1):
            rows = torch.randint(model.config.n_vocab, (args.rows, args.tokens + 1), generator=generator)
            pieces = [{"tokens": rows[:, :-1], "targets": rows[:, 1:]}]
            clocks = time.perf_counter(), time.process_time()
            row = run_step(state, pieces, NextToken(), config, OneProcess())
            seconds.append(time.perf_counter() - clocks[0])
            cpu.append(time.process_time() - clocks[1])
            print(f"step {row['step']}: loss {row['loss']:.4f}, {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    tokens, counted = args.rows * args.tokens, slice(1 if args.steps else 0, None)
    return {
        "weights": float(sum(p.numel() for p in trained(model).values())),
        "tokens_per_second": tokens / float(np.median(seconds[counted])),
        "tokens_per_cpu_second": tokens / float(np.median(cpu[counted])),
        "loaded_gb": loaded,
        "peak_gb": _peak(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--random", action="store_true", help="the model is a preset, its weights are random")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="after the first; 0: that one alone")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--way", choices=WAYS, help="this one, in this process, as JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return
    ways = ["QLoRA, the file's blocks"] if args.random else list(WAYS)
    print(f"{'':26} {'trained':>12} {'tokens/s':>9} {'by CPU':>7} {'loaded GB':>9} {'peak GB':>8}")
    for way in ways * args.turns:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        speeds = f"{found['tokens_per_second']:9.1f} {found['tokens_per_cpu_second']:7.1f}"
        print(
            f"{way:26} {found['weights']:12,.0f} {speeds} {found['loaded_gb']:9.2f} {found['peak_gb']:8.2f}", flush=True
        )


if __name__ == "__main__":
    main()
