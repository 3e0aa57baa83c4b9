"""Sources: seven formats with licence and provenance; bad records set aside; each record read by one task."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from phial.data.document import Document, read_documents
from phial.data.pipeline import Phase, run_stage
from phial.data.sources import BadRecords, SourceConfig, Sources, find_files
from phial.data.stage import dropped_files, kept_files
from phial.errors import PhialError

ROWS = [{"text": f"record {i} é", "url": f"https://example.org/{i}", "year": 1900 + i} for i in range(7)]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def source(*paths: str, name: str = "made up", **others: Any) -> SourceConfig:
    return SourceConfig(name=name, paths=paths, licence="CC0-1.0", **others)


def read(base: Path, *sources: SourceConfig, tasks: int = 1) -> tuple[list[Document], list[Document]]:
    """Kept and set aside, by a stage of `tasks` tasks in base's neighbour folder."""
    folder = base.parent / f"stage-{tasks}"
    files = find_files(sources, base)
    phase = Phase("read", [BadRecords()], tasks)
    run_stage(folder, "sources", [phase], Sources(sources, files), inputs={}, config={})
    kept = [document for path in kept_files(folder) for document in read_documents(path)]
    return kept, [document for path in dropped_files(folder) for document in read_documents(path)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def warc(pages: list[tuple[str, str, str, bytes]], gzipped: bool = True) -> bytes:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=gzipped)
    for url, status, kind, body in pages:
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers))
    return file.getvalue()


def test_every_format_gives_text_licence_and_provenance(base: Path) -> None:
    (base / "a.txt").write_bytes("one é".encode())
    (base / "b.md").write_bytes(b"\xef\xbb\xbf# two")
    (base / "c.html").write_bytes(b"<p>three</p>")
    (base / "d.jsonl").write_bytes(jsonl(ROWS[:1]))
    (base / "e.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[1:2])))
    (base / "f.jsonl.zst").write_bytes(compressed(jsonl(ROWS[2:3])))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[3:4]), base / "g.parquet")
    (base / "h.warc.gz").write_bytes(warc([("https://example.org/h", "200 OK", "text/html", b"<p>eight</p>")]))
    (base / "picture.png").write_bytes(b"\x89PNG")
    kept, dropped = read(base, source("."))
    assert [(d.metadata["path"], d.text) for d in kept] == [
        ("a.txt#0", "one é"),
        ("b.md#0", "# two"),
        ("c.html#0", "<p>three</p>"),
        ("d.jsonl#0", "record 0 é"),
        ("e.jsonl.gz#0", "record 1 é"),
        ("f.jsonl.zst#0", "record 2 é"),
        ("g.parquet#0", "record 3 é"),
        ("h.warc.gz#0", "<p>eight</p>"),
    ]
    assert {(d.metadata["source"], d.metadata["licence"]) for d in kept} == {("made up", "CC0-1.0")}
    assert [d.metadata.get("url") for d in kept[3:]] == [f"https://example.org/{i}" for i in (0, 1, 2, 3, "h")]
    assert [d.metadata.get("year") for d in kept[3:7]] == [1900, 1901, 1902, 1903]
    assert [d.metadata.get("html") for d in kept] == [None, None, True, None, None, None, None, True]
    assert len({d.id for d in kept}) == 8 and not dropped


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_each_record_is_read_by_one_task_whatever_their_number(base: Path, tasks: int) -> None:
    for i in range(5):
        (base / f"{i}.txt").write_text(f"file {i}")
    (base / "rows.jsonl").write_bytes(jsonl(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), base / "rows.parquet")
    (base / "cut.jsonl.zst").write_bytes(compressed(jsonl(ROWS * 400))[:-40])
    one, many = read(base, source(".")), read(base, source("."), tasks=tasks)
    for a, b in zip(one, many, strict=True):
        assert sorted((d.id, d.text) for d in a) == sorted((d.id, d.text) for d in b)
    assert [d.metadata["filter_reason"] for d in many[1]] == ["bad-record: unreadable file"]


def test_bad_records_are_set_aside_with_what_was_found_and_the_rest_is_read(base: Path) -> None:
    lines = [jsonl(ROWS[:1]), b'{"text": "half a li\n', b"[1, 2]\n", b'{"txt": "other"}\n', b'{"text": ""}\n']
    lines += [b'{"text": "\\ud83d"}\n', b'{"text": "ab\xff"}\n', b"\n", jsonl(ROWS[1:2])]
    (base / "rows.jsonl").write_bytes(b"".join(lines))
    (base / "image.txt").write_bytes(b"\x00\x01\x02")
    kept, dropped = read(base, source("."))
    assert [d.text for d in kept] == ["record 0 é", "record 1 é"]
    assert {d.metadata["path"]: (d.metadata["filter_reason"], d.text) for d in dropped} == {
        "image.txt#0": ("bad-record: binary", "\x00\x01\x02"),
        "rows.jsonl#1": ("bad-record: not JSON", '{"text": "half a li\n'),
        "rows.jsonl#2": ("bad-record: no object", "[1, 2]\n"),
        "rows.jsonl#3": ("bad-record: no text in text", '{"txt": "other"}\n'),
        "rows.jsonl#4": ("bad-record: empty", ""),
        "rows.jsonl#5": ("bad-record: half a surrogate pair", "\ud83d"),
        "rows.jsonl#6": ("bad-record: not JSON", '{"text": "ab\ufffd"}\n'),
    }


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12]),
        ("flipped.jsonl.gz", gzip.compress(jsonl(ROWS))[:30] + b"\xff" * 8 + gzip.compress(jsonl(ROWS))[38:]),
        ("no.jsonl.gz", b"plain"),
        ("cut.jsonl.zst", compressed(jsonl(ROWS))[:-4]),
        ("no.jsonl.zst", b"plain text"),
        ("no.parquet", b"plain text"),
        ("no.warc", b"nonsense\nof all kinds\n"),
    ],
)
def test_a_damaged_file_is_one_bad_record_and_others_are_read(base: Path, name: str, data: bytes) -> None:
    (base / name).write_bytes(data)
    (base / "z.txt").write_text("whole")
    kept, dropped = read(base, source("."))
    assert kept[-1].text == "whole"
    assert [d.metadata["filter_reason"] for d in dropped] == ["bad-record: unreadable file"]
    assert dropped[0].text and dropped[0].metadata["path"].startswith(name)


def test_files_of_several_frames_are_read_to_their_end(base: Path) -> None:
    (base / "a.jsonl.zst").write_bytes(b"".join(compressed(jsonl([row])) for row in ROWS))
    (base / "b.jsonl.gz").write_bytes(b"".join(gzip.compress(jsonl([row])) for row in ROWS))
    kept, dropped = read(base, source("."))
    assert [d.text for d in kept] == [row["text"] for row in ROWS] * 2 and not dropped


def test_parquet_strings_that_are_no_utf8_are_bad_records(base: Path) -> None:
    raw = pyarrow.array([b"good", b"b\xe9d"], pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), base / "a.parquet")
    kept, dropped = read(base, source("."))
    assert [d.text for d in kept] == ["good"]
    assert [(d.text, d.metadata["filter_reason"]) for d in dropped] == [("b\ufffdd", "bad-record: not UTF-8")]


def test_warc_responses_without_text_are_set_aside_by_status_and_type(base: Path) -> None:
    pages = [
        ("https://example.org/1", "200 OK", "text/html; charset=utf-8", b"<p>page</p>"),
        ("https://example.org/2", "404 Not Found", "text/html", b"<p>gone</p>"),
        ("https://example.org/3", "200 OK", "image/png", b"\x89PNG"),
        ("https://example.org/4", "200 OK", "text/plain", b"plain"),
    ]
    whole = warc(pages, gzipped=False)
    (base / "a.warc").write_bytes(whole)
    kept, dropped = read(base, source("."))
    assert [(d.metadata["url"], d.text) for d in kept] == [(pages[0][0], "<p>page</p>"), (pages[3][0], "plain")]
    assert [d.metadata["filter_reason"] for d in dropped] == [
        "bad-record: status 404",
        "bad-record: content type image/png",
    ]
    assert all(d.metadata["date"].startswith("20") for d in kept)


def test_a_cut_warc_record_is_not_taken_for_a_whole_one(base: Path) -> None:
    page = ("https://example.org/1", "200 OK", "text/html", b"<p>" + b"long " * 1000)
    (base / "a.warc").write_bytes(warc([page], gzipped=False)[:-3000])
    kept, dropped = read(base, source("."))
    assert not kept and [d.metadata["filter_reason"] for d in dropped] == ["bad-record: cut short"]
    assert dropped[0].text.startswith("<p>long long")


def test_folders_globs_and_single_files_in_a_defined_order(base: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/3.md", "other.dat"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    sources = [source("b", "a/*.md", name="one"), source("other.dat", name="two", format="txt")]
    files = find_files(sources, base)
    assert [(f.shown, f.format, f.source) for f in files] == [
        ("b/2.txt", "txt", 0),
        ("a/3.md", "md", 0),
        ("other.dat", "txt", 1),
    ]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([source("none/*.txt")], "none/.*has no files"),
        ([source("x.dat")], "x.dat is of no known format"),
        ([source("x.dat", format="pdf")], "no known format .pdf"),
        ([source("x.dat"), source("x.dat")], "two sources are called made up"),
        ([source("hf:only")], "names no data set"),
    ],
)
def test_mistakes_are_named(base: Path, sources: list[SourceConfig], said: str) -> None:
    (base / "x.dat").write_text("x")
    with pytest.raises(PhialError, match=said):
        find_files(sources, base)


@pytest.fixture
def hub(base: Path) -> Iterator[str]:
    """A hub with the data set acme/tiny: one jsonl file and a README."""
    files = {"data/part.jsonl": jsonl(ROWS[:2]), "README.md": b"# about"}
    listed = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    commit = "a" * 40

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.partition(f"/resolve/{commit}/")[2]
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
            if path.startswith("/api/datasets/acme/tiny/tree"):
                body = json.dumps(tree).encode()
            elif path.startswith("/api/datasets/acme/tiny"):
                body = json.dumps({"id": "acme/tiny", "sha": commit, "siblings": listed}).encode()
            else:
                body = files.get(name, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body):040x}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_data_sets_of_a_hub(base: Path, hub: str) -> None:
    """In a process of its own: the hub's address is read when its library is imported."""
    code = (
        "import sys; from pathlib import Path; from tests.data.test_sources import find_files, read, source;"
        "kept, _ = read(Path(sys.argv[1]), source('hf:acme/tiny/data/*'));"
        "print([(d.text, d.metadata['path'], d.metadata['licence']) for d in kept])"
        "\ntry: find_files([source('hf:acme/none')], Path('.'))"
        "\nexcept Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(base / "cache"), "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    documents, _, error = done.stdout.strip().partition("\n")
    path = "hf:acme/tiny/data/*/part.jsonl#"
    assert documents == str([(f"record {i} é", f"{path}{i}", "CC0-1.0") for i in range(2)]), done.stderr
    assert error.startswith("PhialError hf:acme/none: ")
