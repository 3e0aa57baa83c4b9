"""The engine: a model file opened for inference. Token ids in, logits and token ids out.

Engine.open reads the header, chooses the backend (the compiled core, or the numpy reference where there is none) and
loads the weights; sessions hold sequences. Left out: text (chat templates, stop strings) and several sequences in
one step, which are the callers' and the scheduler's.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phial.config import ModelConfig
from phial.engine import native_backend
from phial.engine.adapters import LoadedAdapter, Mix, Wanted, mix
from phial.engine.backend import Backend, Step, Want
from phial.engine.cache import PagePool, check_cache_type
from phial.engine.disk_cache import DISK_BYTES, DiskCache
from phial.engine.memory import MemoryEstimate, available_memory, estimate_for, memory_estimate
from phial.engine.model_file import model_fingerprint, read_config
from phial.engine.prepared import prepared_tiles
from phial.engine.rope_switch import check_rope_switch
from phial.engine.session import Session
from phial.engine.speculation import PassCosts
from phial.engine.state import Identity
from phial.errors import ArgumentError, PhialError
from phial.gguf.adapter import read_adapter
from phial.gguf.container import GGUFFile, read_gguf
from phial.threads import checked_threads

if TYPE_CHECKING:
    from phial.tokenizer.tokenizer import Tokenizer

__all__ = ["Engine", "MemoryEstimate", "Session", "memory_estimate"]

BACKENDS = ("auto", "native", "reference")
PREFIX_BYTES = 256 << 20  # pages kept when no session is open


class Engine:
    """A loaded model; made by Engine.open, freed by close() or as a context manager.

    Attributes:
        config, tokenizer, metadata, path: of the model.
        rope_switch: how sequences switch LongRoPE's factor set; see rope_switch.py.
        adapters: what load_adapter has loaded.
        backend_name: "native" or "reference".
        batch_invariant: whether logits are the same bits whatever is computed along with them.
        pass_costs: what passes of several tokens have cost.
        disk_prefixes: where beginnings of prompts outlive the process; None: nowhere.
        lock: held by sessions while they touch pages or run a step.
    """

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        tokenizer: Tokenizer,
        identity: Identity,
        *,
        metadata: dict[str, Any],
        path: Path,
        prefix_bytes: int = PREFIX_BYTES,
        rope_switch: str = "reprefill",
        disk_prefixes: DiskCache | None = None,
    ) -> None:
        self.config, self.tokenizer, self.identity = config, tokenizer, identity
        self.metadata, self.path = metadata, path
        self.backend_name = backend.name
        self.rope_switch = rope_switch
        self.batch_invariant = backend.batch_invariant
        self.pass_costs = PassCosts()
        self.disk_prefixes = disk_prefixes
        self.lock = threading.RLock()
        self.adapters: list[LoadedAdapter] = []
        self._backend: Backend | None = backend
        self._pool: PagePool | None = PagePool(backend.store, prefix_bytes)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._warned = False

    @classmethod
    def open(
        cls,
        model_path: str | Path,
        *,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        cache_type: str = "f16",
        backend: str = "auto",
        kernels: str | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        prefix_dir: str | os.PathLike[str] | None = None,
        prefix_dir_bytes: int = DISK_BYTES,
        rope_switch: str = "reprefill",
        prepared: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Open a GGUF model.

        Args:
            n_threads: for single tokens; None: the physical cores this process may use.
            n_threads_batch: for prompts; None: as n_threads.
            cache_type: "f16", "bf16" or "q8_0".
            backend: "native", "reference" (numpy, slow), or "auto": native where it is built.
            kernels: kernel set for the whole process; None: the fastest, or PHIAL_KERNELS.
            prefix_bytes: memory for pages kept for reuse while no session is open.
            prefix_dir: a folder where beginnings of long prompts are kept for later processes; see disk_cache.py. Only
                the native backend does so. None: nowhere.
            prefix_dir_bytes: the most it may hold.
            rope_switch: what passing a LongRoPE model's original context does: "reprefill" computes all keys again,
                "rerotate" turns them, fast and not exact.
            prepared: use the file that `phial pull --prepare` made, where it is there and fits; see prepared.py.
            progress: called while loading with (bytes done, bytes to do).

        Raises:
            PhialError: the file cannot be opened, or does not fit into memory.
            FormatError: it is damaged or not supported.
            ArgumentError: an argument is out of range or cannot be honoured here.
        """
        check_cache_type(cache_type)
        check_rope_switch(rope_switch)
        threads = checked_threads("n_threads", n_threads)
        batch = threads if n_threads_batch is None else checked_threads("n_threads_batch", n_threads_batch)
        kind = _choose_backend(backend, kernels)
        with read_gguf(model_path) as file:
            config = read_config(file)
            tokenizer = _tokenizer(file)
            _warn(file, config, cache_type, kind, rope_switch)
            loaded = _load(kind, file, config, cache_type, threads, batch, prepared, progress)
            identity = Identity(model_fingerprint(file, config), cache_type, kind)
            return cls(
                loaded,
                config,
                tokenizer,
                identity,
                metadata=file.metadata,
                path=file.path,
                prefix_bytes=prefix_bytes,
                rope_switch=rope_switch,
                disk_prefixes=_disk_prefixes(file, identity, loaded, prefix_dir, prefix_dir_bytes),
            )

    @property
    def kernel_set(self) -> str:
        """The kernels in use, for example "avx2"; "numpy" for the reference."""
        return self._live().kernel_set

    @property
    def pool(self) -> PagePool:
        """The cache's pages."""
        if self._pool is None:
            raise PhialError("the engine is closed", "open it again with Engine.open")
        return self._pool

    def load_adapter(self, path: str | os.PathLike[str]) -> LoadedAdapter:
        """Load a LoRA adapter, a folder that PEFT saved or a GGUF file, for sessions to name; no weight changes.

        It stays until the engine is closed. The same adapter again is the same object.

        Raises:
            FormatError: it is damaged, made for another model, or changes what only a merge could honour.
            PhialError: there is none, or no memory for it.
        """
        adapter = read_adapter(path, self.config)
        with self.lock:
            for known in self.adapters:
                if known.fingerprint == adapter.fingerprint:
                    return known
            loaded = LoadedAdapter(adapter.name, adapter.fingerprint, len(self.adapters))
            self._live().load_adapter(adapter, loaded.number)
            self.adapters.append(loaded)
            return loaded

    def mix(self, adapters: Wanted) -> Mix:
        """Check adapters and scales for a session; see Session.set_adapters."""
        return mix(self.adapters, adapters)

    def session(self, n_ctx: int, adapters: Wanted = ()) -> Session:
        """Return a new, empty sequence of at most n_ctx tokens; its memory grows with use.

        adapters: (what load_adapter returned, scale) each; they are added to the weights for this sequence alone.
        """
        if isinstance(n_ctx, bool) or not isinstance(n_ctx, (int, np.integer)) or not 1 <= n_ctx < 2**31:
            raise ArgumentError(f"n_ctx is {n_ctx!r}", f"use 1 up to the trained context, {self.config.n_ctx_train}")
        if n_ctx > self.config.n_ctx_train and not self._warned:
            self._warned = True
            _say(
                f"n_ctx is {n_ctx}, more than the {self.config.n_ctx_train} tokens the model was trained with: "
                "text beyond that will be poor"
            )
        with self.lock:
            session = Session(self, int(n_ctx), self.mix(adapters))
            self._sessions.add(session)
        return session

    def forward(self, steps: Sequence[Step], want: Want) -> NDArray[np.float32]:
        """Run one step of several sequences whose pages are prepared; the caller holds the lock."""
        return self._live().forward(steps, want)

    def input_squares(self, tokens: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Run tokens as a text of their own; return what an importance matrix sums.

        For each matrix, by its GGUF name, the sum over the tokens of the square of each input, (columns,). A tied
        embedding has that of the output product. Raises as Session.hidden does; other sessions wait meanwhile.
        """
        with self.lock:
            backend = self._live()
            backend.collect(True)
            try:
                with self.session(len(tokens)) as session:
                    hidden = session.hidden(tokens)  # what the output matrix would multiply
                head = "token_embd.weight" if self.config.tie_embeddings else "output.weight"
                return backend.squares() | {head: np.square(hidden, dtype=np.float64).sum(axis=0)}
            finally:
                backend.collect(False)

    def close(self) -> None:
        """Close all sessions and free weights and pages. Twice is once."""
        with self.lock:
            if self._backend is None:
                return
            for session in list(self._sessions):
                session.close()
            self.pool.close()
            self._backend.close()
            self._backend = self._pool = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _live(self) -> Backend:
        if self._backend is None:
            raise PhialError("the engine is closed", "open it again with Engine.open")
        return self._backend


def _say(text: str) -> None:
    print(f"phial: {text}", file=sys.stderr)


def _choose_backend(backend: str, kernels: str | None) -> str:
    if backend not in BACKENDS:
        raise ArgumentError(f"backend is {backend!r}", f"use one of: {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = "native" if native_backend.is_available() else "reference"
        if backend == "reference":
            _say("no compiled core in this installation: running the numpy reference, which is slow")
    if backend == "reference":
        if kernels is not None:
            raise ArgumentError(f"kernels is {kernels!r}, but the reference backend has none", "leave kernels out")
    elif not native_backend.is_available():
        raise ArgumentError(
            "backend is 'native', but this installation has no compiled core",
            "build it (pip install .) or use backend='reference'",
        )
    else:
        native_backend.choose_kernels(kernels)
    return backend


def _load(
    kind: str,
    file: GGUFFile,
    config: ModelConfig,
    cache_type: str,
    n_threads: int,
    n_threads_batch: int,
    prepared: bool,
    progress: Callable[[int, int], None] | None,
) -> Backend:
    if kind == "native":
        return native_backend.NativeBackend(
            file,
            config,
            cache_type=cache_type,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            tiles=prepared_tiles(file, config) if prepared else None,
            progress=progress,
        )
    from phial.engine.reference_backend import ReferenceBackend

    return ReferenceBackend(file.path, config, cache_type)


def _disk_prefixes(
    file: GGUFFile, identity: Identity, backend: Backend, folder: str | os.PathLike[str] | None, max_bytes: int
) -> DiskCache | None:
    """Keys on disk belong to the very file, build and kernels that computed them, so that results keep their bits."""
    if folder is None or not backend.batch_invariant:
        return None
    status = file.path.stat()
    parts = (*vars(identity).values(), status.st_size, status.st_mtime_ns, backend.kernel_set)
    owner = " ".join(map(str, (*parts, native_backend.core_digest())))
    return DiskCache(Path(folder), owner, max_bytes=max_bytes)


def _tokenizer(file: GGUFFile) -> Tokenizer:
    from phial.tokenizer.tokenizer import Tokenizer  # here: its dependencies are slow to import

    return Tokenizer.from_gguf(file.metadata)


def _warn(file: GGUFFile, config: ModelConfig, cache_type: str, kind: str, rope_switch: str) -> None:
    """Say on stderr what will not be as asked: memory, before loading makes the machine swap, and the switch."""
    needed = estimate_for(file, config, 1, cache_type, kind, 1)
    free = available_memory()
    if free is not None and needed.total > free:
        _say(f"{file.path.name} needs {needed.total / 2**30:.2f} GiB of memory, {free / 2**30:.2f} GiB are available")
    if rope_switch != "reprefill" and config.rope_long_factors is None:
        _say(f"rope_switch={rope_switch!r} has no effect: the model has one set of RoPE factors")
