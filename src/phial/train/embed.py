"""Tuning a decoder into an embedder: pairs of texts, the contrastive objective, and a model that says how it pools.

The tokens of a text are those that Llama.embed reads: prefix and text, a BOS where the model has one, no EOS. What is
too long is said, never passed over. Left out: masked next-token prediction before (LLM2Vec's first step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from phial.errors import PhialError
from phial.hf.sentence_transformers import write_embedder
from phial.manifest import write_json
from phial.model.transformer import Transformer, set_dropout
from phial.train.contrastive import TEMPERATURE, Contrast, Pooling, encode
from phial.train.loop import Evaluate, LoopConfig, autocast, train
from phial.train.lora import LoraConfig
from phial.train.processes import OneProcess, Processes
from phial.train.start import Start, export_run
from phial.train.text_batches import Pair, PairBatches, Text, packed_texts
from phial.train.text_pairs import TextPair
from phial.train.tuning import Epochs, gentle_loop

REPORT = "data.json"
_USUAL = 512  # tokens of a text where the configuration does not say
_TWO_VIEWS = 0.1  # dropout that makes two of a text (SimCSE's)
_AT_ONCE = 64  # texts that are embedded at once where nothing is learnt
Say = Callable[[str], None]
Side = Literal["query", "document"]
Embed = Callable[[Sequence[str], Side], NDArray[np.float32]]
Measure = Callable[[Embed], Mapping[str, float]]


class EmbedConfig(BaseModel):
    """How texts are learnt to be told apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    length: int | None = Field(None, gt=0, description="tokens of a text; the model's context up to 512 if left out")
    too_long: Literal["stop", "cut"] = Field("stop", description="or cut texts at `length`, as Llama.embed does")
    batch: int = Field(64, gt=0, description="pairs of one step, over all processes: each query's negatives")
    micro_batch: int = Field(16, gt=0, description="pairs that a process runs at once; fewer take less memory")
    epochs: Epochs = 1.0
    pooling: Pooling = Field("mean", description="of a text's last hidden states: mean, last or first")
    bidirectional: bool = Field(False, description="tokens see those after them too; Llama.embed cannot run that")
    temperature: float = Field(TEMPERATURE, gt=0)
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of the whole model; 0.1 where single texts need two views, else none, if left out",
    )
    negative_weight: float = Field(0.0, description="added to the logit of a query's own hard negatives")
    duplicates: Literal["mask", "keep"] = Field("mask", description="texts of a batch that answer a query as well")
    query_prefix: str = Field("", description="such as E5's instruction; Llama.embed must be given it too")
    document_prefix: str = ""
    lora: LoraConfig | None = Field(None, description="train adapters, all else frozen; left out: every weight")
    loop: LoopConfig = Field(LoopConfig(steps=1), description="without steps, which follow from the epochs")

    @model_validator(mode="before")
    @classmethod
    def _gently(cls, table: Any) -> Any:
        return gentle_loop(table)

    @property
    def prefixes(self) -> dict[str, str]:
        return {"query": self.query_prefix, "document": self.document_prefix}


class Reader:
    """Texts to tokens by one model's tokenizer; what was cut is counted.

    Attributes:
        n: tokens of a text at most.
        cut: texts that were longer.
    """

    def __init__(self, config: EmbedConfig, start: Start) -> None:
        context = start.model.config.n_ctx_train
        if config.length is not None and config.length > context:
            raise PhialError(f"length is {config.length}, the model's context {context}", "shorten it")
        self.n = config.length or min(context, _USUAL)
        self.cut = 0
        self._config, self._tokenizer = config, start.tokenizer
        self._keys: dict[str, int] = {}
        self._read: dict[tuple[Side, str], Text] = {}

    def __call__(self, text: str, side: Side, where: str) -> Text:
        """A text behind its side's prefix. Raises PhialError where it is too long and too_long is "stop"."""
        found = self._read.get((side, text))
        if found is None:
            try:
                ids = self._tokenizer.encode(self._config.prefixes[side] + text)
            except PhialError as error:
                raise PhialError(f"{where}: {error.message}", error.hint) from error
            if len(ids) > self.n:
                self._too_long(where, len(ids))
            key = self._keys.setdefault(text, len(self._keys))
            found = self._read[side, text] = Text(np.asarray(ids[: self.n], np.int32), key)
        return found

    def _too_long(self, where: str, size: int) -> None:
        if self._config.too_long == "stop":
            raise PhialError(
                f"{where} has a text of {size:,} tokens, at most {self.n:,} are read",
                'raise length, or set too_long = "cut"',
            )
        self.cut += 1


class ReadPairs(NamedTuple):
    """Pairs as tokens.

    Attributes:
        single: those of one text. cut: texts that lost their end.
        dropout: that they are to be learnt with.
    """

    pairs: list[Pair]
    single: int
    cut: int
    dropout: float

    def report(self) -> dict[str, Any]:
        """What a program would read."""
        texts = [text for pair in self.pairs for text in pair.texts]
        return {
            "pairs": len(self.pairs),
            "single": self.single,
            "negatives": sum(len(pair.negatives) for pair in self.pairs),
            "texts": len({text.key for text in texts}),
            "tokens": sum(len(text.ids) for text in texts),
            "cut": self.cut,
            "dropout": self.dropout,
            "sha256": self.digest,
        }

    @property
    def digest(self) -> str:
        """sha256 of all tokens: what the run depends on."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            for text in pair.texts:
                digest.update(np.int64(len(text.ids)).tobytes() + text.ids.tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def read(pairs: Iterable[TextPair], config: EmbedConfig, start: Start) -> ReadPairs:
    """Pairs as tokens. A single text is a document on both sides.

    Dropout is for single texts alone, unless asked for: in every layer of a model that never knew any it makes vectors
    far worse (docs/LOG.md, 2026-11-25).

    Raises PhialError for a text that is too long, no pairs, single texts where no dropout makes two views of them,
    pairs without any negative, and the first token's state of a causal model.
    """
    if config.pooling == "first" and start.model.config.causal:
        raise PhialError(
            'pooling is "first", but the first token sees no other: all vectors would be alike',
            'pool by "mean" or "last", or set bidirectional',
        )
    reader, found, single = Reader(config, start), list[Pair](), 0
    for pair in pairs:
        single += pair.single
        query = reader(pair.query, "document" if pair.single else "query", pair.where)
        positive = reader(pair.positive, "document", pair.where)
        found.append(Pair(query, positive, tuple(reader(text, "document", pair.where) for text in pair.negatives)))
    if not found:
        raise PhialError("there are no pairs", "name a file that has some")
    dropout = config.dropout if config.dropout is not None else _TWO_VIEWS if single else 0.0
    if single and not (dropout or (config.lora and config.lora.dropout)):
        raise PhialError(
            f"{single:,} of {len(found):,} rows are single texts, and dropout is 0: both views of each are the same",
            "set dropout to 0.1 or more, or give pairs",
        )
    _refuse_no_contrast(found, config)
    return ReadPairs(found, single, reader.cut, dropout)


def _refuse_no_contrast(pairs: Sequence[Pair], config: EmbedConfig) -> None:
    """Raises PhialError where no query has a document that it is to be told apart from: the loss would be 0."""
    if any(pair.negatives for pair in pairs):
        return
    if len({pair.positive.key for pair in pairs}) == 1:
        raise PhialError("all documents are the same text, so no query has a negative", "give more pairs, or negatives")
    if len({pair.query.key for pair in pairs}) == 1 and config.duplicates == "mask":
        raise PhialError("all queries are the same text, so every document answers it", "give more pairs, or negatives")
    if config.batch == 1:
        raise PhialError("batch is 1 and no pair has negatives: there is nothing to tell apart", "raise batch")


def embedder(model: nn.Module, config: EmbedConfig, start: Start) -> Embed:
    """How texts are embedded by a model as it is: (n, D) float32 of texts on one side; not normalised."""
    reader = Reader(config, start)

    @torch.no_grad()
    def embed(texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        ids = [reader(text, side, f"held-out {side} {i + 1}").ids for i, text in enumerate(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # neighbours of like length fill their rows
        vectors = np.empty((len(ids), start.model.config.n_embd), np.float32)
        device = next(model.parameters()).device
        for at in range(0, len(order), _AT_ONCE):
            some = order[at : at + _AT_ONCE]
            batch = {name: tensor.to(device) for name, tensor in packed_texts([ids[i] for i in some]).items()}
            vectors[some] = encode(model, batch, config.pooling).cpu().numpy()
        return vectors

    return embed


def embed(
    config: EmbedConfig,
    start: Start,
    pairs: Iterable[TextPair],
    folder: Path,
    tell: Say,
    *,
    measure: Measure | None = None,
    workers: int = 0,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Tune a model on pairs and write it; {"model" and "adapter" as export_run(), "data", "before", "after"}.

    Args:
        start: opened with the configuration's direction.
        tell: is told what the data come to, before anything is trained.
        measure: what to make of held-out texts, given a way to embed them; called before, while and after.
        workers: processes that read ahead.
        processes: those that train this model together; None: this one alone, on its GPU where it has one.

    Raises PhialError for texts or a run that is not right.
    """
    processes = processes or OneProcess()
    learnt = read(pairs, config, start)
    data = PairBatches(learnt.pairs, config.batch, config.micro_batch, epochs=config.epochs, seed=config.loop.seed)
    if processes.rank == 0:
        _say(learnt, data, config, tell)
    set_dropout(start.model, learnt.dropout)
    if start.model.lm_head is not None:
        start.model.lm_head.requires_grad_(False)  # no text's vector depends on it
    model = start.model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = list[dict[str, float]]()
    evaluate = None if measure is None else _evaluation(measure, config, start, found)
    _evaluated(model, evaluate, config)
    last = train(
        model,
        data,
        Contrast(config.pooling, config.temperature, config.negative_weight, config.duplicates == "mask"),
        config.loop.model_copy(update={"steps": data.steps}),
        folder,
        evaluate=evaluate,
        workers=workers,
        processes=processes,
        about={"embed": _settings(config) | {"dropout": learnt.dropout}, **start.about, "data": learnt.digest},
    )
    if len(found) == 1:  # the run was finished before
        _evaluated(model, evaluate, config)
    whole, made = processes.whole(model), {}
    if whole is not None:
        assert isinstance(whole, Transformer)
        write_json(folder / REPORT, learnt.report())
        made = export_run(start, whole, folder)
        for path in made.values():
            write_embedder(Path(path), config.pooling, whole.config.n_embd, config.prefixes, Reader(config, start).n)
    before, after = (found[0], found[-1]) if found else ({}, {})
    return {**made, "data": learnt.report(), "before": before, "after": {**last, **after}}


def _evaluation(measure: Measure, config: EmbedConfig, start: Start, found: list[dict[str, float]]) -> Evaluate:
    def evaluate(model: nn.Module) -> dict[str, float]:
        measured = measure(embedder(model, config, start))
        found.append({f"validation/{name}": value for name, value in measured.items()})
        return found[-1]

    return evaluate


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Evaluate | None, config: EmbedConfig) -> None:
    model.eval()
    if evaluate is not None:
        with autocast(model, config.loop):
            evaluate(model)


def _settings(config: EmbedConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"lora", "loop"})


def _say(learnt: ReadPairs, data: PairBatches, config: EmbedConfig, tell: Say) -> None:
    report = learnt.report()
    pairs, negatives, tokens = (f"{report[name]:,}" for name in ("pairs", "negatives", "tokens"))
    tell(f"training: {pairs} pairs ({learnt.single:,} single texts), {negatives} hard negatives, {tokens} tokens")
    if learnt.cut:
        tell(f"training: {learnt.cut:,} texts are cut")
    steps = f"{data.steps:,} steps of at most {config.batch} pairs, {config.micro_batch} at once"
    tell(f"{steps}, dropout {learnt.dropout:g}")
    if config.bidirectional:
        tell("note: tokens see both ways, which phial's engine cannot run: llama.cpp or transformers 5 must")
