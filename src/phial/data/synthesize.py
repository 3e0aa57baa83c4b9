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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phial.config_file import read_toml
from phial.data.asking import Ask, Asking, ask_of, executor
from phial.data.benchmarks import Benchmark
from phial.data.checks import Bounds, Verdict, judge
from phial.data.document import Document
from phial.data.near_duplicates import Accepted
from phial.data.overlap import benchmark_check
from phial.data.passages import Passage, read_passages
from phial.data.request_journal import RequestJournal, digest
from phial.data.synthesis_report import OutputFiles, Tally
from phial.data.synthetic_kinds import KIND_NAMES, KINDS, Kind, KindName
from phial.data.topics import Cell, load_topics
from phial.errors import PhialError
from phial.language_model import LanguageModel

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
    """One prompt, and what its document's metadata will say of it."""

    ask: Ask
    kind: Kind
    cell: Cell
    passage: Passage | None


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
            ask = ask_of(
                teacher,
                messages,
                seed=seed,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                schema=kind.schema,
            )
            found.append(Request(ask, kind, cell, passage))
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
    contaminated = contaminated or benchmark_check(config.benchmarks, config.coverage)
    output.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    accepted = Accepted(config.near_duplicate)
    with ExitStack() as stack:
        journal = stack.enter_context(RequestJournal(output / "journal.jsonl"))
        asking = stack.enter_context(Asking(teacher, journal, workers))
        documents = OutputFiles(output)
        execute = executor(journal, config.weak_sandbox)
        replies = asking.replies([request.ask for request in requests])
        for done, (request, (reply, seconds)) in enumerate(zip(requests, replies, strict=True), 1):
            source = request.passage.text if request.passage else ""
            verdict = judge(request.kind, request.cell, source, reply, config.bounds, execute)
            if not verdict.reason:
                verdict = _against_others(verdict, _name(config, request), accepted, contaminated)
            documents.add(_document(config, teacher.name, request, verdict), verdict.reason)
            tally.add(request.kind.name, verdict.reason, reply, seconds)
            if show is not None:
                show(done, f"{tally.kept} of {done} accepted")
        settings = config.model_dump(mode="json")
        return documents.finish(tally.report(settings, teacher.name, contaminated is not None, accepted.threshold))


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
    return f"{config.name}-{request.ask.key[:16]}"


def _document(config: SynthesizeConfig, teacher: str, request: Request, verdict: Verdict) -> Document:
    """The document of a verdict."""
    passage = request.passage
    metadata: dict[str, Any] = {
        "source": config.name,
        "licence": passage.licence if passage else config.licence,
        "path": f"journal.jsonl#{request.ask.key}",
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
