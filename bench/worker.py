"""One engine in one process, answering timing commands over a pipe: `python bench/worker.py phial|llama_cpp|meter`.

Both engines are timed by the same lines below, each in its own interpreter (llama.cpp's knows nothing of phial).
Commands and answers are one JSON object a line; whatever an engine prints itself goes to stderr. A run is timed from
the call until the logits of the last position can be read. `meter` loads no model: it measures memory bandwidth.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Runner(Protocol):
    """What is asked of an engine: evaluate after what is there, forget from a position on."""

    n_vocab: int

    def eval(self, tokens: Tokens) -> NDArray[np.float32]: ...

    def truncate(self, n: int) -> None: ...

    def eval_each(self, tokens: Tokens) -> NDArray[np.float32]: ...

    def facts(self) -> dict[str, Any]: ...


class Phial:
    """phial, through the engine every other part of it uses."""

    def __init__(
        self, path: str, threads: int, context: int, sequences: int, cache_type: str, kernels: str | None
    ) -> None:
        from phial.engine.cache import PageTable
        from phial.engine.engine import Engine

        settings = {"cache_type": cache_type, "kernels": kernels, "prepared": False}  # as a first start has it
        self.engine = Engine.open(path, n_threads=threads, n_threads_batch=threads, **settings)
        self.tables = [PageTable(self.engine.pool, context) for _ in range(sequences)]
        self.session = self.engine.session(context)
        self.n_vocab = self.engine.config.n_vocab
        self.cache_type = cache_type

    def eval(self, tokens: Tokens) -> NDArray[np.float32]:
        return self.session.eval(tokens.tolist())

    def truncate(self, n: int) -> None:
        self.session.truncate(n)

    def eval_each(self, tokens: Tokens) -> NDArray[np.float32]:
        """One more token for every sequence of a batch; logits (sequences, n_vocab)."""
        from phial.engine.backend import Step, Want

        for table in self.tables:
            table.prepare(1)
        steps = [
            Step([int(token)], table.n_tokens, table.long, table.pages)
            for token, table in zip(tokens, self.tables, strict=True)
        ]
        logits = self.engine.forward(steps, Want.LAST)
        for table in self.tables:
            table.n_tokens += 1
        return logits

    def facts(self) -> dict[str, Any]:
        config = self.engine.config
        return {
            "engine": f"phial, {self.engine.backend_name}, {self.engine.kernel_set}",
            "cache_bytes_per_token": config.kv_bytes_per_token(self.cache_type),
            "window": config.sliding_window,
        }


class LlamaCpp:
    """llama.cpp, through the C functions that llama-cpp-python exposes; its defaults but for what is named here."""

    def __init__(
        self, path: str, threads: int, context: int, sequences: int = 0, flash_attention: str = "auto"
    ) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept alive with the object
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context * (sequences + 1), 2048, 512
        params.n_seq_max = sequences + 1
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash_attention]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.flash_attention = flash_attention
        self.batch: Any = None
        self.each_past = 0

    def eval(self, tokens: Tokens) -> NDArray[np.float32]:
        for start in range(0, len(tokens), 2048):
            part = np.ascontiguousarray(tokens[start : start + 2048])
            pointer = part.ctypes.data_as(ctypes.POINTER(self.api.llama_token))
            # llama_batch_get_one asks for the logits of the last position only, as phial does.
            status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(pointer, len(part)))
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
        self.api.llama_synchronize(self.context)
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.n_vocab,))

    def eval_each(self, tokens: Tokens) -> NDArray[np.float32]:
        """One more token for each of sequences 1, 2, ...; logits (sequences, n_vocab)."""
        n = len(tokens)
        if self.batch is None:
            self.batch = self.api.llama_batch_init(n, 0, 1)
        self.batch.n_tokens = n
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = int(token), self.each_past
            self.batch.n_seq_id[i], self.batch.seq_id[i][0], self.batch.logits[i] = 1, i + 1, 1
        status = self.api.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self.each_past += 1
        self.api.llama_synchronize(self.context)
        rows = [self.api.llama_get_logits_ith(self.context, i) for i in range(n)]
        return np.stack([np.ctypeslib.as_array(row, (self.n_vocab,)) for row in rows])

    def truncate(self, n: int) -> None:
        if not self.api.llama_memory_seq_rm(self.memory, 0, n, -1):
            raise RuntimeError(f"llama.cpp cannot truncate its cache to {n}")

    def facts(self) -> dict[str, Any]:
        system = self.api.llama_print_system_info().decode().strip(" |\n")
        version = self.api.__version__
        return {"engine": f"llama-cpp-python {version}, flash attention {self.flash_attention}, {system}"}


class Timer:
    """Times one engine; fills the cache to a depth only when it is not there already."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.ids = np.random.default_rng(7).integers(10, runner.n_vocab, 1 << 16).astype(np.int32)
        self.filled = 0

    def prefill(self, n: int) -> float:
        """Seconds to evaluate n tokens in an empty cache."""
        self.runner.truncate(0)
        self.filled = 0
        start = time.perf_counter()
        logits = self.runner.eval(self.ids[:n])
        seconds = time.perf_counter() - start
        self.check(logits)
        return seconds

    def decode(self, depth: int, n: int) -> float:
        """Seconds to evaluate n tokens one by one behind `depth` cached ones."""
        if self.filled != depth:
            self.runner.truncate(0)
            if depth:
                self.runner.eval(self.ids[:depth])
            self.filled = depth
        self.runner.truncate(depth)
        steps = [self.ids[i : i + 1] for i in range(depth, depth + n)]
        start = time.perf_counter()
        for step in steps:
            logits = self.runner.eval(step)
        seconds = time.perf_counter() - start
        self.check(logits)
        return seconds

    def batch(self, sequences: int, n: int) -> float:
        """Seconds for n tokens of each of several sequences, a token of each a step."""
        steps = self.ids[: n * sequences].reshape(n, sequences)
        start = time.perf_counter()
        for step in steps:
            logits = self.runner.eval_each(step)
        seconds = time.perf_counter() - start
        if logits.shape != (sequences, self.runner.n_vocab) or not np.isfinite(logits).all():
            raise RuntimeError("the logits of a batch are not finite, or of another number of sequences")
        return seconds

    def check(self, logits: NDArray[np.float32]) -> None:
        if logits.shape != (self.runner.n_vocab,) or not np.isfinite(logits).all():
            raise RuntimeError("the logits are not finite: what was timed is not a forward pass")


def peak_resident() -> int:
    """Highest resident size of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from the size of the process that started us
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bandwidth(threads: int, seconds: float) -> float:
    """Bytes read from memory per second by this many threads."""
    from phial import _native

    return float(_native.read_bandwidth(threads, seconds)) * 1e9


def answer(request: dict[str, Any], state: dict[str, Timer]) -> Any:
    """Carry out one command; `state` keeps the loaded engine."""
    do = request.pop("do")
    if do == "load":
        kind = {"phial": Phial, "llama_cpp": LlamaCpp}[sys.argv[1]]
        state["timer"] = Timer(kind(**request))
        return state["timer"].runner.facts()
    if do == "logits":  # of the last of these tokens, in an empty cache
        runner = state["timer"].runner
        runner.truncate(0)
        return runner.eval(np.array(request["tokens"], np.int32)).tolist()
    if do == "bandwidth":
        return bandwidth(**request)
    if do == "peak":
        return peak_resident()
    return getattr(state["timer"], {"prefill": "prefill", "decode": "decode", "batch": "batch"}[do])(**request)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # an engine's own chatter must not end up among the answers
    state: dict[str, Timer] = {}
    for line in sys.stdin:
        try:
            reply = {"value": answer(json.loads(line), state)}
        except Exception as error:  # the parent reports it and stops
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()
