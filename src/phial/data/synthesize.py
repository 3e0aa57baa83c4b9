"""Synthetic text: a teacher asked from a grid of topics, its answers checked, what passes written as a source.

The method of phi-1 and phi-1.5: textbook-like text and exercises, made diverse by what is asked (topic × audience ×
style, topics.py), not by temperature alone. Every answer runs through checks.py, decontamination and near-duplicate
removal in the order of the requests, so that the output depends on the configuration, the seed and the teacher's
answers only: not on the number of workers, nor on how often the run was stopped (request_journal.py).

The output folder is a stage's (stage.py) with one task, and the journal beside it. A rewrite has the licence of its
source, all else the configuration's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.config_file import read_toml
from phial.data.benchmarks import Benchmark, read_items
from phial.data.checks import Bounds, Verdict, judge
from phial.data.document import Document
from phial.data.near_duplicates import Accepted
from phial.data.overlap import Matcher
from phial.data.passages import Passage, read_passages
from phial.data.question_index import Index
from phial.data.request_journal import RequestJournal, digest
from phial.data.sandbox import Limits, Outcome, run_exercise
from phial.data.synthesis_report import OutputFiles, Tally
from phial.data.synthetic_kinds import KIND_NAMES, KINDS, Kind, KindName
from phial.data.topics import Cell, load_topics
from phial.errors import PhialError
from phial.language_model import LanguageModel, Reply

Show = Callable[[int, str], None]  # how many requests are done, and what to say of it


class SynthesizeConfig(BaseModel):
    """What to ask for and what to accept. Lengths in words, shares from 0 to 1, prices per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: dict[KindName, int] = Field(min_length=1)  # prompts sent, by kind; the report says how many were accepted
    licence: str = Field(min_length=1)  # of what this teacher writes
    name: str = "synthetic"  # metadata.source
    seed: int = 0
    temperature: float = Field(0.8, ge=0)
    max_tokens: int = Field(1024, ge=1)
    topics: Path | None = None
    rewrite: tuple[Path, ...] = ()  # jsonl files of the kind rewrite
    passage_words: int = Field(300, ge=20)
    min_words: int = Field(40, ge=0)
    max_words: int = Field(2000, ge=1)
    max_repetition: float = Field(0.3, ge=0, le=1)
    near_duplicate: float = Field(0.6, gt=0, le=1)  # Jaccard similarity of word 3-grams
    price_in: float | None = Field(None, ge=0)
    price_out: float | None = Field(None, ge=0)
    benchmarks: tuple[Benchmark, ...] = ()  # no text may hold a question of these
    coverage: float = Field(0.5, gt=0, le=1)  # share of a question's words from which a text holds it
    weak_sandbox: bool = False

    @property
    def bounds(self) -> Bounds:
        """What checks.py asks for."""
        return Bounds(self.min_words, self.max_words, self.max_repetition)


class Request(NamedTuple):
    """One prompt: its key in the journal, and what its document's metadata will say of it."""

    key: str
    kind: Kind
    cell: Cell
    passage: Passage | None
    messages: list[dict[str, str]]
    seed: int


def plan(config: SynthesizeConfig, teacher: str) -> list[Request]:
    """All requests of a configuration, in the order in which their answers are judged."""
    tree = load_topics(config.topics)
    found: list[Request] = []
    for name in KIND_NAMES:
        count = config.requests.get(name, 0)
        passages = _passages(config, count) if name == "rewrite" else itertools.repeat(None)
        kind = KINDS[name]
        cells = tree.draw(count, config.seed, name)
        for place, (cell, passage) in enumerate(zip(cells, passages, strict=False)):
            messages = kind.messages(cell, passage.text if passage else "")
            seed = int(digest(config.seed, name, place)[:8], 16) & 0x7FFFFFFF
            key = digest(teacher, messages, kind.schema, config.max_tokens, config.temperature, seed)
            found.append(Request(key, kind, cell, passage, messages, seed))
    return found


def _passages(config: SynthesizeConfig, count: int) -> list[Passage]:
    if count and not config.rewrite:
        raise PhialError(f"{count} rewrites of nothing", "name the documents to rewrite")
    passages = read_passages(config.rewrite, config.passage_words)
    if len(passages) < count:
        raise PhialError(f"{count} rewrites, but the documents have {len(passages)} passages", "ask for fewer")
    passages.sort(key=lambda passage: hashlib.blake2b(f"{config.seed}\0{passage.text}".encode()).digest())
    return passages[:count]


def synthesize(
    config: SynthesizeConfig,
    teacher: LanguageModel,
    output: Path,
    *,
    contaminated: Callable[[str], bool] | None = None,
    workers: int = 1,
    show: Show | None = None,
) -> dict[str, Any]:
    """Ask, check, write; what is written to stage.json is returned.

    Args:
        output: the folder; a run that was stopped there goes on; a finished one is judged again from its journal.
        contaminated: whether a text overlaps a benchmark; None looks for the configuration's benchmarks. Where there
            are none either, the report says so.
        workers: requests under way at once; the output does not depend on it. An engine answers one at a time.

    Raises:
        PhialError: the configuration cannot be met, the teacher fails, or exercises cannot be executed safely.
    """
    requests = plan(config, teacher.name)
    contaminated = contaminated or _benchmark_check(config)
    output.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    accepted = Accepted(config.near_duplicate)
    with ExitStack() as stack:
        journal = stack.enter_context(RequestJournal(output / "journal.jsonl"))
        replies = stack.enter_context(_Asking(config, teacher, journal, workers))
        documents = OutputFiles(output)
        execute = _executor(config, journal)
        for done, (request, reply) in enumerate(replies.of(requests), 1):
            source = request.passage.text if request.passage else ""
            verdict = judge(request.kind, request.cell, source, reply, config.bounds, execute)
            if not verdict.reason:
                verdict = _against_others(verdict, _name(config, request), accepted, contaminated)
            documents.add(_document(config, teacher.name, request, verdict), verdict.reason)
            seconds = journal.entries[request.key]["seconds"]
            tally.add(request.kind.name, verdict.reason, reply, seconds)
            if show is not None:
                show(done, f"{tally.kept} of {done} accepted")
        settings = config.model_dump(mode="json")
        return documents.finish(tally.report(settings, teacher.name, contaminated is not None, accepted.threshold))


def _benchmark_check(config: SynthesizeConfig) -> Callable[[str], bool] | None:
    """Whether a text holds a question of the configured benchmarks (see overlap.py)."""
    if not config.benchmarks:
        return None
    index = Index(itertools.chain.from_iterable(read_items(benchmark) for benchmark in config.benchmarks))
    matcher = Matcher(index, config.coverage)
    return lambda text: bool(matcher.find([text]))


class _Asking:
    """Replies in the order of the requests: from the journal, or asked for ahead of time by `workers` threads."""

    def __init__(self, config: SynthesizeConfig, teacher: LanguageModel, journal: RequestJournal, workers: int) -> None:
        self._config, self._teacher, self._journal, self._workers = config, teacher, journal, workers
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def of(self, requests: list[Request]) -> Iterator[tuple[Request, Reply]]:
        """Every request with its reply."""
        ahead: dict[int, Future[None]] = {}
        unasked = iter([n for n, request in enumerate(requests) if request.key not in self._journal.entries])
        for number, request in enumerate(requests):
            while len(ahead) < 2 * self._workers and (next_one := next(unasked, None)) is not None:
                ahead[next_one] = self._pool.submit(self._ask, requests[next_one])
            if number in ahead:
                ahead.pop(number).result()
            value = self._journal.entries[request.key]
            yield request, Reply(*value["reply"])

    def _ask(self, request: Request) -> None:
        started = time.perf_counter()
        reply = self._teacher.generate(
            request.messages,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            seed=request.seed,
            schema=request.kind.schema,
        )
        self._journal.append(request.key, {"reply": list(reply), "seconds": time.perf_counter() - started})


def _executor(config: SynthesizeConfig, journal: RequestJournal) -> Callable[[str, str, bool], Outcome]:
    """Executes exercises; an outcome is journalled too, since a time limit may fall differently on another day."""
    limits = Limits()

    def execute(solution: str, tests: str, stub: bool) -> Outcome:
        key = digest("executed", solution, tests, stub, repr(limits))
        if key not in journal.entries:
            outcome = run_exercise(solution, tests, limits=limits, stub=stub, allow_weak=config.weak_sandbox)
            journal.append(key, {"name": outcome.name, "detail": outcome.detail, "closed": sorted(outcome.closed)})
        value = journal.entries[key]
        return Outcome(value["name"], value["detail"], frozenset(value["closed"]))

    return execute


def _against_others(
    verdict: Verdict, name: str, accepted: Accepted, contaminated: Callable[[str], bool] | None
) -> Verdict:
    """Decontamination, then comparison with what was accepted before; what passes both is accepted."""
    if contaminated is not None and contaminated(verdict.text):
        return verdict._replace(reason="contaminated", detail="overlaps a benchmark")
    if like := accepted.add(verdict.text, name):
        return verdict._replace(reason="near_duplicate", detail=like)
    return verdict


def _name(config: SynthesizeConfig, request: Request) -> str:
    """The id of a request's document."""
    return f"{config.name}-{request.key[:16]}"


def _document(config: SynthesizeConfig, teacher: str, request: Request, verdict: Verdict) -> Document:
    """The document of a verdict."""
    passage = request.passage
    metadata: dict[str, Any] = {
        "source": config.name,
        "licence": passage.licence if passage else config.licence,
        "path": f"journal.jsonl#{request.key}",
        "synthetic": True,
        "kind": request.kind.name,
        "audience": request.cell.audience,
        "style": request.cell.style,
        "teacher": teacher,
    }
    if passage:  # a source has one licence for all its documents: this key keeps what a rewrite inherited
        metadata |= {"rewrite_of": passage.document, "rewrite_licence": passage.licence}
    else:
        metadata["topic"] = str(request.cell.topic)
    if verdict.reason:
        metadata |= {"filter_reason": verdict.reason, "filter_detail": verdict.detail}
    if verdict.reason == "near_duplicate":
        metadata["duplicate_of"] = verdict.detail
    return Document(verdict.text, _name(config, request), metadata=metadata)


def load_config(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, unchecked: of its table [synthesize], or of its top where it has none.

    Paths in it are relative to its folder.
    """
    tables = read_toml(path, "configuration")
    settings: dict[str, Any] = dict(tables.get("synthesize", tables))
    if isinstance(topics := settings.get("topics"), str):
        settings["topics"] = path.parent / topics
    if isinstance(rewrite := settings.get("rewrite"), list):
        settings["rewrite"] = [path.parent / str(name) for name in rewrite]
    if isinstance(benchmarks := settings.get("benchmarks"), list):
        settings["benchmarks"] = [_placed(benchmark, path.parent) for benchmark in benchmarks]
    return settings


def _placed(benchmark: Any, folder: Path) -> Any:
    """A benchmark's table with its files in the folder; anything else as it is, for the check to refuse."""
    if not isinstance(benchmark, dict) or not isinstance(benchmark.get("files"), list):
        return benchmark
    return benchmark | {"files": [str(folder / str(name)) for name in benchmark["files"]]}


def checked_config(settings: dict[str, Any]) -> SynthesizeConfig:
    """The configuration of these settings. Raises PhialError that names the field where one is wrong or missing."""
    from pydantic import ValidationError

    try:
        return SynthesizeConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PhialError(f"{where}: {first['msg']}", f"given: {json.dumps(first['input'], default=str)[:80]}") from None
