"""The classifier's file: one npz of plain arrays and a JSON header; nothing in it is ever executed.

A file is read whole and checked before anything trusts it: what it unpacks to is bounded, shapes and types must be
those the header promises, and the weights must hash to the version written there.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phial.data import ngrams
from phial.data.quality import MAX_SCORE, Classifier
from phial.errors import FormatError, PhialError

FORMAT = "phial-quality"
FORMAT_VERSION = 1
DEFAULT = "quality_default.npz"  # the classifier shipped beside this file
_LIMIT = 256 << 20  # bytes that a file may unpack to
_TYPES = {"tables": "int8", "scales": "float64", "bias": "float64", "curve": "float64", "projection": "float64"}


def load_default() -> Classifier:
    """The classifier shipped with the package; docs/models/quality-default.md says what it was made from."""
    return load_classifier(Path(__file__).with_name(DEFAULT))


def load_classifier(path: Path) -> Classifier:
    """A classifier that save_classifier wrote.

    Raises:
        FormatError: the file is damaged, too large, or of another version; the message says which.
        PhialError: there is no such file.
    """
    if not path.is_file():
        raise PhialError(f"no classifier at {path}", "train one with: phial data classifier")
    if path.stat().st_size > _LIMIT:
        raise FormatError(f"{path} has {path.stat().st_size} bytes, a classifier at most {_LIMIT}")
    return _read(path.read_bytes(), str(path))


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Writes the classifier, whole or not at all; the same classifier makes the same bytes."""
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ngrams_version": ngrams.VERSION,
        "version": classifier.version,
        "bits": classifier.bits,
        "classes": list(classifier.classes),
        "embedding": classifier.embedding,
        "about": classifier.about,
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    arrays: dict[str, NDArray[Any]] = {name: getattr(classifier, name) for name in _TYPES}
    stored = io.BytesIO()
    np.savez_compressed(stored, header=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(stored.getvalue())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(data: bytes, name: str) -> Classifier:
    hint = "the file is damaged or no classifier: copy or train it again"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LIMIT:
            raise FormatError(f"{name} unpacks to {size} bytes, a classifier to at most {_LIMIT}", hint)
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            arrays = {array: stored[array] for array in _TYPES}
        _check_format(header, name)
        classifier = Classifier(
            bits=header["bits"],
            classes=tuple(header["classes"]),
            embedding=header["embedding"],
            about=header["about"],
            **arrays,
        )
    except PhialError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser of headers raise a dozen kinds for a damaged byte
        raise FormatError(f"{name} cannot be read as a classifier: {error}", hint) from None
    if wrong := _wrong(classifier, header["version"]):
        raise FormatError(f"{name}: {wrong}", hint)
    return classifier


def _check_format(header: Any, name: str) -> None:
    """FormatError where the header is another format's or another version's."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FormatError(f"{name} is no quality classifier")
    for key, ours in (("format_version", FORMAT_VERSION), ("ngrams_version", ngrams.VERSION)):
        if header.get(key) != ours:
            raise FormatError(f"{name} has {key} {header.get(key)!r}, this phial reads {ours}", "train it again")


def _wrong(found: Classifier, version: Any) -> str:
    """What contradicts the header or the other arrays, or ""."""
    bits, classes, dimensions = found.bits, found.classes, found.projection.shape[0]
    if type(bits) is not int or not 4 <= bits <= 24:
        return f"bits is {bits!r}, not 4 to 24"
    if not classes or any(type(c) is not int or not 0 <= c <= MAX_SCORE for c in classes):
        return f"classes are {classes!r}, not scores from 0 to {MAX_SCORE}"
    if list(classes) != sorted(set(classes)):
        return f"classes {classes!r} do not rise"
    if type(found.embedding) is not str or bool(found.embedding) != bool(dimensions):
        return f"embedding {found.embedding!r} with {dimensions} dimensions"
    groups, knots = len(ngrams.GROUPS), found.curve.shape[-1]
    shapes = {
        "tables": (groups, 1 << bits, len(classes)),
        "scales": (groups,),
        "bias": (len(classes),),
        "curve": (2, knots),
        "projection": (dimensions, len(classes) if dimensions else 0),
    }
    for name, shape in shapes.items():
        array = getattr(found, name)
        if array.shape != shape or array.dtype.name != _TYPES[name]:
            return f"{name} is {array.dtype.name} {array.shape}, not {_TYPES[name]} {shape}"
        if not np.isfinite(array).all():
            return f"{name} holds numbers that are not finite"
    if knots < 2 or (np.diff(found.curve[0]) <= 0).any() or (np.diff(found.curve[1]) < 0).any():
        return "the calibration curve does not rise"
    return "" if found.version == version else f"the weights are of version {found.version}, the header of {version}"
