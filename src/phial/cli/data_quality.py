"""`phial data classifier` and `score`: a classifier from labels, scores from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.data_stages import require_data, show_stages
from phial.cli.progress import progress
from phial.errors import ArgumentError

if TYPE_CHECKING:
    from phial.data.quality import Classifier
    from phial.data.quality_metrics import Report

Documents = Annotated[Path, typer.Argument(metavar="DOCUMENTS", help="A stage's folder, or a .jsonl[.gz|.zst] file.")]


def classifier(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="What annotate wrote, or lines of text and score.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The classifier, as .npz.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Kept in the file.")] = "quality",
    bits: Annotated[int, typer.Option(metavar="N", help="2^N buckets for each kind of n-gram.")] = 15,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides which labels are held out.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Train a quality classifier from labels, and report on labels it has not seen."""
    require_data()
    from phial.data.labels import read_labels
    from phial.data.quality_file import save_classifier
    from phial.data.quality_training import TrainingSettings, train_classifier

    if not 4 <= bits <= 24:
        raise ArgumentError(f"--bits {bits} is not from 4 to 24", "15 makes a file of a few hundred kilobytes")
    settings = TrainingSettings(bits=bits, seed=seed)
    found = read_labels(labels)
    with progress("reading n-grams", settings.iterations) as show:
        made, report = train_classifier(found, settings, {"name": name, "labels_from": labels.name}, show=show)
    save_classifier(made, output)
    if as_json:
        console.write_json({"file": str(output), "version": made.version, **made.about})
    else:
        _print_report(report)
    console.note(f"{output}: version {made.version}, {output.stat().st_size / 1e6:.2f} MB, {len(found)} labels")


def score(
    documents: Documents,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="The new stage's folder; of a file, another file.")
    ],
    classifier: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What classifier wrote.", show_default="the one shipped with phial"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", metavar="N", min=1, help="Tasks at a time.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Write the quality score of every document; drops none."""
    require_data()
    if documents.is_dir():
        _score_stage(documents, output, classifier, workers, as_json)
    else:
        _score_file(documents, output, classifier, as_json)


def _score_stage(folder: Path, output: Path, classifier: Path | None, workers: int, as_json: bool) -> None:
    """A stage's folder into a new one, by datatrove."""
    from phial.data.pipeline import Machines, Phase, digest_of, run_stage
    from phial.data.quality_steps import Score
    from phial.data.stage import StageReader, kept_files

    files, step = kept_files(folder), Score(classifier)
    result = run_stage(
        output,
        "quality",
        [Phase("score", [step], len(files))],
        StageReader(folder),
        inputs={"documents": digest_of(files), "classifier": step.version()},
        config={"classifier": None if classifier is None else str(classifier)},
        machines=Machines(workers=workers),
    )
    if as_json:
        console.write_json(result)
    else:
        show_stages([result])


def _score_file(documents: Path, output: Path, classifier: Path | None, as_json: bool) -> None:
    from phial.data.labels import read_texts, write_texts
    from phial.data.quality_file import load_classifier, load_default

    if output.exists() and output.samefile(documents):
        raise ArgumentError(f"{output} is where the documents are", "name another file")
    found = load_default() if classifier is None else load_classifier(classifier)
    histogram = [0] * 11

    def counted() -> Any:
        for document in _scored(found, read_texts(documents)):
            histogram[int(document.metadata["quality"] * 2)] += 1
            yield document

    count = write_texts(counted(), output)
    rows = [(number / 2, n) for number, n in enumerate(histogram)]
    if as_json:
        shown = [{"from": low, "documents": n} for low, n in rows]
        console.write_json({"file": str(output), "documents": count, "classifier": found.version, "scores": shown})
        return
    console.write_table(["SCORE FROM", "DOCUMENTS"], [[f"{low:.1f}", str(n)] for low, n in rows], right=["DOCUMENTS"])
    console.note(f"{output}: {count} documents scored by classifier {found.version}")


def _scored(found: Classifier, texts: Any) -> Any:
    from datatrove.data import Document

    from phial.data.quality_steps import Score

    return Score(found).run(Document(text.text, text.id, metadata=text.metadata) for text in texts)


def _print_report(report: Report) -> None:
    rows = [
        ["held-out labels", str(report.count)],
        ["F1 at 3", f"{report.f1:.3f}"],
        ["precision, recall", f"{report.precision:.3f}, {report.recall:.3f}"],
        ["mean error", f"{report.mean_error:.3f}"],
        ["calibration error", f"{report.calibration_error:.3f}"],
        ["Spearman", f"{report.spearman:.3f}"],
        ["quadratic kappa", f"{report.kappa:.3f}"],
        *([f"F1 of label {label}", f"{f1:.3f}"] for label, f1 in report.f1_by_label.items()),
    ]
    console.write_table(["MEASURE", "VALUE"], rows, right=["VALUE"])
    bins = [[f"{r.low:.1f}-{r.high:.1f}", str(r.texts), f"{r.score:.2f}", f"{r.label:.2f}"] for r in report.reliability]
    heads = ["SCORES", "TEXTS", "MEAN SCORE", "MEAN LABEL"]
    console.write_table(heads, bins, right=heads[1:])
