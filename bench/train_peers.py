"""What bench/train.py measures phial's training against: transformers' Trainer, and plain PyTorch in nanochat's manner.

The plain loop is what one writes first and well: fused attention kernels under a document mask, F.rms_norm, fused
AdamW, autocast, logits as one tensor. Weights are those of the same Hugging Face folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phial.model.checkpoint import load

if TYPE_CHECKING:
    from train import Chain

LR, BETAS, EPS, CLIP = 3e-3, (0.9, 0.95), 1e-8, 1.0


def train_trainer(folder: Path, chain: Chain, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """transformers' Trainer: documents are told by position_ids that begin anew, labels are shifted by the model."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            chain.tick()

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    logging.set_verbosity_error()
    rows = [row for batch in chain.batches for row in _rows(batch)]
    with tempfile.TemporaryDirectory() as run:
        arguments = TrainingArguments(
            output_dir=run, max_steps=options.steps, per_device_train_batch_size=chain.rows, use_cpu=True,
            bf16=options.precision == "bf16", optim="adamw_torch_fused", learning_rate=LR, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], adam_epsilon=EPS, weight_decay=0.0, max_grad_norm=CLIP,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        trainer = InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[Ticks()])
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return model, float(losses[-1])


def _rows(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Rows as transformers wants them: the first token of a document is nobody's target."""
    tokens, documents = batch["tokens"], batch["documents"]
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    positions = place - torch.where(begins, place, 0).cummax(1).values
    labels = tokens.masked_fill(begins, -100)
    named = {"input_ids": tokens, "labels": labels, "position_ids": positions}
    return [{name: value[i] for name, value in named.items()} for i in range(len(tokens))]


def train_plain(folder: Path, chain: Chain, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """One file's worth of PyTorch: forward, backward, clip, step."""
    source = load(folder)
    model = PlainModel(source.config)
    weights = dict(source.named_parameters())
    for name, p in model.named_parameters():
        p.data.copy_(weights[name].data)
    del source, weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    loss = torch.zeros(())
    for step in range(options.steps):
        (batch,) = chain.micro_batches(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model(batch["tokens"], batch["targets"], batch["documents"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
    return model, value


class PlainLayer(nn.Module):
    def __init__(self, c: Any) -> None:
        super().__init__()
        self.heads, d, ff = c.n_head, c.n_embd, c.n_ff
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self.self_attn, name, nn.Linear(d, d, bias=False))
        self.mlp.gate_proj, self.mlp.up_proj = nn.Linear(d, ff, bias=False), nn.Linear(d, ff, bias=False)
        self.mlp.down_proj = nn.Linear(ff, d, bias=False)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(d, c.rms_norm_eps),
            nn.RMSNorm(d, c.rms_norm_eps),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        (b, t, d), a = x.shape, self.self_attn
        y = self.input_layernorm(x)
        q, k, v = (p(y).view(b, t, self.heads, -1).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        x = x + a.o_proj(y.transpose(1, 2).reshape(b, t, d))
        y = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class PlainModel(nn.Module):
    """Llama as a tutorial has it, with tied embeddings."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c, self.model = c, nn.Module()
        self.model.embed_tokens = nn.Embedding(c.n_vocab, c.n_embd)
        self.model.layers = nn.ModuleList(PlainLayer(c) for _ in range(c.n_layer))
        self.model.norm = nn.RMSNorm(c.n_embd, c.rms_norm_eps)

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor) -> Tensor:
        t = tokens.shape[1]
        begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        place = torch.arange(t).expand_as(tokens)
        position = place - torch.where(begins, place, 0).cummax(1).values
        frequency = self.c.rope_theta ** (-torch.arange(0, self.c.head_dim, 2) / self.c.head_dim)
        angle = (position[..., None] * frequency)[:, None]
        cos, sin = angle.cos(), angle.sin()
        mask = (documents[:, :, None] == documents[:, None, :]) & (place[0, :, None] >= place[0])
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask[:, None])
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
