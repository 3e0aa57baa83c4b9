"""phi-3-small in PyTorch (arXiv 2404.14219 §2): LayerNorm, GEGELU, muP multipliers, block-sparse and dense layers.

Parameter names are those of the published checkpoint. Sizes and RoPE are a ModelConfig's; what only this model has
stands in Phi3SmallConfig around it. Left out: the 128k model's factor lists (a checkpoint brings them), GGUF (it has no
such architecture).

Shapes: B rows, T tokens, D model width, H query heads, K key heads, C head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from phial.config import ModelConfig
from phial.errors import ArgumentError
from phial.model.attention import attend
from phial.model.masks import KeyMask
from phial.model.places import token_places
from phial.model.rope import Tables, rotary_tables, rotate
from phial.model.sparse import BlockPattern
from phial.model.transformer import DecoderLayer, check_options, initialise

DUMMY_IDS = (100256, 100264, 100265, *range(100267, 100276), *range(100277, 100352))


@dataclass(frozen=True)
class Phi3SmallConfig:
    """Raises ArgumentError where the parts do not fit each other.

    Attributes:
        shape: sizes and RoPE; its rms_norm_eps is LayerNorm's.
        dense_every: layer l, from 0, is dense where (l + 1) is a multiple of it, block-sparse elsewhere.
        gegelu_limit: bound of what enters GEGELU.
        embedding_multiplier: on the embeddings. attention_multiplier: over C, scales the scores.
        width_multiplier: divides the logits.
        dummy_ids: unused rows of the vocabulary, never predicted.
    """

    shape: ModelConfig
    pattern: BlockPattern = field(default_factory=BlockPattern)
    dense_every: int = 2
    gegelu_limit: float = 20.0
    embedding_multiplier: float = 10.0
    attention_multiplier: float = 1.0
    width_multiplier: float = 8.0
    dummy_ids: tuple[int, ...] = DUMMY_IDS

    def __post_init__(self) -> None:
        if self.pattern.n_head != self.shape.n_head:
            raise ArgumentError(
                f"the pattern is made for {self.pattern.n_head} heads, the model has {self.shape.n_head}"
            )
        if self.shape.sliding_window is not None or not self.shape.tie_embeddings or not self.shape.qkv_bias:
            raise ArgumentError("phi-3-small has tied embeddings, biases and no sliding window", "change its shape")
        if self.dense_every < 1:
            raise ArgumentError(f"dense_every is {self.dense_every}", "it must be at least 1; 1: every layer is dense")
        if outside := [i for i in self.dummy_ids if not 0 <= i < self.shape.n_vocab]:
            raise ArgumentError(f"dummy id {outside[0]} is outside the vocabulary of {self.shape.n_vocab}")

    def is_dense(self, layer: int) -> bool:
        return (layer + 1) % self.dense_every == 0


PHI_3_SMALL_8K = Phi3SmallConfig(
    ModelConfig(
        name="phi-3-small-8k",
        architecture="phi3",
        n_vocab=100352,
        n_embd=4096,
        n_layer=32,
        n_head=32,
        n_head_kv=8,
        head_dim=128,
        n_ff=14336,
        n_ctx_train=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        rope_dim=128,
        rope_interleaved=False,
        qkv_bias=True,
        tie_embeddings=True,
    )
)


def gegelu(x: Tensor, limit: float) -> Tensor:
    """a sigmoid(1.702 a) (b + 1) of the even columns a, at most limit, and the odd ones b, within +-limit.

    x: (..., 2F). Returns (..., F).
    """
    a, b = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return a * torch.sigmoid(1.702 * a) * (b + 1)


class SmallAttention(nn.Module):
    """Dense or block-sparse attention; the projection's rows go by key head: its H/K queries, the key, the value."""

    def __init__(self, config: Phi3SmallConfig, layer: int, path: str) -> None:
        super().__init__()
        self.config, self.path, self.is_dense = config, path, config.is_dense(layer)
        shape = config.shape
        self.scale = config.attention_multiplier / shape.head_dim  # muP: not the square root
        n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        self.query_key_value = nn.Linear(shape.n_embd, n_q + 2 * n_kv)
        self.dense = nn.Linear(n_q, shape.n_embd)

    def forward(self, x: Tensor, tables: Tables, dense: KeyMask, sparse: KeyMask) -> Tensor:
        shape = self.config.shape
        group = shape.n_head // shape.n_head_kv
        grouped = self.query_key_value(x).unflatten(-1, (shape.n_head_kv, group + 2, shape.head_dim))
        q, k, v = (y.flatten(2, 3).transpose(1, 2) for y in grouped.split((group, 1, 1), dim=3))
        q, k = (rotate(y, tables, shape.rope_interleaved) for y in (q, k))
        out = attend(self.path, q, k, v, dense if self.is_dense else sparse, self.scale)
        result: Tensor = self.dense(out.transpose(1, 2).flatten(-2))
        return result


class GEGELUMLP(nn.Module):
    """down(gegelu(up(x)))."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.shape.n_embd, 2 * config.shape.n_ff)
        self.down_proj = nn.Linear(config.shape.n_ff, config.shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(gegelu(self.up_proj(x), self.limit))
        return result


class SmallDecoder(nn.Module):
    """Tokens to hidden states after the final norm."""

    def __init__(self, config: Phi3SmallConfig, path: str, dropout: float) -> None:
        super().__init__()
        self.config, shape = config, config.shape
        self.embed_tokens = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(self._layer(layer, path, dropout) for layer in range(shape.n_layer))
        self.final_layernorm = self._norm()

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.shape.n_embd, eps=self.config.shape.rms_norm_eps)

    def _layer(self, layer: int, path: str, dropout: float) -> DecoderLayer:
        norms = (self._norm(), self._norm())
        return DecoderLayer(norms, SmallAttention(self.config, layer, path), GEGELUMLP(self.config), dropout)

    def forward(self, tokens: Tensor, lengths: Sequence[int] | None = None, documents: Tensor | None = None) -> Tensor:
        """Hidden states, (B, T, D); arguments as Phi3Small.forward's."""
        places = token_places(tokens, lengths, documents)
        tables = rotary_tables(self.config.shape, places)
        dense, sparse = KeyMask(places), KeyMask(places, pattern=self.config.pattern)
        x: Tensor = self.dropout(self.embed_tokens(tokens) * self.config.embedding_multiplier)
        for layer in self.layers:
            x = layer(x, tables, dense, sparse)
        result: Tensor = self.final_layernorm(x)
        return result


class Phi3Small(nn.Module):
    """phi-3-small to train or to compare with; arguments and errors as Transformer's. The output matrix is tied.

    The published model trains with dropout 0.1.
    """

    def __init__(self, config: Phi3SmallConfig, *, attention: str = "auto", dropout: float = 0.0) -> None:
        super().__init__()
        check_options(attention, dropout)
        self.config = config
        self.model = SmallDecoder(config, attention, dropout)
        self.apply(initialise)

    def forward(self, tokens: Tensor, lengths: Sequence[int] | None = None, documents: Tensor | None = None) -> Tensor:
        """Logits, (B, T, V), those of dummy ids -inf; arguments and errors as Transformer.forward's."""
        x: Tensor = self.model(tokens, lengths, documents)
        logits = functional.linear(x, self.model.embed_tokens.weight) / self.config.width_multiplier
        unused = torch.tensor(self.config.dummy_ids, dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, unused, -torch.inf)
