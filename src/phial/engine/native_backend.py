"""The compiled core as a backend: hands the file's tensors over one by one, then runs steps.

The core repacks each tensor into its own memory and lets go of the mapped pages at once, so that loading never needs
the file and the weights together. Kernel sets are chosen for the whole process, not per engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phial.config import ROPE_TENSORS, ModelConfig
from phial.engine.backend import Step, Want
from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.container import GGUFFile, TensorInfo
from phial.gguf.formats import BLOCK_SIZES
from phial.gguf.lora import Adapter

try:
    from phial import _native
except ImportError:  # an installation without the compiled core
    _native = None  # type: ignore[assignment]

# The weights of a layer by their input, in the core's order; a model has those that its file names.
_READERS = (("attn_qkv", "attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
Progress = Callable[[int, int], None]  # called after each tensor with (bytes done, bytes to do)


def is_available() -> bool:
    """Whether the compiled core is there."""
    return _native is not None


def choose_kernels(name: str | None) -> None:
    """Switch the process to a kernel set; None leaves the choice (the fastest, or PHIAL_KERNELS) as it is."""
    try:
        _native.use_kernels(name) if name is not None else _native.current_kernels()
    except ValueError as error:
        raise ArgumentError(str(error), "see `phial info`; PHIAL_KERNELS and kernels= take these names") from error


def core_digest() -> str:
    """A digest of the compiled core: another build may compute other bits."""
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:32]


@dataclass(frozen=True)
class Tiles:
    """Weights that are packed already.

    Attributes:
        of: the tiles of a matrix by its name in the file.
        in_place: whether they may be used where they are, or are to be copied into memory of the core's own.
    """

    of: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    in_place: bool = False


def packed_bytes(info: TensorInfo, config: ModelConfig) -> int:
    """How many bytes of tiles a weight matrix has; see packed. Raises ValueError where its shape fits no blocks."""
    count, rows, columns = _matrices(info, config)
    return count * int(_native.packed_bytes(int(info.type), rows, columns))


def packed(file: GGUFFile, info: TensorInfo, config: ModelConfig) -> list[NDArray[np.uint8]]:
    """The tiles of a weight matrix as the core computes with them; of the two that phi3's ffn_up holds, two arrays."""
    count, rows, columns = _matrices(info, config)
    return [_packed(int(info.type), rows, columns, part) for part in np.split(file.data(info.name), count)]


def packing_digest() -> str:
    """A digest of how tiles are laid out: of every type, three blocks of rows that end within a tile."""
    digest = hashlib.sha256()
    for kind, (elements, n_bytes) in BLOCK_SIZES.items():
        data = np.random.default_rng(0).integers(0, 256, 19 * 3 * n_bytes, np.uint8)
        digest.update(_packed(int(kind), 19, 3 * elements, data).data)
    return digest.hexdigest()[:32]


def _packed(kind: int, rows: int, columns: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tiles = _native.packed(kind, rows, columns, data)
    assert isinstance(tiles, np.ndarray)
    return tiles


class NativeBackend:
    """Packed weights and cache pages in the core's memory."""

    name = "native"
    batch_invariant = True

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        *,
        cache_type: str,
        n_threads: int,
        n_threads_batch: int,
        tiles: Tiles | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Load the weights; those whose tiles are at hand are not packed again.

        Raises PhialError where memory does not suffice, FormatError where the weights are unusable.
        """
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self._config = config
        self._adapters: dict[int, int] = {}  # the core's number by the engine's
        try:
            self._model = _make_model(config, max(n_threads, n_threads_batch))
            _feed(self._model, file, tiles or Tiles(), progress)
            for long in (False, True) if config.rope_long_factors is not None else (False,):
                self._model.set_rope(long, config.inv_freq(long), config.rope_attn_factor)
            self._model.finish()
            self.store = _native.Cache(self._model, cache_type)
        except MemoryError as error:
            raise PhialError(f"{file.path}: not enough memory for the weights", "use a smaller model") from error
        except ValueError as error:
            raise FormatError(f"{file.path}: {error}", "check the file with `phial inspect`") from error

    @property
    def kernel_set(self) -> str:
        """The kernels in use, for example "avx2"."""
        return _native.current_kernels()

    @property
    def n_bytes(self) -> int:
        """Memory of the packed weights."""
        return self._model.n_bytes

    def load_adapter(self, adapter: Adapter, number: int) -> None:
        """Pack an adapter and hold it under this number. PhialError where memory does not suffice."""
        try:
            ours = self._model.add_adapter()
            for tensor, delta in adapter.deltas.items():
                self._model.set_adapter(ours, *_core_name(tensor), delta.a, delta.b)
        except MemoryError as error:
            raise PhialError(
                f"not enough memory for adapter {adapter.name}", "use a smaller model or adapter"
            ) from error
        self._adapters[number] = ours

    def forward(self, steps: Sequence[Step], want: Want) -> NDArray[np.float32]:
        """Run several sequences in one call; see Want for what comes back."""
        tokens = np.concatenate([np.asarray(step.tokens, np.int32) for step in steps])
        pages = np.full((len(steps), max(len(step.pages) for step in steps)), -1, np.int32)
        for row, step in zip(pages, steps, strict=True):
            row[: len(step.pages)] = step.pages
        result = self._model.forward(
            self.store,
            tokens,
            np.array([len(step.tokens) for step in steps], np.int32),
            np.array([step.n_past for step in steps], np.int32),
            np.array([step.long for step in steps], np.uint8),
            pages,
            int(want),
            self.n_threads if len(tokens) == len(steps) else self.n_threads_batch,
            [(i, self._adapters[a.number], scale) for i, step in enumerate(steps) for a, scale in step.adapters],
        )
        assert isinstance(result, np.ndarray)
        return result

    def collect(self, on: bool) -> None:
        """Begin to sum the squares of every product's inputs, or stop; see Backend."""
        self._model.collect(on)

    def squares(self) -> dict[str, NDArray[np.float64]]:
        """The sums by the weight's name; weights with one input share an array."""
        found: dict[str, NDArray[np.float64]] = {}
        weights = self._config.tensor_shapes()
        for layer in range(self._config.n_layer):
            for number, readers in enumerate(_READERS):
                sums = np.asarray(self._model.squares(layer, number))
                names = [f"blk.{layer}.{reader}.weight" for reader in readers]
                found.update({name: sums for name in names if name in weights})
        return found

    def close(self) -> None:
        """Free weights and pages."""
        del self._model, self.store


def _make_model(config: ModelConfig, n_threads: int) -> _native.Model:
    return _native.Model(
        n_vocab=config.n_vocab,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_head_kv=config.n_head_kv,
        head_dim=config.head_dim,
        n_ff=config.n_ff,
        rms_norm_eps=config.rms_norm_eps,
        rope_dim=config.rope_dim,
        rope_interleaved=config.rope_interleaved,
        sliding_window=config.sliding_window or 0,
        n_threads=n_threads,
    )


def _feed(model: _native.Model, file: GGUFFile, tiles: Tiles, progress: Progress | None) -> None:
    """Hand every weight over, under the core's name."""
    weights = [info for name, info in file.tensors.items() if name not in ROPE_TENSORS]
    total, done = sum(info.n_bytes for info in weights), 0
    for info in weights:
        name, layer = _core_name(info.name)
        if len(info.shape) == 1:  # the core keeps vectors as float32
            data = file.dequantized(info.name).view(np.uint8)
            model.set_tensor(name, layer, 0, 1, info.shape[0], data)
        else:
            weight = (name, layer, int(info.type), info.shape[0], info.shape[1])
            if info.name not in tiles.of:
                model.set_tensor(*weight, file.data(info.name))
            elif tiles.in_place:
                model.map_tensor(*weight, tiles.of[info.name])
            else:
                model.set_tensor(*weight, tiles.of[info.name], packed=True)
        file.release(info.name)
        done += info.n_bytes
        if progress is not None:
            progress(done, total)


def _matrices(info: TensorInfo, config: ModelConfig) -> tuple[int, int, int]:
    """How many matrices a tensor holds, and their rows and columns: phi3 has gate and up in one."""
    rows, columns = info.shape
    both = info.name.endswith(".ffn_up.weight") and rows == 2 * config.n_ff
    return (2, rows // 2, columns) if both else (1, rows, columns)


def _core_name(tensor: str) -> tuple[str, int]:
    """The core's name of a tensor, without "blk.N." and ".weight", and its layer; -1 for none."""
    name = tensor.removesuffix(".weight")
    if not name.startswith("blk."):
        return name, -1
    _, number, name = name.split(".", 2)
    return name, int(number)
