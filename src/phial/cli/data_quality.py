"""`phial data annotate`, `classifier` and `score`: labels from a model, a classifier from labels, scores from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phial.cli import console, options
from phial.cli.progress import progress
from phial.errors import ArgumentError, PhialError

if TYPE_CHECKING:
    from phial.data.annotate import Annotation
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
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Scored, as .jsonl[.gz|.zst].")],
    classifier: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What classifier wrote.", show_default="the one shipped with phial"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the quality score of every document; drops none."""
    from phial.data.labels import files_of, read_texts, write_texts
    from phial.data.quality_file import load_classifier, load_default

    if output.exists() and output in files_of(documents):
        raise ArgumentError(f"{output} is among the documents", "name another file")
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


def annotate(
    documents: Documents,
    answers: Annotated[Path, typer.Option("--answers", "-o", metavar="FILE", help="Labels; added to, never redone.")],
    model: options.Model = options.DEFAULT_MODEL,
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
    from phial.data import annotate as labelling
    from phial.data.labels import read_texts

    if sample < 1 or max_characters < 1:
        raise ArgumentError(f"--sample {sample} and --max-characters {max_characters} must be positive")
    rules = labelling.RUBRIC if rubric is None else rubric.read_text("utf-8")
    chosen = labelling.sample(read_texts(documents), sample, seed)
    with _judge(model, threads) as judge, progress("first document", len(chosen)) as show:
        try:
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
