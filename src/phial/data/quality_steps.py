"""The classifier in a pipeline: `Score` writes metadata["quality"] of every document, `Threshold` decides much later.

Scores are stored, decisions are not: a threshold can be moved without reading the texts again, and what a higher
threshold keeps is always part of what a lower one keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import BaseModel, ConfigDict, Field

from phial.data.quality import MAX_SCORE, Classifier, Embed
from phial.data.quality_file import load_classifier, load_default
from phial.errors import PhialError

_BATCH = 512  # documents held at once
_BATCH_CHARACTERS = 8 << 20


class QualityConfig(BaseModel):
    """The quality stage.

    Attributes:
        classifier: a file of save_classifier; None is the one shipped with phial.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classifier: Path | None = Field(default=None, description="classifier file; default: the one shipped")

    def beside(self, file: Path) -> QualityConfig:
        """The same, the classifier's path being relative to the folder of `file`."""
        return self if self.classifier is None else QualityConfig(classifier=file.parent / self.classifier)

    def step(self) -> Score:
        """The stage's only step."""
        return Score(self.classifier)


class Score(PipelineStep):
    """Writes the score of every document into metadata["quality"] and drops none.

    Args:
        classifier: a classifier, its file, or None for the one shipped. A file is read where the step runs, so that
            the step itself travels to other machines as a path.
        embed: makes sentence embeddings, for a classifier trained with them.
    """

    name = "quality score"
    type = "🔢 - SCORE"

    def __init__(self, classifier: Classifier | Path | str | None = None, embed: Embed | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.embed = embed

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents in the same order, scored."""
        classifier = self._loaded()
        batch: list[Document] = []
        size = 0
        for document in data or ():
            batch.append(document)
            size += len(document.text)
            if len(batch) == _BATCH or size >= _BATCH_CHARACTERS:
                yield from self._scored(classifier, batch)
                batch, size = [], 0
        yield from self._scored(classifier, batch)

    def version(self) -> str:
        """The version of the classifier that will score."""
        return self._loaded().version

    def _loaded(self) -> Classifier:
        if isinstance(self.classifier, Classifier):
            return self.classifier
        return load_default() if self.classifier is None else load_classifier(Path(self.classifier))

    def _scored(self, classifier: Classifier, batch: list[Document]) -> list[Document]:
        if batch:
            with self.track_time("batch"):
                scores = classifier.scores([document.text for document in batch], self.embed)
            for document, score in zip(batch, scores, strict=True):
                document.metadata["quality"] = round(float(score), 4)
                document.metadata["quality_version"] = classifier.version
                self.stat_update("quality", value=float(score), unit="doc")
        return batch


class Threshold(BaseFilter):
    """Keeps documents whose stored score is at least `least`; a document without a score is an error.

    Args:
        least: 0 to 5, on the scale of metadata["quality"].
    """

    name = "quality threshold"

    def __init__(self, least: float) -> None:
        if not 0 <= least <= MAX_SCORE:
            raise PhialError(f"quality threshold {least:g} is not from 0 to {MAX_SCORE}", "3 keeps what teaches")
        super().__init__()
        self.least = least

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or (False, "quality_below_<least>").

        Raises:
            PhialError: the document was never scored.
        """
        score = doc.metadata.get("quality")
        if not isinstance(score, int | float) or score != score:
            raise PhialError(f"document {doc.id} has no quality score", "run: phial data score")
        return True if score >= self.least else (False, f"quality_below_{self.least:g}")
