"""A backend without a model: pages hold token ids and factor sets, logits are noise seeded by what the pages hold.

So any error in the bookkeeping (a page shared and overwritten, a wrong factor set, a lost position) changes the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phial.config import ModelConfig
from phial.engine.backend import Step, Want
from phial.engine.disk_cache import DiskCache
from phial.engine.engine import Engine
from phial.engine.state import Identity

N_VOCAB, N_EMBD, PAGE_TOKENS = 32, 8, 4
ORIGINAL_CONTEXT = 24


class ToyStore:
    """Pages (PAGE_TOKENS, 3) of int32: token id, factor set, times turned; -1 where nothing was written."""

    page_tokens, page_bytes = PAGE_TOKENS, PAGE_TOKENS * 12

    def __init__(self) -> None:
        self.pages: dict[int, np.ndarray] = {}
        self.made = 0

    def new_page(self) -> int:
        self.made += 1
        self.pages[self.made] = np.full((PAGE_TOKENS, 3), -1, "<i4")
        return self.made

    def free_page(self, page: int, /) -> None:
        del self.pages[page]

    def copy_page(self, source: int, target: int, /) -> None:
        self.pages[target][:] = self.pages[source]

    def read_page(self, page: int, /) -> bytes:
        return self.pages[page].tobytes()

    def write_page(self, page: int, data: bytes, /) -> None:
        self.pages[page][:] = np.frombuffer(data, "<i4").reshape(PAGE_TOKENS, 3)

    def rotate_keys(self, page: int, cos: np.ndarray, sin: np.ndarray, /) -> None:
        assert cos.shape == sin.shape == (PAGE_TOKENS, 2)
        written = self.pages[page][:, 0] >= 0
        self.pages[page][written, 1] ^= 1
        self.pages[page][written, 2] += 1


def logits_of(tokens: Sequence[int], long: bool, width: int = N_VOCAB) -> np.ndarray:
    """What the toy answers after these tokens."""
    text = np.array([[t, long] for t in tokens], "<i4").tobytes()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


class ToyBackend:
    """Counts the tokens it ran; raises `fail_with` before the step in which its countdown ends."""

    name, kernel_set, batch_invariant = "toy", "none", True

    def __init__(self) -> None:
        self.store = ToyStore()
        self.tokens_run = 0
        self.steps: list[int] = []
        self.fail_after: int | None = None
        self.fail_with: type[BaseException] = KeyboardInterrupt

    def forward(self, steps: Sequence[Step], want: Want) -> np.ndarray:
        rows: list[np.ndarray] = []
        for step in steps:
            end = step.n_past + len(step.tokens)
            self._write(step)
            if self.fail_after is not None:
                self.fail_after -= 1
                if self.fail_after < 0:
                    self.fail_after = None
                    raise self.fail_with
            self.tokens_run += len(step.tokens)
            self.steps.append(len(step.tokens))
            held = np.concatenate([self.store.pages[page] for page in step.pages])[:end]
            assert (held[:, 0] >= 0).all(), "a position was never written"
            assert (held[:, 1] == step.long).all(), "keys of both factor sets in one sequence"
            width = N_EMBD if want == Want.HIDDEN else N_VOCAB
            first = {Want.LAST: end - 1, Want.NOTHING: end}.get(want, step.n_past)
            rows += [logits_of(held[: i + 1, 0].tolist(), step.long, width) for i in range(first, end)]
        return np.stack(rows) if rows else np.empty((0, N_VOCAB), np.float32)

    def _write(self, step: Step) -> None:
        for position, token in enumerate(step.tokens, step.n_past):
            self.store.pages[step.pages[position // PAGE_TOKENS]][position % PAGE_TOKENS] = token, step.long, 0

    def close(self) -> None:
        self.store.pages.clear()


def toy_config(**changes: Any) -> ModelConfig:
    """A LongRoPE model that switches above ORIGINAL_CONTEXT tokens."""
    sizes = {"n_vocab": N_VOCAB, "n_embd": N_EMBD, "n_layer": 1, "n_head": 1, "n_head_kv": 1, "head_dim": 4, "n_ff": 8}
    rope = {
        "rope_theta": 1e4,
        "rope_dim": 4,
        "rope_interleaved": False,
        "rope_original_context": ORIGINAL_CONTEXT,
        "rope_short_factors": (1.0, 1.0),
        "rope_long_factors": (2.0, 3.0),
    }
    values = {"architecture": "phi3", "n_ctx_train": 128, "rms_norm_eps": 1e-5, **sizes, **rope, **changes}
    return ModelConfig(**values)


def toy_engine(
    prefix_pages: int = 64,
    model: str = "toy",
    rope_switch: str = "reprefill",
    disk_prefixes: DiskCache | None = None,
    **changes: Any,
) -> Engine:
    """An engine over the toy backend."""
    return Engine(
        ToyBackend(),
        toy_config(**changes),
        tokenizer=None,
        identity=Identity(model, "f16", "toy"),  # type: ignore[arg-type]
        metadata={},
        path=Path("toy.gguf"),
        prefix_bytes=prefix_pages * ToyStore.page_bytes,
        rope_switch=rope_switch,
        disk_prefixes=disk_prefixes,
    )
