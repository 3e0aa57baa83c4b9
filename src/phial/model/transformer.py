"""The decoder of Phi-3 (arXiv 2404.14219), Llama and Qwen2 in plain PyTorch, with the parameter names of Hugging Face.

Pre-norm layers of rotary attention and SwiGLU. Rows of a batch are padded on the right: causality keeps the padding out
of every real token, so no padding mask exists; where tokens see both ways, padding is a document of its own.
phi-3-small differs enough to have a file of its own, phi3_small.py. Left out: a key-value cache (generation is the
engine's work), mixtures of experts, vision.

Shapes: B rows, T tokens, D model width, H query heads, K key heads, C head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from phial.config import ModelConfig
from phial.errors import ArgumentError
from phial.model.attention import ATTENTION_PATHS, attend
from phial.model.masks import KeyMask
from phial.model.norm import RMSNorm
from phial.model.places import token_places
from phial.model.rope import Tables, rotary_tables, rotate

Head = Callable[[Tensor, Tensor], Any]
INITIAL_STD = 0.02  # Phi-3's initializer_range


def check_options(attention: str, dropout: float) -> None:
    """Raises ArgumentError for an unknown attention path or a dropout that leaves nothing."""
    if attention not in ATTENTION_PATHS:
        raise ArgumentError(f"unknown attention path {attention!r}", f"use one of: {', '.join(ATTENTION_PATHS)}")
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout is {dropout}", "it must be at least 0 and below 1")


class Attention(nn.Module):
    """Grouped-query attention; Q, K and V are one matrix in phi3 (rows of Q, then K, then V) and three elsewhere."""

    def __init__(self, config: ModelConfig, path: str) -> None:
        super().__init__()
        self.config, self.path = config, path
        d, n_q, n_kv = config.n_embd, config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        self.sizes = (n_q, n_kv, n_kv)
        if config.architecture == "phi3":
            self.qkv_proj = nn.Linear(d, sum(self.sizes), bias=config.qkv_bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, n, bias=config.qkv_bias) for n in self.sizes)
        self.o_proj = nn.Linear(n_q, d, bias=False)

    def forward(self, x: Tensor, tables: Tables, mask: KeyMask) -> Tensor:
        config = self.config
        if config.architecture == "phi3":
            projected: Sequence[Tensor] = self.qkv_proj(x).split(self.sizes, dim=-1)
        else:
            projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.view(*y.shape[:2], -1, config.head_dim).transpose(1, 2) for y in projected)
        q, k = (rotate(y, tables, config.rope_interleaved) for y in (q, k))
        out = attend(self.path, q, k, v, mask, config.head_dim**-0.5)
        result: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return result


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix in phi3, the gate's rows first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fused = config.architecture == "phi3"
        if self.fused:
            self.gate_up_proj = nn.Linear(config.n_embd, 2 * config.n_ff, bias=False)
        else:
            self.gate_proj = nn.Linear(config.n_embd, config.n_ff, bias=False)
            self.up_proj = nn.Linear(config.n_embd, config.n_ff, bias=False)
        self.down_proj = nn.Linear(config.n_ff, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        result: Tensor = self.down_proj(functional.silu(gate) * up)
        return result


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind its norm and added to the stream; dropout on what is added."""

    def __init__(
        self, norms: tuple[nn.Module, nn.Module], attention: nn.Module, mlp: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norms
        self.self_attn, self.mlp = attention, mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        """x: (B, T, D). shared: what the attention of every layer takes besides."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), *shared))
        result: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return result


class Decoder(nn.Module):
    """Tokens to hidden states after the final norm: everything but the output matrix."""

    def __init__(self, config: ModelConfig, path: str, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.n_vocab, config.n_embd)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(self._layer(path, dropout) for _ in range(config.n_layer))
        self.norm = self._norm()

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.n_embd, self.config.rms_norm_eps)

    def _layer(self, path: str, dropout: float) -> DecoderLayer:
        norms = (self._norm(), self._norm())
        return DecoderLayer(norms, Attention(self.config, path), SwiGLU(self.config), dropout)

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int] | None = None,
        documents: Tensor | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, (B, T, D); arguments as Transformer.forward's."""
        if lengths is not None and not self.config.causal:  # which keeps the padding out of the tokens before it
            token_places(tokens, lengths, documents)  # says what is wrong with the arguments
            ends = torch.tensor(lengths, device=tokens.device)[:, None]
            lengths, documents = None, (torch.arange(tokens.shape[1], device=tokens.device) >= ends).long()
        places = token_places(tokens, lengths, documents, branches)
        tables = rotary_tables(self.config, places)
        mask = KeyMask(places, self.config.sliding_window, causal=self.config.causal)
        x: Tensor = self.dropout(self.embed_tokens(tokens))
        for layer in self.layers:
            x = layer(x, tables, mask)
        result: Tensor = self.norm(x)
        return result


class Transformer(nn.Module):
    """A phi3, llama or qwen2 model to train or to compare with.

    Under `torch.device("meta")` nothing is allocated; nothing but parameters holds state, so to_empty() and loading the
    weights afterwards give a whole model. A tied model has no lm_head.

    Args:
        attention: "auto", FlexAttention for masks on a GPU, blockwise in training on a CPU, else PyTorch's fused
            kernels; "sdpa", the latter; "flex"; "blockwise"; "plain", written out, for tests.
        dropout: on the embeddings and on what each half of a layer adds, in training mode; Phi-3 has none.

    Raises ArgumentError for an unknown attention path or a dropout outside 0..1 (1 excluded).
    """

    def __init__(self, config: ModelConfig, *, attention: str = "auto", dropout: float = 0.0) -> None:
        super().__init__()
        check_options(attention, dropout)
        self.config = config
        self.model = Decoder(config, attention, dropout)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.n_vocab, bias=False)
        self.apply(initialise)

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int] | None = None,
        documents: Tensor | None = None,
        head: Head | None = None,
        branches: Tensor | None = None,
    ) -> Any:
        """Logits, (B, T, V), of rows of token ids, (B, T).

        Args:
            lengths: real tokens of each row, the rest being padding on the right, whose logits mean nothing; None: all.
            documents: for rows that hold several documents, the document of each token, (B, T) integers: each run of
                equal ids is one. Tokens see their own document alone, and their positions begin with it.
            head: what to return instead of logits, made of hidden states (B, T, D) and the output matrix (V, D): a loss
                that never holds all logits, or the hidden states themselves.
            branches: for documents that branch, 0 for each token of the trunk, then 1, 2, ... for those of its
                continuations, (B, T) integers: a branch sees the trunk and itself, as if it alone followed.

        Each row's, and each document's, LongRoPE factors follow from its own length, with its longest branch. Raises
        ArgumentError if lengths, documents or branches do not fit the tokens, or where the first two are given.
        """
        x: Tensor = self.model(tokens, lengths, documents, branches)
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return (head or functional.linear)(x, weight)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give a model another dropout than it was made with. Raises ArgumentError for one that leaves nothing."""
    check_options("auto", rate)
    for module in model.modules():
        if isinstance(module, Decoder | DecoderLayer):
            module.dropout.p = rate


def initialise(module: nn.Module) -> None:
    """Matrices from a normal distribution, biases zero; norms are born right. For nn.Module.apply."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
