"""Preference pairs for DPO: from files, from templates, and on-policy, the model's own best answer against its worst.

On-policy: K answers of the model to a prompt are scored by checks that need no judgement (verifiers.py), by rules that
hold for every answer, and by a judge (judge.py); where the best is good enough and better than the worst by a margin,
the two are a pair, of equal candidates those that are alike in length, so that length is not what is learnt. The report
counts the prompts that gave none, and why.

The folder: pairs.jsonl; chats.jsonl, the good answers as chats for fine-tuning; answers.jsonl, every answer with its
score and faults; report.json, last. A stopped run goes on from journal.jsonl, and writes what an undisturbed one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from phial.data import judge as judging
from phial.data.asking import Ask, Asking, Execute, ask_of, executor
from phial.data.benchmarks import Benchmark
from phial.data.format_tasks import FormatKind
from phial.data.format_words import Split
from phial.data.identity import IdentityConfig
from phial.data.overlap import benchmark_check
from phial.data.preference_prompts import Gate, Pair, Prompt, refuse_unranked, templates, with_system
from phial.data.preference_report import JOURNAL, Output, Tally, refuse_foreign
from phial.data.request_journal import RequestJournal, digest
from phial.data.verifiers import Check, problems
from phial.errors import ArgumentError
from phial.language_model import LanguageModel, Reply

Show = Callable[[int, str], None]  # how many prompts are done, and what to say of it


class Weights(BaseModel):
    """How much each way of scoring counts; a score is the weighted mean of those that there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verifiers: float = Field(1.0, ge=0)
    rules: float = Field(1.0, ge=0)
    judge: float = Field(1.0, ge=0)


class PreferConfig(BaseModel):
    """What to ask, how to rank the answers, and when two of them are a pair. Scores are from 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    split: Split = Field("train", description="the half of the templates")
    formats: dict[FormatKind, int] = Field({}, description="prompts of each kind of format_tasks.py")
    identity: IdentityConfig | None = None
    prompts: tuple[Path, ...] = Field((), description="files of prompts of your own, with checks")
    pairs: tuple[Path, ...] = Field((), description="files of pairs, taken as they are")
    system: str | None = Field(None, description="a system message above every prompt that has none")
    samples: int = Field(4, ge=0, description="answers to a prompt; 0: the written ones, and no model")
    temperature: float = Field(0.9, ge=0)
    max_tokens: int = Field(128, ge=1)
    rules: tuple[Check, ...] = Field((), description="checks of every answer")
    weights: Weights = Weights()
    rubric: str = Field(judging.RUBRIC, min_length=1)
    margin: float = Field(0.3, gt=0, le=1)
    least: float = Field(1.0, ge=0, le=1, description="score that the chosen answer reaches")
    written: bool = Field(False, description="where no answer is good enough, the written one is chosen")
    benchmarks: tuple[Benchmark, ...] = Field((), description="what must not be in a prompt")
    coverage: float = Field(0.5, gt=0, le=1)
    weak_sandbox: bool = False

    @model_validator(mode="after")
    def _something(self) -> PreferConfig:
        if not (self.formats or self.identity or self.prompts or self.pairs):
            raise ValueError("there is nothing to make pairs of; give formats, identity, prompts or pairs")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("answers of temperature 0 are all the same; raise it, or take one sample")
        return self


class Answer(NamedTuple):
    """An answer, what is wrong with it, and its score."""

    text: str
    cut_off: bool
    faults: list[str]
    score: float


def plan(config: PreferConfig, rows: Iterable[Prompt] = (), *, judged: bool = False) -> tuple[list[Prompt], Gate]:
    """The prompts that will be asked, and the gate that kept others out. Raises PhialError as prefer()."""
    gate = Gate(benchmark_check(config.benchmarks, config.coverage))
    made = templates(config.formats, config.identity, config.split, config.seed)
    prompts = gate.prompts(with_system(prompt, config.system) for prompt in itertools.chain(made, rows))
    if config.samples:
        refuse_unranked(prompts, bool(config.rules) or judged)
    return prompts, gate


def prefer(
    config: PreferConfig,
    output: Path,
    *,
    model: LanguageModel | None = None,
    judge: LanguageModel | None = None,
    rows: Iterable[Prompt] = (),
    pairs: Iterable[Pair] = (),
    names: tuple[str, str] = ("", ""),
    workers: int = 1,
    show: Show | None = None,
) -> dict[str, Any]:
    """Ask, rank, pair, write; what is written to report.json is returned.

    Args:
        output: the folder; a run that was stopped there goes on.
        model: answers the prompts; needed unless samples is 0.
        rows, pairs: of the configuration's files, read by the caller.
        names: of model and judge in the journal, where their own do not tell apart what may answer.
        workers: requests under way at once; the output does not depend on it.

    Raises:
        PhialError: the folder is of something else, the configuration cannot be met, a model fails, or tests cannot be
            executed safely.
    """
    if config.samples and model is None and (config.formats or config.identity or config.prompts):
        raise ArgumentError("there is no model to answer", "name one, or set samples = 0 for the written answers")
    prompts, gate = plan(config, rows, judged=judge is not None)
    output.mkdir(parents=True, exist_ok=True)
    refuse_foreign(output)
    tally = Tally()
    with ExitStack() as stack:
        journal = stack.enter_context(RequestJournal(output / JOURNAL))
        files = stack.enter_context(Output(output))
        run = _Run(config, executor(journal, config.weak_sandbox), tally, show or (lambda done, text: None))
        sampled: list[list[Reply]] = [[] for _ in prompts]
        if config.samples and model is not None:
            asking = stack.enter_context(Asking(model, journal, workers))
            sampled = list(run.sampled(prompts, asking, names[0] or model.name))
        votes: list[list[float] | None] = [None for _ in prompts]
        if judge is not None:
            asking = stack.enter_context(Asking(judge, journal, workers))
            votes = list(run.judged(prompts, sampled, asking, names[1] or judge.name))
        for prompt, replies, said in zip(prompts, sampled, votes, strict=True):
            scores: Sequence[float | None] = said or [None] * len(replies)
            answers = [run.answer(prompt, *both) for both in zip(replies, scores, strict=True)]
            found = run.pair(prompt, answers)
            files.add_prompt(prompt, answers, found, tally, gate)
        for pair in pairs:
            files.add_given(pair, tally, gate)
        about = {"model": model.name if model and config.samples else None, "judge": judge.name if judge else None}
        return files.finish(tally.report() | about, config.model_dump(mode="json", by_alias=True), gate)


class Found(NamedTuple):
    """A chosen and a rejected answer, or the reason why there is none; where the chosen one comes from."""

    chosen: Answer | None = None
    rejected: Answer | None = None
    reason: str = ""
    source: str = "sampled"


class _Run:
    """The steps of a run."""

    def __init__(self, config: PreferConfig, execute: Execute, tally: Tally, show: Show) -> None:
        self._config, self._execute, self._tally, self._show = config, execute, tally, show
        self._done = 0

    def sampled(self, prompts: Sequence[Prompt], asking: Asking, name: str) -> Iterator[list[Reply]]:
        """The answers to every prompt. Their seeds depend on the prompt, not on what else is asked."""
        config = self._config
        asks = [_ask(config, prompt, name, place) for prompt in prompts for place in range(config.samples)]
        replies = asking.replies(asks)
        for _ in prompts:
            found = []
            for reply, seconds in itertools.islice(replies, config.samples):
                self._tally.spent("model", reply, seconds)
                found.append(reply)
            self._step("answered")
            yield found

    def judged(
        self, prompts: Sequence[Prompt], sampled: Sequence[Sequence[Reply]], asking: Asking, name: str
    ) -> Iterator[list[float] | None]:
        """The judge's score of every answer; None where there are no two different ones."""
        shown = [
            judging.comparisons(name, prompt.messages, [reply.text for reply in replies], self._config.rubric)
            for prompt, replies in zip(prompts, sampled, strict=True)
        ]
        replies = asking.replies([one.ask for several in shown for one in several])
        for number, several in enumerate(shown):
            said = []
            for one in several:
                reply, seconds = next(replies)
                self._tally.spent("judge", reply, seconds)
                said.append((one.first, one.second, judging.verdict(reply)))
                self._tally.bias.add(number, *said[-1])
            self._step("judged")
            yield judging.scores([reply.text for reply in sampled[number]], said)

    def answer(self, prompt: Prompt, reply: Reply, vote: float | None = None) -> Answer:
        """A reply with its score; one that was cut off, or is empty, has none of what was asked."""
        if (cut := reply.finish_reason == "length") or not reply.text.strip():
            return Answer(reply.text, cut, ["cut off" if cut else "empty"], 0.0)
        weights, parts, faults = self._config.weights, list[tuple[float, float]](), list[str]()
        for weight, checks, before in (
            (weights.verifiers, prompt.checks, ""),
            (weights.rules, self._config.rules, "rule "),
        ):
            if checks:
                wrong = problems(checks, reply.text, self._execute)
                faults += [before + what for what in wrong]
                parts.append((weight, 1 - len(wrong) / len(checks)))
        if vote is not None:
            parts.append((weights.judge, vote))
        total = sum(weight for weight, _ in parts)
        return Answer(reply.text, False, faults, sum(w * s for w, s in parts) / total if total else 0.0)

    def pair(self, prompt: Prompt, answers: Sequence[Answer]) -> Found:
        """Best against worst, or why not."""
        if not self._config.samples:
            return self._written(prompt)
        good = [
            answer
            for answer in answers
            if answer.score >= self._config.least and answer.text.strip() and not answer.cut_off
        ]
        source = "sampled"
        if not good and self._config.written and prompt.right:
            good, source = [self.answer(prompt, Reply(prompt.right, 0, 0))], "written"
        if not good:
            return Found(reason="none_good")
        top, low = max(answer.score for answer in good), min(answer.score for answer in answers)
        if len({answer.text for answer in answers}) == 1 and source == "sampled":
            return Found(good[0], reason="all_the_same")
        if top - low < self._config.margin:
            return Found(good[0], reason="no_margin")
        best = [answer for answer in good if answer.score == top]
        worst = [answer for answer in answers if answer.score == low]
        worst = [answer for answer in worst if not answer.cut_off] or worst
        chosen, rejected = min(itertools.product(best, worst), key=lambda both: _apart(*both))
        return Found(chosen, rejected, source=source)

    def _written(self, prompt: Prompt) -> Found:
        """The written answers as a pair; the right one must pass its own checks."""
        if not prompt.right:
            return Found(reason="nothing_written")
        right = self.answer(prompt, Reply(prompt.right, 0, 0))
        if right.faults:
            return Found(reason="written_is_wrong")
        if not prompt.broken:
            return Found(right, reason="nothing_written", source="written")
        return Found(right, self.answer(prompt, Reply(prompt.broken, 0, 0)), source="written")

    def _step(self, what: str) -> None:
        self._done += 1
        self._show(self._done, what)


def _ask(config: PreferConfig, prompt: Prompt, name: str, place: int) -> Ask:
    seed = int(digest(config.seed, prompt.messages, place)[:8], 16) & 0x7FFFFFFF
    return ask_of(name, prompt.messages, seed=seed, max_tokens=config.max_tokens, temperature=config.temperature)


def _apart(chosen: Answer, rejected: Answer) -> int:
    """How many words one answer is longer than the other."""
    return abs(len(chosen.text.split()) - len(rejected.text.split()))
