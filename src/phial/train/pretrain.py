"""Pretraining in phases (phi3-spec §3.1): general text first, then the best of it with synthetic text, while the
learning rate decays. One TOML file says what is trained on what; the result is a Hugging Face folder.

Data come as opened token sources, so that nothing here knows how shards are made.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from phial.config import PRESETS, ModelConfig
from phial.config_file import read_config
from phial.errors import ArgumentError, PhialError
from phial.hf.config import write_hf_config
from phial.model.checkpoint import save
from phial.model.transformer import INITIAL_STD, Transformer
from phial.train.held_out import perplexity, summed_loss
from phial.train.loop import Evaluate, LoopConfig, train
from phial.train.mup import scale_initial
from phial.train.objective import NextToken
from phial.train.packed import Packed, Phase, TokenSource, count_windows, row_of, stacked
from phial.train.processes import OneProcess, Processes

MODEL = "model"
_FROZEN = ConfigDict(frozen=True, extra="forbid")
_DECIDING = {"sequence", "batch_tokens", "shuffle", "z_loss", "initial_std", "scale_residual"}  # of the weights
_RESIDUAL = ("o_proj.weight", "down_proj.weight")  # what a layer adds to the stream


class ModelShape(BaseModel):
    """The shape of a new model; its vocabulary is the tokenizer's."""

    model_config = _FROZEN

    architecture: str = Field("phi3", description="phi3, llama or qwen2")
    n_embd: int = Field(gt=0)
    n_layer: int = Field(gt=0)
    n_head: int = Field(gt=0)
    n_head_kv: int | None = Field(None, gt=0, description="n_head if left out")
    n_ff: int = Field(gt=0)
    n_ctx_train: int | None = Field(None, gt=0, description="the sequence length if left out")
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False


class PhaseConfig(BaseModel):
    """A phase: a folder of token shards, and how much of it is read."""

    model_config = _FROZEN

    name: str = Field(min_length=1)
    data: Path = Field(description="a folder of token shards, as phial data mix writes one")
    tokens: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0, description="1 where neither is given")

    @model_validator(mode="after")
    def _one_measure(self) -> PhaseConfig:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError(f"phase {self.name} has both tokens and epochs")
        return self


class PretrainConfig(BaseModel):
    """A whole pretraining run."""

    model_config = _FROZEN

    name: str = Field("phial", min_length=1, description="of the model")
    tokenizer: Path = Field(description="a Hugging Face folder")
    model: ModelShape | None = Field(None, description="a new shape")
    preset: str | None = Field(None, description="or one that is known, such as phi-3-mini-4k")
    phases: tuple[PhaseConfig, ...] = Field(min_length=1)
    validation: Path | None = Field(None, description="a folder of token shards, one or more a source")
    validation_tokens: int = Field(65_536, gt=0, description="most that is measured of each source")
    sequence: int = Field(gt=0, description="tokens")
    batch_tokens: int = Field(gt=0, description="of one step, over all processes")
    micro_batch: int = Field(gt=0, description="sequences that a process runs at once")
    max_epochs: float = Field(4.0, gt=0, description="cap for a phase's folder, §3.5")
    shuffle: bool = Field(True, description="windows in another order each epoch; false: as they were mixed")
    z_loss: float = Field(0.0, ge=0)
    initial_std: float = Field(INITIAL_STD, gt=0)
    scale_residual: bool = Field(True, description="what layers add starts smaller by sqrt(2 n_layer), as in GPT-2")
    loop: LoopConfig = Field(LoopConfig(steps=1), description="without steps, which follow from the phases")

    @field_validator("loop", mode="before")
    @classmethod
    def _steps_follow(cls, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        if "steps" in table:
            raise ValueError("steps follow from the phases")
        return {"steps": 1, **table}

    @model_validator(mode="after")
    def _fits(self) -> PretrainConfig:
        if self.batch_tokens % self.sequence:
            raise ValueError(f"batch_tokens {self.batch_tokens} is no multiple of sequence {self.sequence}")
        if (self.model is None) == (self.preset is None):
            raise ValueError("the model's shape is either a table [model] or a preset")
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError("phases need different names")
        return self

    def beside(self, file: Path) -> PretrainConfig:
        """The same with every path taken from the folder of `file`."""
        phases = tuple(p.model_copy(update={"data": file.parent / p.data}) for p in self.phases)
        paths = {"tokenizer": file.parent / self.tokenizer, "phases": phases}
        return self.model_copy(
            update=paths | {"validation": None if self.validation is None else file.parent / self.validation}
        )


class PlannedPhase(NamedTuple):
    """What a phase comes to. unique_tokens: of its folder. epochs: how often they are read."""

    name: str
    steps: int
    tokens: int
    unique_tokens: int
    epochs: float


def read_pretrain(path: Path) -> PretrainConfig:
    """The configuration in a TOML file, its paths beside the file. PhialError where it is not right."""
    return read_config(path, PretrainConfig).beside(path)


def model_config(config: PretrainConfig, n_vocab: int) -> ModelConfig:
    """The model's shape. Raises PhialError for an unknown preset, or a shape that no model or folder can have."""
    shape = config.model
    if shape is None:
        if config.preset not in PRESETS:
            raise ArgumentError(f"preset is {config.preset!r}", f"one of {', '.join(PRESETS)}; or a table [model]")
        values = {**vars(PRESETS[config.preset]), "n_vocab": n_vocab}
    else:
        if shape.n_embd % shape.n_head:
            raise ArgumentError(
                f"n_embd {shape.n_embd} is no multiple of n_head {shape.n_head}", "each head has a part"
            )
        head_dim = shape.n_embd // shape.n_head
        values = shape.model_dump() | {"n_vocab": n_vocab, "head_dim": head_dim, "rope_dim": head_dim}
        values["n_head_kv"] = shape.n_head_kv or shape.n_head
        values["n_ctx_train"] = shape.n_ctx_train or config.sequence
        values["qkv_bias"] = shape.architecture == "qwen2"
    made = ModelConfig(**values | {"name": config.name, "rope_interleaved": False})
    if config.sequence > made.n_ctx_train:
        raise ArgumentError(f"sequence is {config.sequence}, the model's context {made.n_ctx_train}", "shorten it")
    write_hf_config(made, "float32")  # what cannot be written is said before anything is trained
    return made


def new_model(config: PretrainConfig, n_vocab: int) -> Transformer:
    """A model with random weights that follow from the seed alone."""
    torch.manual_seed(config.loop.seed)
    model = Transformer(model_config(config, n_vocab))
    factor = 1 / math.sqrt(2 * model.config.n_layer) if config.scale_residual else 1.0
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=config.initial_std * (factor if name.endswith(_RESIDUAL) else 1.0))
    if config.loop.optimizer.base_width is not None:
        scale_initial(model, config.loop.optimizer.base_width)
    return model


def batches(config: PretrainConfig, sources: Sequence[TokenSource]) -> Packed:
    """The batches of all phases. Raises PhialError for a phase too short, or with more epochs than the cap allows."""
    phases = []
    for phase, source in zip(config.phases, sources, strict=True):
        windows = count_windows(source, config.sequence, f"phase {phase.name}")
        wanted = phase.tokens / config.sequence if phase.tokens else (phase.epochs or 1.0) * windows
        visits = max(1, round(wanted))
        if visits > config.max_epochs * windows:
            raise PhialError(
                f"phase {phase.name} wants {visits / windows:.2f} epochs of {phase.data}, the cap is "
                f"{config.max_epochs:g}",
                f"it has {source.n_tokens:,} tokens; ask for fewer, or set max_epochs",
            )
        phases.append(Phase(phase.name, source, visits))
    batch = config.batch_tokens // config.sequence
    return Packed(phases, config.sequence, batch, config.micro_batch, seed=config.loop.seed, shuffle=config.shuffle)


def plan(data: Packed) -> list[PlannedPhase]:
    """What each phase comes to."""
    return [
        PlannedPhase(p.name, steps, p.visits * data.n, p.source.n_tokens, p.visits / windows)
        for p, steps, windows in zip(data.phases, data.steps, data.counts, strict=True)
    ]


def loop_config(config: PretrainConfig, data: Packed) -> LoopConfig:
    """The loop with its steps; warmup-stable-decay decays over the last phase unless the file says otherwise."""
    schedule = config.loop.schedule
    if schedule.kind == "wsd" and "decay" not in schedule.model_fields_set and len(data.steps) > 1:
        schedule = schedule.model_copy(update={"decay": data.steps[-1]})
    return config.loop.model_copy(update={"steps": sum(data.steps), "schedule": schedule})


def evaluation(config: PretrainConfig, sources: Mapping[str, TokenSource]) -> Evaluate:
    """Loss (nats a token) and perplexity of each source over fixed windows, and of all, weighted by tokens."""
    rows = {name: _fixed_rows(config, source) for name, source in sources.items()}

    def evaluate(model: nn.Module) -> dict[str, float]:
        total, count = 0.0, 0
        results: dict[str, float] = {}
        for name, own in rows.items():
            nll, targets = summed_loss(model, own)
            results |= _means(f"validation/{name}", nll, targets)
            total, count = total + nll, count + targets
        return results | _means("validation", total, count)

    return evaluate


def _fixed_rows(config: PretrainConfig, source: TokenSource) -> list[Any]:
    """Micro-batches of windows spread evenly over a source; a source that is short has one short window."""
    n = min(config.sequence, source.n_tokens - 1)
    windows = count_windows(source, n, "validation") if n > 0 else 0
    wanted = min(windows, max(1, config.validation_tokens // max(n, 1)))
    rows = [row_of(source, at * windows // wanted, n) for at in range(wanted)]
    return [stacked(rows[at : at + config.micro_batch]) for at in range(0, len(rows), config.micro_batch)]


def _means(name: str, nll: float, targets: int) -> dict[str, float]:
    if not targets:
        return {}
    return {f"{name}/loss": nll / targets, f"{name}/perplexity": perplexity(nll / targets)}


def pretrain(
    config: PretrainConfig,
    phases: Sequence[TokenSource],
    validation: Mapping[str, TokenSource],
    folder: Path,
    *,
    n_vocab: int,
    eos_id: int,
    workers: int = 0,
    processes: Processes | None = None,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a new model through all phases and write it to `folder`/model; the last evaluation.

    Args:
        phases: the tokens of each phase, in the configuration's order.
        validation: the held-out tokens of each source.
        n_vocab, eos_id: the tokenizer's.
        workers: processes that read ahead.
        processes: those that train this model together; None: this one alone, on its GPU if it has one.
        about: digests of what the phases hold; a run goes on only with the same.
        quiet, start: as for train.loop.train().

    Raises PhialError for a shape, a phase or a run that is not right.
    """
    data = batches(config, phases)
    model = new_model(config, n_vocab)
    processes = processes or OneProcess()
    evaluate = evaluation(config, validation) if validation else None
    objective = NextToken(config.z_loss)
    settings = config.model_dump(mode="json", include=_DECIDING)
    last = train(
        model,
        data,
        objective,
        loop_config(config, data),
        folder,
        evaluate=evaluate,
        workers=workers,
        processes=processes,
        about={"pretrain": settings, "visits": [phase.visits for phase in data.phases], **(about or {})},
        quiet=quiet,
        start=start,
    )
    whole = processes.whole(model)
    if whole is not None:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        ids = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
        save(whole, folder / MODEL, tokenizer_from=config.tokenizer, generation=ids)
    return last
