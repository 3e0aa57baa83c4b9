"""Preference tuning (phi3-spec §5.1): a model learns to prefer the better of two answers over the model it was.

The reference is the model as it starts; its log-probabilities are computed once and kept (reference.py), so training
holds one model. The tokens are the template's that inference uses (pair_encoding.py), the losses preference.py's, the
loop everyone's. What goes wrong unseen is watched (dpo_guards.py).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from phial.errors import PhialError
from phial.manifest import write_json
from phial.model.transformer import Transformer
from phial.train.chats import Chat
from phial.train.dpo_guards import SAMPLED, GuardConfig, Guards
from phial.train.dpo_pictures import draw_preferences
from phial.train.greedy import greedy_answers
from phial.train.loop import Evaluate, LoopConfig, autocast, train
from phial.train.lora import LoraConfig
from phial.train.objective import IGNORED
from phial.train.pair_batches import PairBatches
from phial.train.pair_encoding import EncodedPairs, encode_pairs, repetition
from phial.train.pairs import Pair
from phial.train.preference import Preference
from phial.train.processes import OneProcess, Processes
from phial.train.record import locked, refuse_other, weights_digest
from phial.train.reference import fill_reference
from phial.train.sft import Encoded, SftConfig, encode_chats
from phial.train.start import Start, export_run
from phial.train.tuning import Epochs, gentle_loop

REPORT = "data.json"
_USUAL = 2048  # tokens of a side where the configuration does not say
_LR, _ADAPTER_LR = 1e-6, 2e-5
_SHOWN = 240  # characters of an answer that a guard shows
Say = Callable[[str], None]


class DpoConfig(BaseModel):
    """How preferences are learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["dpo", "ipo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="how dear it is to leave the reference")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs that are labelled wrongly (cDPO)")
    length_normalised: bool = Field(False, description="log-probabilities a token instead of sums; wants a larger beta")
    sft_weight: float = Field(0.0, ge=0, description="of the chosen answers' cross-entropy")
    chats_weight: float = Field(1.0, ge=0, description="of the chats' cross-entropy, where chats are given")
    sequence: int | None = Field(None, gt=0, description="tokens of a side; the model's context up to 2048 if left out")
    row: int = Field(1024, gt=0, description="tokens run at once; a longer pair runs alone")
    batch: int = Field(16, gt=0, description="pairs of one step, over all processes")
    epochs: Epochs = 1.0
    unfit: Literal["stop", "leave out"] = Field("stop", description="where a pair teaches nothing or is too long")
    template: str | None = Field(None, description="a built-in chat template; the model's own if left out")
    date: datetime.date = Field(datetime.date(2026, 1, 1), description="today, for templates that write the date")
    lora: LoraConfig | None = Field(None, description="train adapters, all else frozen; left out: every weight")
    guards: GuardConfig = GuardConfig()
    loop: LoopConfig = Field(LoopConfig(steps=1), description="without steps, which follow from the epochs")

    @model_validator(mode="before")
    @classmethod
    def _gently(cls, table: Any) -> Any:
        return gentle_loop(table, _LR, _ADAPTER_LR)

    @model_validator(mode="after")
    def _smoothing_is_dpos(self) -> DpoConfig:
        if self.kind == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is for dpo; ipo has none")
        return self


def side_of(config: DpoConfig, start: Start) -> int:
    """Most tokens of a side. Raises PhialError where the configuration asks for more than the model's context."""
    context = start.model.config.n_ctx_train
    if config.sequence is not None and config.sequence > context:
        raise PhialError(f"sequence is {config.sequence}, the model's context {context}", "shorten it")
    return config.sequence or min(context, _USUAL)


def encoded_pairs(pairs: Iterable[Pair], start: Start, config: DpoConfig) -> EncodedPairs:
    """Pairs as this run learns them. Raises PhialError as encode_pairs()."""
    return encode_pairs(pairs, start, side_of(config, start), config.date, config.unfit)


def dpo(
    config: DpoConfig,
    start: Start,
    pairs: Iterable[Pair],
    validation: Iterable[Pair],
    folder: Path,
    tell: Say,
    *,
    chats: Iterable[Chat] = (),
    workers: int = 0,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Tune a model on pairs and write it; {"model" and "adapter" as export_run(), "data", "before", "after"}.

    Args:
        validation: pairs that are measured on before, while and after; there may be none.
        tell: is told what the data come to, before anything is trained, and how far the reference is.
        chats: learnt beside the pairs, over the same steps.
        workers, processes: as sft()'s.

    Raises PhialError for pairs or a run that is not right, and where a guard stops the run.
    """
    processes = processes or OneProcess()
    learnt, held, talk = encoded_pairs(pairs, start, config), list(validation), _chats(list(chats), start, config)
    measured = encoded_pairs(held, start, config) if held else None
    data = PairBatches(
        learnt.examples, config.batch, config.row, epochs=config.epochs, seed=config.loop.seed,
        chats=talk.examples if talk else (),
    )  # fmt: skip
    if processes.rank == 0:
        _say_all(learnt, measured, talk, data, config, tell)
    model = start.model.to("cuda" if torch.cuda.is_available() else "cpu")
    warn = tell if processes.rank == 0 else _silent
    guards = Guards(config.guards, lambda pair, chosen: _described(learnt, start, pair, chosen), folder, warn)
    about = _about(config, start, learnt, measured, talk)
    evaluate, before = _prepared(config, start, model, data, measured, folder, about, guards, processes, tell)
    try:
        last = train(
            model, data, _objective(config, guards), config.loop.model_copy(update={"steps": data.steps}), folder,
            evaluate=evaluate, workers=workers, processes=processes, about=about, watch=guards.check,
        )  # fmt: skip
        guards.finish()
    finally:
        if processes.rank == 0:
            draw_preferences(folder)
    whole, made = processes.whole(model), {}
    if whole is not None:
        assert isinstance(whole, Transformer)
        write_json(folder / REPORT, {"training": learnt.report(), "validation": measured and measured.report()})
        made = export_run(start, whole, folder, ends=learnt.ends)
    return {**made, "data": learnt.report(), "before": before, "after": dict(last)}


def _prepared(
    config: DpoConfig,
    start: Start,
    model: nn.Module,
    data: PairBatches,
    measured: EncodedPairs | None,
    folder: Path,
    about: dict[str, Any],
    guards: Guards,
    processes: Processes,
    tell: Say,
) -> tuple[Evaluate | None, dict[str, float]]:
    """Fill in the references; how held-out pairs are measured, and what they come to before."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = about.get("start") or weights_digest(model.state_dict().items())  # of all weights, known where all train
    known = {"model": weights, "precision": config.loop.precision}
    held = PairBatches(measured.examples, config.batch, config.row, shuffle=False) if measured else None
    sets = [(data, "reference.npy", "data", True)] + ([(held, "validation.npy", "validation", False)] if held else [])
    with locked(folder) if processes.rank == 0 else nullcontext():
        if processes.rank == 0:
            refuse_other(folder, json.loads(json.dumps(about, default=str)))
        for batches, name, key, learnt in sets:
            depends = {**known, "data": about[key]}
            fill_reference(model, batches, folder / name, depends, config.loop, processes, tell, learnt=learnt)
    if held is None or measured is None:
        return None, {}
    pairs, samples = _held_out(held, config), _sampling(measured, start, guards)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return pairs(model) | samples(model)

    model.eval()
    with torch.no_grad(), autocast(model, config.loop):
        before = evaluate(model)
    guards.before = before.get(SAMPLED)
    return evaluate, before


def _held_out(held: PairBatches, config: DpoConfig) -> Evaluate:
    """Loss, accuracy, margin and the rest, means over pairs that are not learnt."""
    objective = _objective(config, None)

    def evaluate(model: nn.Module) -> dict[str, float]:
        device, sums = next(model.parameters()).device, dict[str, float]()
        for step in range(held.steps):
            for batch in held.micro_batches(step):
                found = objective(model, {name: values.to(device) for name, values in batch.items()})
                for name, value in found.sums.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return {f"validation/{name}": total / held.visits for name, total in sums.items() if name != "chats"}

    return evaluate


def _sampling(measured: EncodedPairs, start: Start, guards: Guards) -> Evaluate:
    """How much the model repeats itself after the first held-out prompts; the guards keep what it writes."""
    chosen = [example.chosen for example in measured.examples[: guards.config.samples]]
    prompts = [side.tokens[: int((side.targets != IGNORED).argmax()) + 1].tolist() for side in chosen]

    def evaluate(model: nn.Module) -> dict[str, float]:
        if guards.config.action == "off" or not guards.config.sampled:
            return {}
        found = greedy_answers(model, prompts, guards.config.sample_tokens, start.tokenizer.eog_ids)
        shares = [repetition(ids) for ids in found]
        guards.samples = [(_text(ids, start), share) for ids, share in zip(found, shares, strict=True)]
        return {SAMPLED: sum(shares) / len(shares)}

    return evaluate


def _objective(config: DpoConfig, guards: Guards | None) -> Preference:
    return Preference(
        config.kind, config.beta, label_smoothing=config.label_smoothing, length_normalised=config.length_normalised,
        sft_weight=config.sft_weight, chats_weight=config.chats_weight, watch=guards.see if guards else None,
    )  # fmt: skip


def _chats(chats: Sequence[Chat], start: Start, config: DpoConfig) -> Encoded | None:
    """Chats to learn beside the pairs, too long ones an error. Raises PhialError as encode_chats()."""
    settings = SftConfig(sequence=side_of(config, start), date=config.date)
    return encode_chats(chats, start, settings) if chats else None


def _silent(text: str) -> None:
    """For processes but the first."""


def _about(
    config: DpoConfig, start: Start, learnt: EncodedPairs, measured: EncodedPairs | None, chats: Encoded | None
) -> dict[str, Any]:
    """What the run depends on besides the loop and the model."""
    settings = config.model_dump(
        mode="json", exclude={"loop", "lora", "guards", "template", "date", "unfit", "sequence"}
    )
    digests = {"validation": measured and measured.digest, "chats": chats and chats.digest}
    return {"dpo": settings, **start.about, "data": learnt.digest, **digests}


def _described(pairs: EncodedPairs, start: Start, number: int, chosen: bool) -> str:
    """Where a pair stands and the beginning of one of its answers, on one line."""
    pair = pairs.examples[number]
    targets = (pair.chosen if chosen else pair.rejected).targets
    return f"{pair.where}, {'chosen' if chosen else 'rejected'}: {_text(targets[targets != IGNORED].tolist(), start)}"


def _text(ids: Sequence[int], start: Start) -> str:
    """The beginning of what ids say, quoted, on one line."""
    text = b"".join(start.tokenizer.token_bytes(i) for i in ids).decode("utf-8", "replace")
    return repr(text[:_SHOWN])


def say_pairs(encoded: EncodedPairs, what: str, tell: Say) -> None:
    """Tell what was read and what was left out."""
    tell(
        f"{what}: {len(encoded.examples):,} pairs, {encoded.tokens:,} tokens, {encoded.targets:,} of them of answers "
        f"({encoded.targets / encoded.tokens:.0%})"
    )
    if encoded.left_out:
        tell(f"{what}: {len(encoded.left_out):,} pairs left out; first {encoded.left_out[0]}")
    if encoded.joined:
        tell(
            f"{what}: {encoded.joined:,} answers begin with white space that shares a token with the prompt, which the "
            "engine's prompts never hold; strip it"
        )


def _say_all(
    learnt: EncodedPairs, measured: EncodedPairs | None, chats: Encoded | None, data: PairBatches, config: DpoConfig,
    tell: Say,
) -> None:  # fmt: skip
    """Tell what the data come to, before anything is trained."""
    say_pairs(learnt, "training", tell)
    if measured:
        say_pairs(measured, "validation", tell)
        seen = {example.chosen.tokens.tobytes() for example in learnt.examples}
        if known := sum(example.chosen.tokens.tobytes() in seen for example in measured.examples):
            tell(f"validation: {known:,} pairs are trained on too, so what they say is not of new ones")
    if chats:
        tell(f"chats: {len(chats.examples):,} are learnt beside them, {chats.targets:,} tokens with loss")
    tell(f"{data.steps:,} steps of at most {config.batch} pairs, in rows of up to {data.row:,} tokens")
