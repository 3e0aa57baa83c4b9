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

import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phial.data.decontaminate import DecontaminateConfig
from phial.data.dedup import DedupConfig
from phial.data.filters import CleanConfig
from phial.data.mixture import MixConfig
from phial.data.quality_steps import QualityConfig
from phial.data.sources import SourceConfig
from phial.errors import PhialError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)
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


def read_config(path: Path, kind: type[Model]) -> Model:
    """Read a TOML file. Raises PhialError with the key where it is not right."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise PhialError(f"there is no {path}", "name a TOML file; docs/concepts/data.md has one") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PhialError(f"{path} is no TOML file: {error}", "see docs/concepts/data.md for an example") from error
    return checked(kind, table, str(path))


def checked(kind: type[Model], table: dict[str, Any], where: str) -> Model:
    """A configuration from a table. Raises PhialError with the first key that is wrong."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        value = "" if first["type"] in ("missing", "extra_forbidden") else f" ({first.get('input')!r})"
        what = "is not known" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise PhialError(f"{where}: {key}{value}: {what}", _hint(kind, first["loc"])) from error


def _hint(kind: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """The keys there are, at the level of the one that is wrong."""
    model: Any = kind
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return "keys: " + ", ".join(model.model_fields)
