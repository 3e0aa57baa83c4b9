"""Questions to a language model, answered from the journal or asked ahead of time; and exercises executed once.

What is written depends on the questions and the replies alone: not on the number of workers, nor on how often the run
was stopped (request_journal.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from phial.data.request_journal import RequestJournal, digest
from phial.data.sandbox import Limits, Outcome, run_exercise
from phial.language_model import LanguageModel, Reply

Execute = Callable[[str, str, bool], Outcome]  # solution, tests, stub


class Ask(NamedTuple):
    """One question, and its key in the journal."""

    key: str
    messages: Sequence[Mapping[str, str]]
    seed: int
    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float


def ask_of(
    model: str,
    messages: Sequence[Mapping[str, str]],
    *,
    seed: int,
    max_tokens: int,
    temperature: float,
    schema: Mapping[str, Any] | None = None,
) -> Ask:
    """A question; `model` is whatever tells apart the models that may answer it."""
    key = digest(model, messages, schema, max_tokens, temperature, seed)
    return Ask(key, messages, seed, schema, max_tokens, temperature)


class Asking:
    """Replies in the order of the questions. A context manager; threads are `workers` many."""

    def __init__(self, model: LanguageModel, journal: RequestJournal, workers: int = 1) -> None:
        self._model, self._journal, self._workers = model, journal, workers
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[Reply, float]]:
        """Every reply, with the seconds that it took."""
        ahead: dict[int, Future[None]] = {}
        unasked = iter([n for n, ask in enumerate(asks) if ask.key not in self._journal.entries])
        for number, ask in enumerate(asks):
            while len(ahead) < 2 * self._workers and (next_one := next(unasked, None)) is not None:
                ahead[next_one] = self._pool.submit(self._ask, asks[next_one])
            if number in ahead:
                ahead.pop(number).result()
            value = self._journal.entries[ask.key]
            yield Reply(*value["reply"]), value["seconds"]

    def _ask(self, ask: Ask) -> None:
        if ask.key in self._journal.entries:  # the same question twice
            return
        started = time.perf_counter()
        reply = self._model.generate(
            ask.messages, max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed, schema=ask.schema
        )
        self._journal.append(ask.key, {"reply": list(reply), "seconds": time.perf_counter() - started})


def executor(journal: RequestJournal, allow_weak: bool) -> Execute:
    """Executes exercises; an outcome is journalled too, since a time limit may fall differently on another day."""
    limits = Limits()

    def execute(solution: str, tests: str, stub: bool) -> Outcome:
        key = digest("executed", solution, tests, stub, repr(limits))
        if key not in journal.entries:
            outcome = run_exercise(solution, tests, limits=limits, stub=stub, allow_weak=allow_weak)
            journal.append(key, {"name": outcome.name, "detail": outcome.detail, "closed": sorted(outcome.closed)})
        value = journal.entries[key]
        return Outcome(value["name"], value["detail"], frozenset(value["closed"]))

    return execute
