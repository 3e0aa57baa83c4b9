"""Where tuning starts: a Hugging Face folder, a run of phial's, or a GGUF file; and the way back to a folder.

A GGUF file is dequantised tensor by tensor into the model's own memory. The tokenizer and the chat template come with
the model, and go with what was tuned: the same files, and a template named instead of the model's own beside them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phial.errors import ArgumentError, FormatError, PhialError
from phial.gguf.container import read_gguf
from phial.gguf.convert import dequantized_weights, model_config, read_model, write_without_weights
from phial.gguf.lora_peft import WEIGHTS
from phial.hf.folder import CONFIG, read_json
from phial.manifest import sha256_of
from phial.model.checkpoint import GENERATION, TOKENIZER_FILES, load, save
from phial.model.transformer import Transformer
from phial.tokenizer.builtin_templates import BUILTIN
from phial.tokenizer.chat import ChatTemplate
from phial.tokenizer.tokenizer import Tokenizer
from phial.train.adapter_files import read_adapter, write_adapter
from phial.train.lora import LoraConfig, add_lora, merge
from phial.train.quantized_base import load_quantized
from phial.train.record import weights_digest

MODEL, ADAPTER = "model", "adapter"  # in the folder of a run
_TEMPLATE = "tokenizer.chat_template"


class Start(NamedTuple):
    """A model to tune.

    Attributes:
        path: the folder or the GGUF file it came from; its tokenizer files are copied from there.
        replaced: whether the template is a built-in one, which then is exported too.
        notes: what phial's reading of the tokenizer leaves out, for the user.
        lora: how the model is adapted; None: all of it is tuned.
    """

    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    path: Path
    replaced: bool
    notes: list[str]
    lora: LoraConfig | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a run depends on besides its data and the weights it does not train: those that it begins with, as long
        as they are as they were."""
        if self.lora is None:
            return {"start": weights_digest(self.model.state_dict().items())}
        found = {} if self.lora.adapter is None else {"sha256": sha256_of(self.lora.adapter / WEIGHTS)}
        return {"lora": self.lora.model_dump(mode="json", exclude={"merge"}) | found}


def open_start(
    path: Path,
    *,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    weights: bool = True,
    lora: LoraConfig | None = None,
    seed: int = 0,
    causal: bool | None = None,
    chat: bool = True,
) -> Start:
    """Load a model to tune.

    Args:
        path: a Hugging Face folder, the folder of a finished run, or a GGUF file of any type.
        template: a built-in chat template by name; None: the model's own.
        dtype: of the weights: float32, or bfloat16 where nothing but small parts of them are trained.
        attention: as Transformer's.
        weights: False leaves them unread, the model on the meta device, where tokenizer, template and shape are wanted.
        lora: adapters to train, with the seed they are drawn from; None: every weight.
        causal: whether tokens see only those before them; None: as the model's own do.
        chat: False for tuning without chats: a model without a template passes, and its Start has ChatML.

    Raises:
        ArgumentError: no such file or folder, no such template, no such matrix to adapt.
        FormatError: a damaged file, or a model or tokenizer that nobody here knows.
        PhialError: the model has no chat template and none is named; a run that has not finished.
    """
    if path.is_dir():
        path = _model_folder(path)
        found = read_model(path)
        metadata, notes, config = found.metadata, found.notes, found.config
    elif path.is_file():
        with read_gguf(path) as file:
            metadata, notes, config = dict(file.metadata), [], model_config(file)
    else:
        raise ArgumentError(f"there is no model at {path}", "name a Hugging Face folder, a run or a GGUF file")
    tokenizer = Tokenizer.from_gguf(metadata)
    chosen = _template(template, metadata if chat else {_TEMPLATE: BUILTIN["chatml"].source, **metadata}, tokenizer)
    shape = replace(config, rope_interleaved=False, causal=config.causal if causal is None else causal)
    with torch.device("meta"):
        model = Transformer(shape, attention=attention)
    if weights and lora is not None and lora.base != "float":
        load_quantized(model, path, lora.base)
    elif weights and path.is_dir():
        loaded = load(path, dtype=dtype, attention=attention, causal=causal)
        assert isinstance(loaded, Transformer)  # read_model() knows no others
        model = loaded
    elif weights:
        with read_gguf(path) as file:
            read = {name: torch.from_numpy(v).to(dtype) for name, v in dequantized_weights(file, config)}
        model.load_state_dict(read, assign=True)
    if lora is not None and weights:
        add_lora(model, lora, seed)
        if lora.adapter is not None:
            read_adapter(model, lora, lora.adapter)
    return Start(model, tokenizer, chosen, path, template is not None, notes, lora)


def export_run(start: Start, model: Transformer, folder: Path, *, ends: Collection[int] = ()) -> dict[str, str]:
    """Write what a run has made into its folder, in place of an earlier model: {"model", "adapter"}, those there are.

    The adapter alone where one was trained, unless the whole model was asked for too; `model` is merged then.

    Args: as export().
    """
    made = {}
    if start.lora is not None:
        write_adapter(model, start.lora, folder / ADAPTER, model.config.name)
        made[ADAPTER] = str(folder / ADAPTER)
        if not start.lora.merge:
            return made
        merge(model)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    export(start, model, folder / MODEL, ends=ends)
    return made | {MODEL: str(folder / MODEL)}


def export(start: Start, model: Transformer, folder: Path, *, ends: Collection[int] = ()) -> None:
    """Write a tuned model as a Hugging Face folder with the tokenizer and the template it was tuned with.

    Args:
        model: the start's, or another of its shape.
        folder: new, or empty.
        ends: ids that end an answer, which generation_config.json then names beside its own.

    Raises as model.checkpoint.save().
    """
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name)
        if start.path.is_dir():
            for file in (*TOKENIZER_FILES, CONFIG, GENERATION):
                if (start.path / file).is_file():
                    shutil.copyfile(start.path / file, kept / file)
        else:
            with read_gguf(start.path) as gguf:
                write_without_weights(kept, gguf)
        if start.replaced:
            (kept / "chat_template.jinja").write_text(start.template.source, "utf-8")
        generation = read_json(kept / GENERATION) if (kept / GENERATION).is_file() else {}
        if ends:
            named = generation.get("eos_token_id") or []
            ids = [*dict.fromkeys([*(named if isinstance(named, list) else [named]), *sorted(ends)])]
            generation["eos_token_id"] = ids if len(ids) > 1 else ids[0]
        save(model, folder, tokenizer_from=kept, generation=generation)


def _model_folder(path: Path) -> Path:
    """The folder itself, or, of a run, the model that it made."""
    if (path / CONFIG).is_file():
        return path
    if (path / MODEL / CONFIG).is_file():
        return path / MODEL
    if (path / ADAPTER).is_dir():
        hint = f"start from the model it was trained on, with lora.adapter = {str(path / ADAPTER)!r}"
        raise PhialError(f"the run in {path} has made an adapter, not a model", hint)
    if (path / "checkpoints").is_dir():
        raise PhialError(f"the run in {path} has not finished: it has no model/", "the command that began it goes on")
    raise FormatError(f"{path} has no {CONFIG}", "name a Hugging Face folder, a run or a GGUF file")


def _template(name: str | None, metadata: dict[str, object], tokenizer: Tokenizer) -> ChatTemplate:
    """The model's own template, or a built-in one with the model's own BOS and EOS, as an export has it."""
    if name is not None:
        ChatTemplate.builtin(name)  # says which there are
        metadata = metadata | {_TEMPLATE: BUILTIN[name].source}
    return ChatTemplate.from_gguf(metadata, tokenizer)
