"""`phial data annotate`: a language model reads a sample of documents and gives each 0 to 5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phial.cli import console, loading, options
from phial.cli.data_quality import Documents
from phial.cli.data_stages import require_data
from phial.cli.progress import progress
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    from phial.data.annotate import Annotation

Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="As in phial run, or https://host/v1#model (PHIAL_API_KEY)."),
]


def annotate(
    documents: Documents,
    answers: Annotated[Path, typer.Option("--answers", "-o", metavar="FILE", help="Labels; added to, never redone.")],
    model: Model = options.DEFAULT_MODEL,
    sample: Annotated[int, typer.Option("--sample", "-n", metavar="N", help="How many documents to label.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides which.")] = 0,
    rubric: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own instructions.", show_default="educational value")
    ] = None,
    max_characters: Annotated[int, typer.Option(metavar="N", help="Of a longer text show only so much.")] = 4000,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Let a language model give a sample of documents 0 to 5 for educational value."""
    if sample < 1 or max_characters < 1:
        raise ArgumentError(f"--sample {sample} and --max-characters {max_characters} must be positive")
    require_data()
    from phial.data import annotate as labelling
    from phial.data.labels import read_texts

    rules = labelling.RUBRIC if rubric is None else rubric.read_text("utf-8")
    chosen = labelling.sample(read_texts(documents), sample, seed)
    try:
        with loading.language_model(model, threads) as judge, progress("first document", len(chosen)) as show:
            done = labelling.annotate(chosen, judge, answers, rubric=rules, max_characters=max_characters, show=show)
    except KeyboardInterrupt:
        console.note(f"stopped; the same command goes on from {answers}")
        raise
    _print_annotation(done, answers, as_json)


def _print_annotation(done: Annotation, answers: Path, as_json: bool) -> None:
    counts = [sum(label.score == value for label in done.labels) for value in range(6)]
    if as_json:
        spent = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens}
        rest = {"cached": done.cached, "failed": len(done.failed), "shown_in_part": done.excerpted, **spent}
        console.write_json({"file": str(answers), "labels": {str(v): n for v, n in enumerate(counts)}, **rest})
    else:
        rows = [[str(value), str(count)] for value, count in enumerate(counts)]
        console.write_table(["SCORE", "DOCUMENTS"], rows, right=["DOCUMENTS"])
    console.note(f"{answers}: {len(done.labels)} labels, {done.cached} of them known before, {len(done.failed)} failed")
    if not done.labels and done.failed:
        raise PhialError(f"no document was labelled: {done.failed[0][1]}", f"look into {answers}.failed")
