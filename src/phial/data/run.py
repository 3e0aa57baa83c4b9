"""All stages of a corpus, one after the other: each reads what the one before kept, none is run twice."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from pydantic import BaseModel

from phial.config_file import read_config
from phial.data.config import RunConfig
from phial.data.decontaminate import decontaminate_stage
from phial.data.dedup import dedup_stage
from phial.data.filters import clean_inputs, clean_steps
from phial.data.mixing import mix
from phial.data.pipeline import Machines, Phase, digest_of, run_stage
from phial.data.report import write_report
from phial.data.sources import BadRecords, Sources, find_files
from phial.data.stage import StageReader
from phial.errors import ArgumentError, PhialError


class Run:
    """A run folder and the stage that was finished last.

    `written` is the configuration as it stands in the file, `config` the same with its paths beside the file: what a
    stage's record holds is the former, so that a folder that was moved is not run again.
    """

    def __init__(self, folder: Path, written: RunConfig, config: RunConfig, machines: Machines) -> None:
        self.folder, self.written, self.config, self.machines = folder, written, config, machines
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
    """Run the configuration in `path`, write the report; the contents of every stage.json.

    Raises:
        PhialError: the configuration or a source is not right, or a stage failed.
    """
    return run_stages(read_config(path, RunConfig), path, folder, workers=workers, executor=executor).results


def run_stages(written: RunConfig, path: Path, folder: Path, *, workers: int = 1, executor: str = "local") -> Run:
    """run_all() of a configuration that was read from `path` or stands for a file there."""
    if executor not in ("local", "ray", "slurm"):
        raise ArgumentError(f"executor is {executor!r}", "use local, ray or slurm")
    if workers < 1:
        raise ArgumentError(f"workers is {workers}", "use 1 or more")
    config = written.beside(path)
    if executor == "slurm" and config.slurm is None:
        raise PhialError(f"{path} has no [slurm] table", 'add [slurm] with partition = "..." and time = "04:00:00"')
    slurm = config.slurm.model_dump() if config.slurm else {}
    run = Run(folder, written, config, Machines(executor, workers, slurm))  # type: ignore[arg-type]
    _sources(run, path.parent)
    for name, stage in _STAGES.items():
        if name not in config.skip:
            stage(run)
    write_report(folder)
    return run


def _sources(run: Run, base: Path) -> None:
    files = find_files(run.config.sources, base)
    reader = Sources(run.config.sources, files)
    inputs = {file.shown: digest_of([file.path]) for file in files}
    settings = {"sources": [source.model_dump(mode="json") for source in run.config.sources]}
    run.stage(1, "sources", run.phase("read", [BadRecords()]), settings, reader, inputs)


def _clean(run: Run) -> None:
    config = run.config.clean
    run.stage(
        2, "clean", run.phase("clean", clean_steps(config)), _settings(run.written.clean), inputs=clean_inputs(config)
    )


def _dedup(run: Run) -> None:
    config, names = run.config.dedup, [source.name for source in run.config.sources]
    run.stage(
        3, "dedup", dedup_stage(config, run.folder / "03-dedup" / "work", run.config.tasks, names), _settings(config)
    )


def _quality(run: Run) -> None:
    step = run.config.quality.step()
    run.stage(4, "quality", run.phase("score", [step]), {"classifier": step.version()})


def _decontaminate(run: Run) -> None:
    config = run.config.decontaminate
    if not config.benchmarks:
        return
    files = [Path(name) for b in config.benchmarks for pattern in b.files for name in sorted(glob.glob(pattern))]
    phases = decontaminate_stage(config, run.folder / "05-decontaminate" / "work", run.config.tasks)
    run.stage(5, "decontaminate", phases, _settings(run.written.decontaminate), inputs={"benchmarks": digest_of(files)})


def _mix(run: Run) -> None:
    """Token shards; run.last stays the stage of documents. Runs on this machine, whatever the executor."""
    if run.config.mix is None:
        return
    assert run.last is not None
    plan = mix(run.last, run.config.mix, run.folder / "06-mix", workers=run.machines.workers)
    taken = sum(n for n, _ in plan.validation.values()) + sum(slot.documents for slot in plan.slots)
    unused = sum(n for n, _ in plan.unused.values())
    dropped = {"in no phase": unused} if unused else {}
    run.results.append(
        {"name": "mix", "documents_in": taken + unused, "kept": taken, "dropped": dropped, **plan.json()}
    )


def _settings(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json")


_STAGES: dict[str, Callable[[Run], None]] = {
    "clean": _clean,
    "dedup": _dedup,
    "quality": _quality,
    "decontaminate": _decontaminate,
    "mix": _mix,
}
