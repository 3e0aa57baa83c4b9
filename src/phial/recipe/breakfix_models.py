"""The models of a break-fix run: the one it begins with and those that its rounds make, tuned and run.

Every round tunes the first model anew on all that was found so far, so a round is a function of its data, and an
adapter (LoRA) stands beside the file that the run began with, whatever its type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from phial.engine.language_model import EngineModel
from phial.engine.llama import Llama
from phial.gguf.convert import hf_to_gguf
from phial.language_model import LanguageModel, Reply
from phial.manifest import sha256_of
from phial.recipe.breakfix_config import BreakfixConfig
from phial.train.chats import Chat, read_chats
from phial.train.dpo import DpoConfig, dpo, side_of
from phial.train.lora import add_lora
from phial.train.pairs import read_pairs
from phial.train.sft import SftConfig, encode_chats, held_out, sequence_of, sft
from phial.train.start import Start, open_start

HELD_OUT = "general"
Say = Callable[[str], None]


class Trained(NamedTuple):
    """What a round's training made.

    Attributes:
        files: what stands for the model: a GGUF file, or an adapter's two files.
        loss: of the general chats held out, before and after; None where there are none.
    """

    files: list[Path]
    loss: tuple[float, float] | None


class Models(Protocol):
    """Where models come from. Tests script their own."""

    def identity(self, trained: list[Path] | None) -> str:
        """What decides the answers of that model; None: the first one."""
        ...

    def open(self, trained: list[Path] | None) -> LanguageModel:
        """That model, ready to answer."""
        ...

    def train(self, chats: Path, pairs: Path, folder: Path, say: Say) -> Trained:
        """Tune the first model; the same call goes on where one was stopped."""
        ...


class LazyModel:
    """A LanguageModel that is opened when it is first asked; close() frees what was opened."""

    def __init__(self, name: str, opened: Callable[[], LanguageModel]) -> None:
        self.name, self._opened = name, opened
        self._model: LanguageModel | None = None

    def generate(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, **options: Any) -> Reply:
        """LanguageModel.generate."""
        if self._model is None:
            self._model = self._opened()
        return self._model.generate(messages, max_tokens=max_tokens, **options)

    def close(self) -> None:
        """Free the model."""
        if isinstance(self._model, EngineModel):
            self._model.close()
        self._model = None


class TunedModels:
    """Models of phial: train/ tunes, engine/ runs.

    Args:
        file: GGUF file to begin with.

    Raises PhialError for what training could not begin with, before a model is asked for hours.
    """

    def __init__(self, config: BreakfixConfig, file: Path) -> None:
        self.config, self.file = config, file
        start = open_start(file, template=config.sft.template, weights=False)
        sequence_of(config.sft, start)
        if config.dpo is not None:
            side_of(config.dpo, start)
        if config.sft.lora is not None:
            add_lora(start.model, config.sft.lora)
        self._digest = sha256_of(file)

    def identity(self, trained: list[Path] | None) -> str:
        """Models.identity."""
        digests = [self._digest, *(sha256_of(path) for path in trained or [])]
        return hashlib.sha256(f"{digests} {self.config.n_ctx}".encode()).hexdigest()

    def open(self, trained: list[Path] | None) -> EngineModel:
        """Models.open."""
        gguf = next((path for path in trained or [] if path.suffix == ".gguf"), None)
        adapter = trained[0].parent if trained and gguf is None else None
        c = self.config
        path = str(gguf or self.file)
        llama = Llama(path, n_ctx=c.n_ctx, n_threads=c.n_threads, lora_path=adapter, verbose=False)
        return EngineModel(llama)

    def train(self, chats: Path, pairs: Path, folder: Path, say: Say) -> Trained:
        """Models.train."""
        config, held = self.config.sft, self.config.measure.chats
        start = open_start(self.file, template=config.template, lora=config.lora, seed=config.loop.seed)
        result = sft(config, start, read_chats([chats]), _chats(held), folder / "sft", say)
        losses = _losses(result)
        if self.config.dpo is not None and pairs.stat().st_size:
            say("pairs ...")
            start, result = self._learn_pairs(self.config.dpo, result, chats, pairs, folder, say)
            losses = losses and (losses[0], _loss(start, _chats(held), config))
        return Trained(_files(result, folder), losses)

    def _learn_pairs(
        self, config: DpoConfig, result: dict[str, Any], chats: Path, pairs: Path, folder: Path, say: Say
    ) -> tuple[Start, dict[str, Any]]:
        """Go on from what the chats made, the chats beside the pairs."""
        file = self.file
        if "adapter" in result and config.lora is not None:
            lora = config.lora.model_copy(update={"adapter": Path(result["adapter"])})
            config = config.model_copy(update={"lora": lora})
        else:
            file = Path(result["model"])
        start = open_start(file, template=config.template, lora=config.lora, seed=config.loop.seed)
        learnt = dpo(config, start, read_pairs([pairs]), (), folder / "dpo", say, chats=read_chats([chats]))
        return start, learnt


def _chats(path: Path | None) -> dict[str, Iterable[Chat]]:
    return {HELD_OUT: read_chats([path])} if path else {}


def _files(result: dict[str, Any], folder: Path) -> list[Path]:
    """The adapter's files, or the model as a GGUF file."""
    if "adapter" in result:
        return sorted(path for path in Path(result["adapter"]).iterdir() if path.is_file())
    gguf = folder / "model.gguf"
    hf_to_gguf(Path(result["model"]), gguf, "q8_0")
    return [gguf]


def _loss(start: Start, sources: Mapping[str, Iterable[Chat]], config: SftConfig) -> float:
    """Nats a token of the answers of chats, of the model as it is now."""
    start.model.eval()
    encoded = {name: encode_chats(chats, start, config) for name, chats in sources.items()}
    return held_out(encoded, sequence_of(config, start), config.micro_batch)(start.model)["validation/loss"]


def _losses(result: dict[str, Any]) -> tuple[float, float] | None:
    if not result["before"]:
        return None
    return result["before"]["validation/loss"], result["after"]["validation/loss"]
