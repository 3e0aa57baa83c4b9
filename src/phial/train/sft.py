"""Supervised fine-tuning (phi3-spec §5.1): a model learns to answer as in given chats, its loss on the answers alone.

The tokens are the template's that inference uses (tokenizer/chat_answers.py); whole chats are packed into rows
(chat_packing.py); the loop is everyone's. What is too long, dropped or cannot be learnt is said, never passed over.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from phial.errors import PhialError
from phial.manifest import write_json
from phial.model.transformer import Transformer
from phial.tokenizer.chat_answers import Answers, encode_answers
from phial.train.chat_packing import Example, PackedChats, best_fit, example_of, stacked_chats
from phial.train.chats import Chat
from phial.train.held_out import perplexity, summed_loss
from phial.train.loop import Evaluate, LoopConfig, autocast, train
from phial.train.lora import LoraConfig
from phial.train.objective import Batch, NextToken
from phial.train.processes import OneProcess, Processes
from phial.train.start import Start, export_run
from phial.train.tuning import Epochs, gentle_loop

REPORT = "data.json"
_USUAL = 2048  # tokens of a row where the configuration does not say
Say = Callable[[str], None]


class SftConfig(BaseModel):
    """How chats are learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sequence: int | None = Field(None, gt=0, description="tokens of a row; the model's context up to 2048 if left out")
    batch: int = Field(8, gt=0, description="rows of one step, over all processes")
    micro_batch: int = Field(1, gt=0, description="rows that a process runs at once")
    epochs: Epochs = 1.0
    too_long: Literal["stop", "turns"] = Field("stop", description="or leave out a chat's last turns until it fits")
    template: str | None = Field(None, description="a built-in chat template; the model's own if left out")
    date: datetime.date = Field(datetime.date(2026, 1, 1), description="today, for templates that write the date")
    lora: LoraConfig | None = Field(None, description="train adapters, all else frozen; left out: every weight")
    loop: LoopConfig = Field(LoopConfig(steps=1), description="without steps, which follow from the epochs")

    @model_validator(mode="before")
    @classmethod
    def _gently(cls, table: Any) -> Any:
        return gentle_loop(table)


class Encoded(NamedTuple):
    """Chats as examples, and what is to be said of them.

    Attributes:
        chats: read. tokens: of the examples. targets: tokens with loss.
        shortened: where chats stand whose last turns were left out, with the number of messages left out.
        left_out: where chats stand whose first answer does not fit.
        joined: answers whose first characters share a token with the prompt before them.
        ends: ids that end answers.
    """

    examples: list[Example]
    chats: int
    tokens: int
    targets: int
    shortened: list[tuple[str, int]]
    left_out: list[str]
    joined: int
    ends: frozenset[int]

    @property
    def digest(self) -> str:
        """sha256 of all tokens and targets: what the run depends on."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(
                np.int64(len(example.tokens)).tobytes() + example.tokens.tobytes() + example.targets.tobytes()
            )
        return digest.hexdigest()

    def report(self) -> dict[str, Any]:
        """What a program would read."""
        return self._asdict() | {"examples": len(self.examples), "ends": sorted(self.ends), "sha256": self.digest}


def sequence_of(config: SftConfig, start: Start) -> int:
    """Tokens of a row. Raises PhialError where the configuration asks for more than the model's context."""
    context = start.model.config.n_ctx_train
    if config.sequence is None:
        return min(context, _USUAL)
    if config.sequence > context:
        raise PhialError(f"sequence is {config.sequence}, the model's context {context}", "shorten it")
    return config.sequence


def encode_chat(chat: Chat, start: Start, config: SftConfig) -> Answers:
    """A chat's tokens with the answers marked. Raises PhialError, with file and row, as encode_answers()."""
    try:
        now = datetime.datetime.combine(config.date, datetime.time())
        found = encode_answers(start.template, chat.messages, start.tokenizer, now=now)
    except PhialError as error:
        raise PhialError(f"{chat.where}: {error.message}", error.hint) from error
    if not any(found.answered[1:]):
        raise PhialError(f"{chat.where} has no token with loss", "it has no answer; remove it")
    return found


def encode_chats(chats: Iterable[Chat], start: Start, config: SftConfig) -> Encoded:
    """Chats as examples.

    Raises PhialError, with file and row, for a chat that the template cannot render without loss or that is longer than
    a row while too_long is "stop"; where no example is left.
    """
    n, count, joined = sequence_of(config, start), 0, 0
    examples, ends = list[Example](), set[int]()
    shortened, left_out = list[tuple[str, int]](), list[str]()
    for chat in chats:
        count += 1
        found, removed = _fitting(chat, start, config, n)
        if found is None:
            left_out.append(chat.where)
            continue
        if removed:
            shortened.append((chat.where, removed))
        examples.append(example_of(found.ids, found.answered))
        ends |= {i for i, answered in zip(found.ids, found.answered, strict=True) if answered} & start.tokenizer.eog_ids
        joined += found.joined
    if not examples:
        raise PhialError(f"none of {count} chats fits into {n} tokens", "raise sequence, or give other chats")
    tokens = sum(len(example.tokens) for example in examples)
    targets = sum(int((example.targets >= 0).sum()) for example in examples)
    return Encoded(examples, count, tokens, targets, shortened, left_out, joined, frozenset(ends))


def _fitting(chat: Chat, start: Start, config: SftConfig, n: int) -> tuple[Answers | None, int]:
    """The longest beginning of a chat that ends with an answer and fits into n tokens, and how many messages follow.

    None where not even the first answer fits. Raises PhialError where too_long is "stop" and the chat does not fit.
    """
    whole = encode_chat(chat, start, config)
    if (size := _size(whole)) <= n:
        return whole, 0
    if config.too_long == "stop":
        raise PhialError(
            f"{chat.where} has {size:,} tokens, a row {n:,}",
            'raise sequence, or set too_long = "turns" to leave out the last turns of such chats',
        )
    answers = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
    for last in reversed(answers[:-1]):
        found = encode_chat(Chat(chat.messages[: last + 1], chat.where), start, config)
        if _size(found) <= n:
            return found, len(chat.messages) - last - 1
    return None, 0


def _size(answers: Answers) -> int:
    """Tokens up to the last one with loss, which itself is only a target."""
    return len(answers.answered) - 1 - answers.answered[::-1].index(True)


def say(encoded: Encoded, what: str, n: int, tell: Say) -> None:
    """Tell what was read and what was left out."""
    tell(
        f"{what}: {len(encoded.examples):,} chats, {encoded.tokens:,} tokens, {encoded.targets:,} with loss "
        f"({encoded.targets / encoded.tokens:.0%})"
    )
    if encoded.shortened:
        count, (where, last) = len(encoded.shortened), encoded.shortened[0]
        tell(f"{what}: {count:,} chats longer than {n:,} tokens lose their last turns; first {where}: {last} messages")
    if encoded.left_out:
        count, where = len(encoded.left_out), encoded.left_out[0]
        tell(f"{what}: {count:,} chats left out, their first answer ends beyond {n:,} tokens; first {where}")
    if encoded.joined:
        tell(
            f"{what}: {encoded.joined:,} answers begin with white space that shares a token with the prompt, which the "
            "engine's prompts never hold; strip it"
        )


def held_out(sources: Mapping[str, Encoded], n: int, micro: int) -> Evaluate:
    """Loss (nats a token) and perplexity of answers that are not learnt: of each source, where there are several, and
    of all."""
    batches = {name: _in_order(encoded, n, micro) for name, encoded in sources.items()}

    def evaluate(model: nn.Module) -> dict[str, float]:
        sums = {name: summed_loss(model, of_one) for name, of_one in batches.items()}
        whole = {"validation": (sum(nll for nll, _ in sums.values()), sum(count for _, count in sums.values()))}
        each = {f"validation/{name}": found for name, found in sums.items()} if len(sums) > 1 else {}
        means = {name: nll / targets for name, (nll, targets) in (each | whole).items()}
        return {f"{name}/loss": mean for name, mean in means.items()} | {
            f"{name}/perplexity": perplexity(mean) for name, mean in means.items()
        }

    return evaluate


def _in_order(encoded: Encoded, n: int, micro: int) -> list[Batch]:
    """Chats packed as they come."""
    lengths = [len(example.tokens) for example in encoded.examples]
    packed = best_fit(lengths, range(len(lengths)), n)
    rows = [[encoded.examples[i] for i in row] for row in packed]
    return [stacked_chats(rows[at : at + micro]) for at in range(0, len(rows), micro)]


def batches_of(encoded: Encoded, config: SftConfig, n: int) -> PackedChats:
    """The batches of all epochs."""
    seed = config.loop.seed
    return PackedChats(encoded.examples, n, config.batch, config.micro_batch, epochs=config.epochs, seed=seed)


def sft(
    config: SftConfig,
    start: Start,
    chats: Iterable[Chat],
    validation: Mapping[str, Iterable[Chat]],
    folder: Path,
    tell: Say,
    *,
    workers: int = 0,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Tune a model on chats and write it; {"model" and "adapter" as export_run(), "data", "before", "after"}.

    Args:
        validation: chats by source whose answers' loss is measured before, while and after; there may be none.
        tell: is told what the data come to, before anything is trained.
        workers: processes that read ahead.
        processes: those that train this model together; None: this one alone, on its GPU where it has one.

    Raises PhialError for chats or a run that is not right.
    """
    processes, n = processes or OneProcess(), sequence_of(config, start)
    encoded = encode_chats(chats, start, config)
    data = batches_of(encoded, config, n)
    measured = {name: encode_chats(held, start, config) for name, held in validation.items()}
    digests = {name: held.digest for name, held in measured.items()}
    if processes.rank == 0:
        _say_all(encoded, measured, data, config, tell)
    model = start.model.to("cuda" if torch.cuda.is_available() else "cpu")
    evaluate = held_out(measured, n, config.micro_batch) if measured else None
    before = _evaluated(model, evaluate, config.loop)
    last = train(
        model,
        data,
        NextToken(),
        config.loop.model_copy(update={"steps": data.steps}),
        folder,
        evaluate=evaluate,
        workers=workers,
        processes=processes,
        about={"sft": _settings(config, n), **start.about, "data": encoded.digest, "validation": digests},
    )
    whole, made = processes.whole(model), {}
    if whole is not None:
        assert isinstance(whole, Transformer)
        reports = {name: held.report() for name, held in measured.items()}
        write_json(folder / REPORT, {"training": encoded.report(), "validation": reports})
        made = export_run(start, whole, folder, ends=encoded.ends)
    return {**made, "data": encoded.report(), "before": before, "after": dict(last)}


def _say_all(
    encoded: Encoded, measured: Mapping[str, Encoded], data: PackedChats, config: SftConfig, tell: Say
) -> None:
    """Tell what the data come to, before anything is trained."""
    say(encoded, "training", data.n, tell)
    for name, held in measured.items():
        what = f"validation, {name}" if len(measured) > 1 else "validation"
        say(held, what, data.n, tell)
        if known := _known(held, encoded):
            tell(f"{what}: {known:,} chats are trained on too, so their loss says nothing of new ones")
    full = _filled(encoded, data, config)
    tell(f"{data.steps:,} steps of at most {config.batch} rows of {data.n:,} tokens, {full:.0%} full")


def _settings(config: SftConfig, n: int) -> Mapping[str, Any]:
    return config.model_dump(mode="json", include={"batch", "micro_batch", "epochs"}) | {"sequence": n}


def _known(held: Encoded, learnt: Encoded) -> int:
    """How many held-out chats are among those learnt, token by token."""
    seen = {example.tokens.tobytes() for example in learnt.examples}
    return sum(example.tokens.tobytes() in seen for example in held.examples)


def _filled(encoded: Encoded, data: PackedChats, config: SftConfig) -> float:
    """The share of the rows' room that chats fill."""
    return encoded.tokens * config.epochs / (data.rows * data.n)


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Evaluate | None, loop: LoopConfig) -> dict[str, float]:
    """What a model measures in the precision that the loop measures in."""
    model.eval()
    with autocast(model, loop):
        return evaluate(model) if evaluate else {}
