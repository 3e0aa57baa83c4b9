"""What a model name means: the catalogue's names, `hf:owner/repo/file.gguf[@revision]`, and the names we refuse.

The catalogue is the data file beside this one. Every name and digest that can end up in a path or is compared with a
download passes the two checks at the end, whether it comes from the user, the catalogue or a server.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phial.errors import PhialError

DEFAULT_MODEL = "smollm2-135m"
HF_FORM = "hf:owner/repo/file.gguf or hf:owner/repo/file.gguf@revision"


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository."""

    repo: str
    file: str
    revision: str = "main"
    kind: str = "hf"

    def __str__(self) -> str:
        return f"hf:{self.repo}/{self.file}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel on the package index."""

    project: str
    version: str
    member: str
    kind: str = "pypi"

    def __str__(self) -> str:
        return f"pypi:{self.project}=={self.version}/{self.member}"


@dataclass(frozen=True)
class Model:
    """One file that can be pulled.

    Attributes:
        name: what the user calls it, the store's key: `phi-3-mini-4k`, `phi-3-mini-4k:fp16` or `hf:...`.
        folder: the folder in the store, checked components joined by "/".
        file: the file name in that folder, one component.
        size: bytes, or None where only the hub knows.
        sha256: 64 hexadecimal digits, or None where only the hub knows.
        sources: where to get it, tried in this order.
    """

    name: str
    folder: str
    file: str
    size: int | None
    sha256: str | None
    licence: str
    sources: tuple[HubFile | WheelMember, ...]


def find(spec: str) -> Model:
    """The model that a catalogue name or an `hf:` specification means.

    Raises:
        PhialError: an unknown name (with the nearest known ones), a malformed or unsafe specification.
    """
    return _from_hub(spec) if spec.startswith("hf:") else _from_catalogue(spec)


def names() -> list[str]:
    """Every catalogue name; a model's default file goes by the bare name, the others by `name:variant`."""
    return list(_catalogue())


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint that names the nearest known names, or `otherwise` where none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else otherwise


def _from_catalogue(spec: str) -> Model:
    known = _catalogue()
    model = known.get(spec.lower())
    if model is None:
        choices = f"known models: {', '.join(known)}; or {HF_FORM}; or the path of a .gguf file"
        raise PhialError(f"unknown model {spec!r}", did_you_mean(spec, known, choices))
    return model


def _from_hub(spec: str) -> Model:
    path, _, revision = spec[len("hf:") :].partition("@")
    owner, _, rest = path.partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file) or spec.endswith("@"):
        raise PhialError(f"incomplete specification {spec!r}", f"write {HF_FORM}")
    for part in (owner, repo, revision or "main"):
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*", part, re.ASCII):
            raise PhialError(f"{part!r} in {spec!r} is no repository or revision name", f"write {HF_FORM}")
    if not file.lower().endswith(".gguf"):
        raise PhialError(f"{file!r} is not a .gguf file", f"only GGUF files can be run: {HF_FORM}")
    # No component of a revision holds "%", so the folder says which revision it was.
    pinned = f"{repo}@{revision.replace('/', '%2F')}" if revision else repo
    components = ["hf", owner, pinned, *file.split("/")]
    for component in (repo, *components, *(revision or "main").split("/")):
        check_file_name(component, what=f"name in {spec!r}")
    source = HubFile(f"{owner}/{repo}", file, revision or "main")
    return Model(spec, "/".join(components[:-1]), components[-1], None, None, "see the repository", (source,))


@functools.cache
def _catalogue() -> dict[str, Model]:
    """Catalogue name -> model, the data file read once and checked as strictly as a server's answer."""
    entries: dict[str, Any] = json.loads(Path(__file__).with_name("catalogue.json").read_text("utf-8"))
    models: dict[str, Model] = {}
    for name, entry in entries.items():
        for variant, file in entry["files"].items():
            key = name if variant == entry["default"] else f"{name}:{variant}"
            models[key] = Model(
                name=key,
                folder=check_file_name(name, what="catalogue name"),
                file=check_file_name(file["file"], what="catalogue file"),
                size=file["size"],
                sha256=file["sha256"] and check_sha256(file["sha256"], what=key),
                licence=entry["licence"],
                sources=tuple(_source(source) for source in file["sources"]),
            )
    return models


def _source(entry: dict[str, str]) -> HubFile | WheelMember:
    return HubFile(**entry) if entry["kind"] == "hf" else WheelMember(**entry)


def check_file_name(name: str, *, what: str) -> str:
    r"""`name` itself, if it is one plain path component on every system we run on.

    Raises:
        PhialError: it is empty or too long, is `.` or `..`, holds a slash, a backslash, a colon (drive letters,
            streams), a control character, or is one of Windows' device names.
    """
    stem = name.split(".")[0].upper()
    device = stem in {"CON", "PRN", "AUX", "NUL"} or re.fullmatch(r"(COM|LPT)[0-9]", stem)
    plain = re.fullmatch(r'[^\x00-\x1f\x7f/\\:*?"<>|]+', name)
    if not plain or device or name[-1] in ". " or len(name.encode("utf-8", "replace")) > 200:
        raise PhialError(
            f"unsafe {what}: {name!r}", "a name is one path component: no slash, `..`, drive or control character"
        )
    return name


def check_sha256(digest: str, *, what: str) -> str:
    """`digest` in lower case, if it is 64 hexadecimal digits. Raises PhialError otherwise."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise PhialError(f"{what}: {digest[:80]!r} is no sha256", "64 hexadecimal digits are expected")
    return digest.lower()
