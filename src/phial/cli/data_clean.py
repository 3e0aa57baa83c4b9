"""`phial data clean`: files, or a stage's documents, as readable text in the wanted languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options

if TYPE_CHECKING:
    from phial.data.filters import CleanConfig

Inputs = Annotated[
    list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs; or the folder of one finished stage.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The new stage's folder.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML file with the keys of CleanConfig.")
]
Languages = Annotated[
    str | None,
    typer.Option("--language", "-l", metavar="A,B,...", help="ISO codes to keep; all for every language."),
]
Secrets = Annotated[str | None, typer.Option(metavar="HOW", help="mask, drop or keep keys and passwords.")]
Source = Annotated[str, typer.Option(metavar="NAME", help="What the documents' source is called.")]
Licence = Annotated[str, typer.Option(metavar="SPDX", help="The documents' licence.")]
Tasks = Annotated[int, typer.Option(metavar="N", min=1, help="Shares the files are cut into; decides the output.")]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Tasks at a time.")]


def clean(
    inputs: Inputs,
    output: Output,
    config: Config = None,
    language: Languages = None,
    secrets: Secrets = None,
    source: Source = "files",
    licence: Licence = "unknown",
    tasks: Tasks = 8,
    workers: Workers = 1,
    as_json: options.Json = False,
) -> None:
    """Turn pages and text into clean documents; mask private data; drop by named reasons, readable in dropped/."""
    from phial.cli.data_stages import require_data, show_stages

    require_data()
    from phial.data.filters import clean_inputs, clean_steps
    from phial.data.pipeline import Machines, Phase, run_stage

    settings = _settings(config, language, secrets)
    reader, first, tasks, digests = _reader(inputs, source, licence, tasks)
    result = run_stage(
        output,
        "clean",
        [Phase("clean", [*first, *clean_steps(settings)], tasks)],
        reader,
        inputs=digests | clean_inputs(settings),
        config={"tasks": tasks, "source": source, "licence": licence, **settings.model_dump(mode="json")},
        machines=Machines(workers=workers),
    )
    if as_json:
        console.write_json(result)
    else:
        show_stages([result])


def _settings(path: Path | None, language: str | None, secrets: str | None) -> CleanConfig:
    """The file's settings, changed by the flags that were given."""
    from phial.config_file import checked, read_config
    from phial.data.filters import CleanConfig

    settings = CleanConfig() if path is None else read_config(path, CleanConfig)
    table = settings.model_dump()
    if path is not None and settings.profanity_words is not None:
        table["profanity_words"] = path.parent / settings.profanity_words
    if language is not None:
        table["languages"] = () if language == "all" else tuple(code.strip() for code in language.split(","))
    if secrets is not None:
        table["secrets"] = secrets
    return checked(CleanConfig, table, "phial data clean")


def _reader(inputs: Sequence[str], source: str, licence: str, tasks: int) -> tuple[Any, list[Any], int, dict[str, str]]:
    """The reader, the steps before the clean ones, the number of tasks and what goes in, by digest.

    A stage keeps its number of tasks, so that a document stays in the file of the same number.
    """
    from phial.data.pipeline import digest_of
    from phial.data.sources import BadRecords, SourceConfig, Sources, find_files
    from phial.data.stage import STAGE, StageReader, kept_files

    if len(inputs) == 1 and (Path(inputs[0]) / STAGE).exists():
        folder = Path(inputs[0])
        files = kept_files(folder)
        return StageReader(folder), [], len(files), {"documents": digest_of(files)}
    sources = [SourceConfig(name=source, paths=tuple(inputs), licence=licence)]
    found = find_files(sources, Path.cwd())
    digests = {file.shown: digest_of([file.path]) for file in found}
    return Sources(sources, found), [BadRecords()], tasks, digests
