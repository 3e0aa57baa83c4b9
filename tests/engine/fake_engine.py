"""An engine without a model, for tests of what is built on sessions: it says what a script tells it to.

The vocabulary is a list of byte strings; logits are noise that depends on the whole sequence, with a peak at the next
scripted token. A session keeps the rules of phial.engine.session: context limit, prefix reuse, saving.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phial.engine import llama_core
from phial.engine.llama import Llama
from phial.errors import ContextLimitError, FormatError

BOS, EOS, USER = 0, 1, 2
CONTROL = {BOS: b"<s>", EOS: b"</s>", USER: b"<|user|>"}
N_EMBD = 4


class FakeTokenizer:
    """Ids 0-2 are control tokens, the next 256 single bytes, then the pieces given; encodes longest piece first."""

    bos_id, eos_id, add_bos = BOS, EOS, True
    eog_ids = frozenset({EOS})
    control_ids = frozenset(CONTROL)

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [*CONTROL.values(), *(bytes([b]) for b in range(256)), *pieces]
        self.n_vocab = len(self.pieces)

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        data, ids = text.encode(), []
        known = [(p, i) for i, p in enumerate(self.pieces) if i not in CONTROL or special]
        known.sort(key=lambda entry: -len(entry[0]))
        while data:
            piece, token = next((p, i) for p, i in known if data.startswith(p))
            ids.append(token)
            data = data[len(piece) :]
        return ids if add_bos is False or ids[:1] == [BOS] else [BOS, *ids]

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


class FakeSession:
    """Logits by script."""

    def __init__(self, engine: FakeEngine, n_ctx: int) -> None:
        self.engine, self.n_ctx, self._tokens, self.evaluated = engine, n_ctx, list[int](), list[int]()

    @property
    def tokens(self) -> list[int]:
        return list(self._tokens)

    @property
    def n_past(self) -> int:
        return len(self._tokens)

    def eval(self, tokens: Sequence[int], *, all_logits: bool = False) -> np.ndarray:
        if self.n_past + len(tokens) > self.n_ctx:
            raise ContextLimitError(f"{len(tokens)} tokens after {self.n_past}, the context holds {self.n_ctx}")
        rows = []
        for token in tokens:
            self._tokens.append(token)
            self.evaluated.append(token)
            rows.append(self.engine.logits(self._tokens))
        return np.stack(rows) if all_logits else rows[-1]

    def truncate(self, n: int) -> None:
        del self._tokens[n:]

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        kept = 0
        while kept < min(len(self.tokens), len(tokens) - 1) and self.tokens[kept] == tokens[kept]:
            kept += 1
        self.truncate(kept)
        return kept

    def hidden(self, tokens: Sequence[int]) -> np.ndarray:
        return np.array([[t, t + 1, 2, 0] for t in tokens], np.float32)

    def save(self) -> bytes:
        return b"FAKE" + np.array(self.tokens, "<i4").tobytes()

    def load(self, data: bytes) -> None:
        if data[:4] != b"FAKE":
            raise FormatError("not a saved session")
        self._tokens = np.frombuffer(data[4:], "<i4").tolist()

    def close(self) -> None:
        self._tokens = []


class FakeEngine:
    """Follows `script`: after the tokens of the prompt come the tokens of the script, then EOS."""

    backend_name, kernel_set, batch_invariant = "fake", "none", False

    def __init__(self, pieces: Sequence[bytes], script: Sequence[int], prompt: Sequence[int]) -> None:
        self.tokenizer = FakeTokenizer(pieces)
        self.script, self.prompt = [*script, EOS], list(prompt)
        self.metadata: dict[str, Any] = {"general.architecture": "fake", "general.name": "a fake"}
        self.config = SimpleNamespace(
            n_vocab=self.tokenizer.n_vocab, n_embd=N_EMBD, n_layer=3, n_ctx_train=256, uses_long=lambda n: False
        )
        self.closed = False

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        seed = hashlib.sha256(np.array(tokens, "<i4").tobytes()).digest()
        noise = np.random.default_rng(list(seed)).standard_normal(self.config.n_vocab).astype(np.float32)
        full, n = self.prompt + self.script, len(tokens)
        if len(self.prompt) <= n < len(full) and list(tokens) == full[:n]:
            noise[full[n]] += 20
        return noise

    def session(self, n_ctx: int, adapters: Sequence[Any] = ()) -> FakeSession:
        return FakeSession(self, n_ctx)

    def close(self) -> None:
        self.closed = True


def fake_llama(
    monkeypatch: pytest.MonkeyPatch, folder: Path, parts: Sequence[bytes], prompt: str = "P", **arguments: Any
) -> Llama:
    """A Llama that answers `prompt` with one token per part."""
    pieces = list(dict.fromkeys(part for part in parts if len(part) > 1))
    tokenizer = FakeTokenizer(pieces)
    script = [tokenizer.pieces.index(part, 0 if part in CONTROL.values() else len(CONTROL)) for part in parts]
    engine = FakeEngine(pieces, script, tokenizer.encode(prompt, special=True) or [BOS])
    opener = SimpleNamespace(open=lambda path, **options: engine)
    monkeypatch.setattr(llama_core, "Engine", opener)
    path = folder / "fake.gguf"
    path.write_bytes(b"")
    return Llama(path, **{"verbose": False, "chat_format": "chatml", **arguments})
