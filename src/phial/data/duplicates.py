"""Which documents are duplicates of which, from the files of `signature_files`, in bounded memory.

Documents that share a band key are compared by their sketches, each with the first of them; those that are not like it
are compared with the first of the rest, and so on. Likeness is not transitive, so that a group of documents linked by
pairs is only where to look: within it the document first in order (source, then id) is kept, those like it are
dropped, and the first of what remains is kept next. A dropped document is therefore always like the kept one it names,
and the result depends on neither the order of arrival nor the number of workers.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phial.data.minhash import NO_WORDS, likeness
from phial.data.signature_files import Numbers, SignatureReader

EXACT, NEAR, SEMANTIC = "duplicate: exact", "duplicate: near", "duplicate: semantic"
_BYTES_A_KEY = 48  # a key, its document's number, the order of both and the sorted copies
_ROWS_AT_ONCE = 4096
_ROUNDS = 1000  # leaders a band key may have; documents left after so many are counted, see `Uncompared`


class Drop(NamedTuple):
    """A document that is dropped, and for which kept one."""

    number: int
    kept: int
    reason: str


class Uncompared(NamedTuple):
    """Documents of a band that met only the first _ROUNDS leaders of their key."""

    documents: int


def similar_pairs(
    files: SignatureReader, band: int, threshold: float, memory: int
) -> Iterator[NDArray[np.int64] | Uncompared]:
    """Pairs (first, other) of documents that share a key of this band and are as alike as the threshold.

    Args:
        band: 0 for the digest of the whole text, then the bands of MinHash from 1.
        memory: bytes for the keys held at once; the keys are read again for every part that fits.
    """
    parts = max(1, -(-2 * files.documents * _BYTES_A_KEY // memory))
    most = max(_ROWS_AT_ONCE, memory // (4 * files.row_bytes("sketches")))
    for part in range(parts):
        keys, numbers = _shared(*_keys_of(files, band, part, parts))
        bounds = np.append(np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1))), len(keys)).tolist()
        start = 0
        for end, following in zip(bounds[1:], [*bounds[2:], None], strict=False):
            if following is None or following - start > most:  # as many keys as fit
                yield from _pairs_of(files, band, threshold, keys[start:end], numbers[start:end], most)
                start = end


def _pairs_of(
    files: SignatureReader, band: int, threshold: float, keys: NDArray[np.uint64], numbers: Numbers, most: int
) -> Iterator[NDArray[np.int64] | Uncompared]:
    """The pairs among documents with their sorted keys; rows are read once where no more than `most`."""
    kind = "sketches" if band else "keys"
    held = files.rows(kind, numbers) if len(numbers) <= most else None

    def rows(places: Numbers) -> NDArray[np.uint16]:
        found: NDArray[np.uint16] = files.rows(kind, numbers[places]) if held is None else held[places]
        return found if band else found[:, :2]

    needed = threshold if band else 1.0
    places = np.arange(len(numbers))
    for _ in range(_ROUNDS):
        keys, places = _shared(keys, places)
        if not len(keys):
            return
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        leaders = np.repeat(places[starts], np.diff(starts, append=len(keys)))
        same = np.zeros(len(keys), np.bool_)
        for at in range(0, len(keys), _ROWS_AT_ONCE):
            part = slice(at, at + _ROWS_AT_ONCE)
            unique, where = np.unique(leaders[part], return_inverse=True)
            same[part] = (rows(unique)[where] == rows(places[part])).mean(axis=1) >= needed
        pairs = same & (leaders != places)
        yield np.stack([numbers[leaders[pairs]], numbers[places[pairs]]], axis=1)
        keys, places = keys[~same], places[~same]
    yield Uncompared(len(_shared(keys, places)[0]))


def _keys_of(files: SignatureReader, band: int, part: int, parts: int) -> tuple[NDArray[np.uint64], Numbers]:
    """The keys of a band whose high bits fall in this part, with their documents, in order."""
    column = band + 1 if band else 0
    keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for first, rows in files.chunks("keys"):
        values = rows[:, column]
        mine = (values >> np.uint64(32)) % np.uint64(parts) == part
        if band:
            mine &= values != NO_WORDS
        keys.append(values[mine])
        numbers.append(np.flatnonzero(mine) + first)
    return np.concatenate(keys), np.concatenate(numbers)


def _shared(keys: NDArray[np.uint64], numbers: Numbers) -> tuple[NDArray[np.uint64], Numbers]:
    """Those whose key another has too, sorted by key, then by number."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    equal = keys[1:] == keys[:-1]
    several = np.zeros(len(keys), np.bool_)
    several[1:] |= equal
    several[:-1] |= equal
    return keys[several], numbers[order[several]]


class Groups:
    """Documents linked by pairs: union-find over 8 bytes a document."""

    def __init__(self, documents: int) -> None:
        self._parents = array("q")
        self._parents.frombytes(np.arange(documents, dtype=np.int64).tobytes())

    def link(self, pairs: Numbers) -> None:
        """Puts each two that follow each other in one group."""
        parents = self._parents
        for a, b in pairs.reshape(-1, 2).tolist():
            while parents[a] != a:
                parents[a] = a = parents[parents[a]]
            while parents[b] != b:
                parents[b] = b = parents[parents[b]]
            if a < b:
                parents[b] = a
            elif b < a:
                parents[a] = b

    def __iter__(self) -> Iterator[Numbers]:
        """The groups of more than one, each sorted, by their first documents."""
        roots = np.frombuffer(self._parents, np.int64)
        while True:
            further = roots[roots]
            if (further == roots).all():
                break
            roots = further
        others = np.flatnonzero(roots != np.arange(len(roots)))
        firsts = np.unique(roots[others])
        members = np.concatenate([firsts, others])
        owners = np.concatenate([firsts, roots[others]])
        order = np.lexsort((members, owners))
        members, owners = members[order], owners[order]
        yield from np.split(members, np.flatnonzero(owners[1:] != owners[:-1]) + 1) if len(members) else ()


def drops_of_group(files: SignatureReader, group: Numbers, threshold: float) -> Iterator[Drop]:
    """Which documents of a group are dropped; memory: the names and rows of the group."""
    numbers = in_order(files, group)
    digests = files.rows("keys", numbers)[:, :2].copy()
    wordless = files.rows("keys", numbers)[:, 2] == NO_WORDS
    sketches = files.rows("sketches", numbers)

    def alike(first: int, rest: Numbers) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = (digests[rest] == digests[first]).all(axis=1)
        near = likeness(sketches[first], sketches[rest]) >= threshold
        return equal if wordless[first] else equal | near

    for kept, dropped in first_of_each(len(numbers), alike):
        reason = EXACT if (digests[kept] == digests[dropped]).all() else NEAR
        yield Drop(int(numbers[dropped]), int(numbers[kept]), reason)


def in_order(files: SignatureReader, numbers: Numbers) -> Numbers:
    """The documents sorted by (source, id), then by number."""
    return np.array([number for _, number in sorted((files.name(n), n) for n in numbers.tolist())], np.int64)


def first_of_each(count: int, alike: Callable[[int, Numbers], NDArray[np.bool_]]) -> Iterator[tuple[int, int]]:
    """Pairs (kept, dropped) of places: the first is kept, those like it are dropped, then the first of the rest."""
    rest = np.arange(count)
    while len(rest) > 1:
        first, rest = int(rest[0]), rest[1:]
        same = alike(first, rest)
        for place in rest[same].tolist():
            yield first, place
        rest = rest[~same]
