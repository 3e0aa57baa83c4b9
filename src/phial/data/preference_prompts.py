"""What preferences are made about: prompts with their checks, from templates and files; pairs that are there already.

Prompts are told apart by their messages; one that a benchmark or a held-out file has is left out before it is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.config_file import checked
from phial.data.format_tasks import FormatKind, format_tasks
from phial.data.format_words import Split
from phial.data.identity import IdentityConfig, identity_tasks
from phial.data.request_journal import digest
from phial.data.verifiers import Check
from phial.errors import ArgumentError, PhialError
from phial.tokenizer.messages import checked_messages

Messages = list[dict[str, str]]


class Pair(NamedTuple):
    """Two ways to go on with a conversation, the first one better; what else is known goes along into the file."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    about: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """A line of pairs.jsonl."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, **self.about}


class Prompt(NamedTuple):
    """A conversation up to an answer, the checks of that, and where they are known a right and a broken answer."""

    kind: str
    messages: Messages
    checks: tuple[Check, ...]
    right: str = ""
    broken: str = ""

    @property
    def key(self) -> str:
        """What tells this prompt apart from others."""
        return digest(self.messages)


class PromptRow(BaseModel):
    """A row of a prompts file. `answer` and `rejected` are written ones, to be used as the configuration says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | list[dict[str, Any]] = Field(min_length=1)
    checks: tuple[Check, ...] = ()
    kind: str = "file"
    answer: str = ""
    rejected: str = ""
    id: str | int = ""
    source: str = ""


def templates(
    formats: Mapping[FormatKind, int], identity: IdentityConfig | None, split: Split, seed: int
) -> Iterable[Prompt]:
    """The prompts of format_tasks.py and identity.py."""
    for kind, count in formats.items():
        for task in format_tasks(kind, count, split, seed):
            messages = [{"role": "user", "content": task.prompt}]
            yield Prompt(kind, messages, _checks(task.checks, kind), task.right, task.broken)
    if identity is not None:
        for one in identity_tasks(identity, split, seed):
            yield Prompt("identity", one.messages, _checks(one.checks, "identity"), one.right, one.broken)


def _checks(tables: Sequence[Mapping[str, Any]], kind: str) -> tuple[Check, ...]:
    return checked(PromptRow, {"prompt": kind, "checks": tables}, kind).checks


def prompt_of(value: dict[str, Any], where: str) -> Prompt:
    """The prompt of a file's row. Raises PhialError that names the place where it is none."""
    row = checked(PromptRow, value, where)
    given = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
    try:
        messages = [{"role": m["role"], "content": str(m["content"])} for m in checked_messages(given)]
    except PhialError as error:
        raise PhialError(f"{where}: {error.message}", error.hint) from error
    if messages[-1]["role"] != "user":
        raise PhialError(f"{where} ends with a message of {messages[-1]['role']}", "a prompt ends with the user's")
    return Prompt(row.kind, messages, row.checks, row.answer, row.rejected)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt below a system message, where it has none of its own."""
    if system is None or prompt.messages[0]["role"] == "system":
        return prompt
    return prompt._replace(messages=[{"role": "system", "content": system}, *prompt.messages])


class Gate:
    """Lets through what is not there yet and in no benchmark.

    Args:
        contaminated: whether a text holds a benchmark's question; None where there is no benchmark.

    Attributes:
        left_out: prompts that did not pass, by reason.
    """

    def __init__(self, contaminated: Callable[[str], bool] | None) -> None:
        self._contaminated = contaminated
        self._seen: set[str] = set()
        self.left_out: Counter[str] = Counter()

    @property
    def decontaminates(self) -> bool:
        """Whether there are benchmarks to look for."""
        return self._contaminated is not None

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that pass, in order."""
        passed = []
        for prompt in prompts:
            if reason := self._reason(prompt.messages, prompt.key):
                self.left_out[reason] += 1
            else:
                passed.append(prompt)
        return passed

    def pair(self, pair: Pair) -> str:
        """Why a pair does not pass, or ""; its sides must differ, and it must not be a known one turned round."""
        sides = [_said(side) for side in (pair.chosen, pair.rejected)]
        if not sides[0].strip():
            return "empty_answer"
        if sides[0] == sides[1]:
            return "same_answers"
        if digest(pair.prompt, pair.rejected, pair.chosen) in self._seen:
            return "contradicts_another"
        return self._reason(pair.prompt, digest(pair.prompt, pair.chosen, pair.rejected))

    def _reason(self, messages: Messages, key: str) -> str:
        if key in self._seen:
            return "duplicate"
        asked = [str(message["content"]) for message in messages if message["role"] == "user"]
        if self._contaminated is not None and any(map(self._contaminated, asked)):
            return "contaminated"
        self._seen.add(key)
        return ""


def _said(messages: Messages) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def refuse_unranked(prompts: Sequence[Prompt], others: bool) -> None:
    """Raises ArgumentError where a prompt's answers would be ranked by nothing."""
    bare = sum(not prompt.checks for prompt in prompts)
    if bare and not others:
        raise ArgumentError(
            f"{bare} of {len(prompts)} prompts have no checks", "give them checks, set rules, or name a --judge"
        )
