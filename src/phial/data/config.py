"""The configuration of a whole run: one TOML file, a table a stage; a key that is not known is an error.

    tasks = 8

    [[sources]]
    name = "books"
    paths = ["books/*.txt"]
    licence = "public domain"

    [dedup]
    threshold = 0.7

    [[decontaminate.benchmarks]]
    name = "gsm8k"
    files = ["benchmarks/gsm8k.jsonl.gz"]

Paths are relative to the file's folder. A stage without a table runs with its defaults; `skip = ["quality"]` leaves
stages out, and decontamination runs only where benchmarks are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from phial.data.decontaminate import DecontaminateConfig
from phial.data.dedup import DedupConfig
from phial.data.filters import CleanConfig
from phial.data.mixture import MixConfig
from phial.data.quality_steps import QualityConfig
from phial.data.sources import SourceConfig

StageName = Literal["clean", "dedup", "quality", "decontaminate", "mix"]


class SlurmConfig(BaseModel):
    """What Slurm is asked for; needed with `--executor slurm` alone, and not part of any stage's record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str = Field(min_length=1)
    time: str = Field(min_length=1, description="of a task, as sbatch takes it")
    qos: str = "normal"
    cpus_per_task: int = Field(1, ge=1)
    mem_per_cpu_gb: int = Field(2, ge=1)


class RunConfig(BaseModel):
    """All stages of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int = Field(8, ge=1, le=100_000, description="shares of the corpus; decides which document is in which file")
    skip: tuple[StageName, ...] = ()
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
    quality: QualityConfig = QualityConfig()
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    slurm: SlurmConfig | None = None
    mix: MixConfig | None = Field(None, description="token shards are made where there is this table")

    def beside(self, file: Path) -> RunConfig:
        """The same with every path taken from the folder of `file`; the sources' stay, they are shown as written."""
        words = self.clean.profanity_words
        benchmarks = tuple(
            b.model_copy(update={"files": tuple(str(file.parent / pattern) for pattern in b.files)})
            for b in self.decontaminate.benchmarks
        )
        return self.model_copy(
            update={
                "clean": self.clean.model_copy(update={"profanity_words": words and file.parent / words}),
                "quality": self.quality.beside(file),
                "decontaminate": self.decontaminate.model_copy(update={"benchmarks": benchmarks}),
                "mix": self.mix and self.mix.beside(file),
            }
        )
