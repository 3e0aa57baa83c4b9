"""Saved states of a Llama, and two caches of them keyed by token prefix: in memory and in a folder.

A state on disk is a numpy archive read with allow_pickle=False: nothing in it can run. The keys and values inside
`llama_state` are the session's own format, which checks whose they are when it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.engine.llama_arguments import say
from phial.errors import ArgumentError, FormatError

DEFAULT_CAPACITY = 2 << 30
SUFFIX = ".state.npz"


@dataclass
class LlamaState:
    """What Llama.save_state returns.

    Attributes:
        input_ids: (n_ctx,), the first n_tokens are the evaluated ids.
        scores: (n_tokens, n_vocab) logits where the model keeps them all, else (0, n_vocab).
        n_tokens: how many tokens were evaluated.
        llama_state: keys and values of those tokens, as Session.save writes them.
        llama_state_size: length of llama_state.
        seed: what Llama.set_seed was given last.
    """

    input_ids: NDArray[np.intc]
    scores: NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int


def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def nearest_key(keys: Iterable[tuple[int, ...]], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """The key that shares the longest prefix with the wanted tokens; None where no key shares any."""
    best, shared = None, 0
    for key in keys:
        length = longest_token_prefix(key, wanted)
        if length > shared:
            best, shared = key, length
    return best


class BaseLlamaCache(ABC):
    """States by the tokens they belong to; asking returns the state with the longest common prefix, else KeyError."""

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY) -> None:
        if capacity_bytes < 0:
            raise ArgumentError(f"capacity_bytes={capacity_bytes!r} is negative", "the default is 2 GiB")
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes in use."""

    @abstractmethod
    def _keys(self) -> Iterable[tuple[int, ...]]: ...
    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState: ...
    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...

    def __contains__(self, key: Sequence[int]) -> bool:
        return nearest_key(self._keys(), key) is not None

    def _nearest(self, key: Sequence[int]) -> tuple[int, ...]:
        found = nearest_key(self._keys(), key)
        if found is None:
            raise KeyError("no state with a common prefix")
        return found


class LlamaRAMCache(BaseLlamaCache):
    """States in memory; the ones unused for longest make way."""

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        return sum(_n_bytes(state) for state in self.cache_state.values())

    def _keys(self) -> Iterable[tuple[int, ...]]:
        return self.cache_state.keys()

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = self._nearest(key)
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.cache_state.pop(tuple(key), None)
        self.cache_state[tuple(key)] = value
        while self.cache_state and self.cache_size > self.capacity_bytes:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """States in a folder, one file each, shared by all programs that use it; the oldest-used files make way."""

    def __init__(
        self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = DEFAULT_CAPACITY
    ) -> None:
        super().__init__(capacity_bytes)
        self.folder = Path(cache_dir)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def cache_size(self) -> int:
        return sum(size for _, _, size in self._files())

    def _files(self) -> list[tuple[float, Path, int]]:
        """(time of last use, file, bytes), oldest first; a file that vanishes meanwhile is no error."""
        found = []
        for path in self.folder.glob("*" + SUFFIX):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, path, status.st_size))
        return sorted(found)

    def _keys(self) -> Iterable[tuple[int, ...]]:
        for _, path, _ in self._files():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    yield tuple(int(i) for i in archive["key"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                say(f"removed a damaged state from the cache: {path} ({error})")
                path.unlink(missing_ok=True)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        path = self._path(self._nearest(key))
        try:
            os.utime(path)
            return load_state(path)
        except FileNotFoundError as error:
            raise KeyError("the state was removed meanwhile") from error
        except FormatError as error:
            path.unlink(missing_ok=True)
            say(f"removed a damaged state from the cache: {error.message}")
            raise KeyError("the state was damaged") from error

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        save_state(self._path(tuple(key)), key, value)
        files, used = self._files(), self.cache_size
        for _, path, size in files:
            if used <= self.capacity_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size

    def _path(self, key: tuple[int, ...]) -> Path:
        return self.folder / (hashlib.sha256(np.array(key, "<i4").tobytes()).hexdigest()[:40] + SUFFIX)


def save_state(path: Path, key: Sequence[int], state: LlamaState) -> None:
    """Write a state and its key, under a temporary name first."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        key=np.array(key, "<i4"),
        input_ids=np.asarray(state.input_ids, "<i4"),
        scores=np.asarray(state.scores, "<f4"),
        numbers=np.array([state.n_tokens, state.seed], "<i8"),
        llama_state=np.frombuffer(state.llama_state, np.uint8),
    )
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_state(path: Path) -> LlamaState:
    """Read what save_state wrote.

    Raises:
        FormatError: the file is damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            n_tokens, seed = (int(number) for number in archive["numbers"])
            data = archive["llama_state"].tobytes()
            return LlamaState(archive["input_ids"].astype(np.intc), archive["scores"], n_tokens, data, len(data), seed)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} holds no saved state: {error}", "delete it; it is written again") from error


def _n_bytes(state: LlamaState) -> int:
    return state.llama_state_size + state.scores.nbytes + state.input_ids.nbytes
