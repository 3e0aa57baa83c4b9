"""All stages of a corpus, one after the other: each reads what the one before kept, none is run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from phial.data.config import RunConfig, read_config
from phial.data.dedup import dedup_stage
from phial.data.filters import clean_inputs, clean_steps
from phial.data.pipeline import Machines, Phase, digest_of, run_stage
from phial.data.sources import BadRecords, Sources, find_files
from phial.data.stage import StageReader
from phial.errors import ArgumentError


class Run:
    """A run folder and the stage that was finished last."""

    def __init__(self, folder: Path, config: RunConfig, machines: Machines) -> None:
        self.folder, self.config, self.machines = folder, config, machines
        self.results: list[dict[str, Any]] = []
        self.last: Path | None = None

    def stage(
        self,
        number: int,
        name: str,
        phases: list[Phase],
        settings: dict[str, Any],
        reader: PipelineStep | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        """Run one stage; without a reader it reads what the last one kept."""
        inputs = dict(inputs or {})
        if reader is None:
            assert self.last is not None
            reader = StageReader(self.last)
            inputs["documents"] = self.results[-1]["output_sha256"]
        folder = self.folder / f"{number:02}-{name}"
        config = {"tasks": self.config.tasks, **settings}
        result = run_stage(folder, name, phases, reader, inputs=inputs, config=config, machines=self.machines)
        self.results.append(result)
        self.last = folder

    def phase(self, name: str, steps: list[Any]) -> list[Phase]:
        """The one phase of a plain stage."""
        return [Phase(name, steps, self.config.tasks)]


def run_all(path: Path, folder: Path, *, workers: int = 1, executor: str = "local") -> list[dict[str, Any]]:
    """Run the configuration in `path`; the contents of every stage.json.

    Raises:
        PhialError: the configuration or a source is not right, or a stage failed.
    """
    if executor not in ("local", "ray", "slurm"):
        raise ArgumentError(f"executor is {executor!r}", "use local, ray or slurm")
    if workers < 1:
        raise ArgumentError(f"workers is {workers}", "use 1 or more")
    config = read_config(path, RunConfig)
    run = Run(folder, config, Machines(executor, workers))  # type: ignore[arg-type]
    _sources(run, path.parent)
    if "clean" not in config.skip:
        _clean(run, path.parent)
    if "dedup" not in config.skip:
        work = folder / "03-dedup" / "work"
        phases = dedup_stage(config.dedup, work, config.tasks, [source.name for source in config.sources])
        run.stage(3, "dedup", phases, config.dedup.model_dump(mode="json"))
    if "quality" not in config.skip:
        quality = config.quality.beside(path)
        score = quality.step()
        settings = config.quality.model_dump(mode="json")
        run.stage(4, "quality", run.phase("score", [score]), settings, inputs={"classifier": score.version()})
    return run.results


def _sources(run: Run, base: Path) -> None:
    files = find_files(run.config.sources, base)
    reader = Sources(run.config.sources, files)
    inputs = {file.shown: digest_of([file.path]) for file in files}
    settings = {"sources": [source.model_dump(mode="json") for source in run.config.sources]}
    run.stage(1, "sources", run.phase("read", [BadRecords()]), settings, reader, inputs)


def _clean(run: Run, base: Path) -> None:
    config = run.config.clean
    if config.profanity_words is not None:
        config = config.model_copy(update={"profanity_words": base / config.profanity_words})
    phases = run.phase("clean", clean_steps(config))
    run.stage(2, "clean", phases, run.config.clean.model_dump(mode="json"), inputs=clean_inputs(config))
