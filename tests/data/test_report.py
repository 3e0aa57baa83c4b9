"""The report of a run: its figures are the run's, its examples stand where they belong, documents stay mere text."""

from __future__ import annotations

import json
import random
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("datatrove", reason="phial[data] is not installed")

from phial.cli.data import data
from phial.data.document import Document, DocumentFile
from phial.data.report import write_report
from phial.data.report_charts import share, shown, size
from phial.data.report_counts import Groups, Samples, count_run, length_bin, threshold_bucket
from phial.data.stage import Counted, summary
from phial.errors import FormatError, PhialError
from phial.manifest import write_json

HOSTILE = '</pre></div><script>alert(1)</script><img src=x onerror="alert(2)"><a href="javascript:x">x</a>&lt;b&gt;'


def document(name: str, text: str = "A plain text of a few words.", **metadata: object) -> Document:
    return Document(text, name, metadata={"source": "web", "language": "en", **metadata})


def stage(folder: Path, kept: list[Document], dropped: dict[str, list[Document]], *, files: int = 1) -> None:
    """A finished stage's folder; each file's documents are every `files`-th."""
    for at in range(files):
        file, counted = DocumentFile(folder / "kept" / f"{at:05}.jsonl.zst"), Counted()
        for one in kept[at::files]:
            file.write(one)
            counted.add(one)
        file.close()
        counted.write(folder / "counts" / f"kept-{at:05}.json")
    if dropped:
        file, counted = DocumentFile(folder / "dropped" / "00000-00.jsonl.zst"), Counted()
        for reason, documents in dropped.items():
            for one in documents:
                one = Document(one.text, one.id, metadata=one.metadata | {"filter_reason": reason})
                file.write(one)
                counted.add(one, reason)
        file.close()
        counted.write(folder / "counts" / "dropped-00000-00.json")
    name = folder.name[3:]
    write_json(folder / "stage.json", {"name": name, **summary(folder), "seconds": 1.5, "config": {}})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Nine documents: one short, one German, one near duplicate, one with a question, five kept with scores."""
    scores = (0.4, 1.9, 2.1, 3.2, 4.6)
    kept = [document(f"k{n}", f"Kept {n}. " * 40, quality=score) for n, score in enumerate(scores)]
    copy = document("copy", "Kept 2, nearly. " * 30, duplicate_of="k2")
    leak = document("leak", "How many eggs? " * 9, quality=3.9, contaminated_by="gsm8k#7")
    rest = [*kept, leak]
    german = document("german", "Der Hund.", language="de")
    run = tmp_path / "run"
    stage(run / "01-sources", [*rest, copy, german, document("short", "Hi.")], {})
    stage(run / "02-clean", [*rest, copy], {"language: de": [german], "gopher: short": [document("short", "Hi.")]})
    stage(run / "03-dedup", rest, {"duplicate: near": [copy]})
    stage(run / "04-quality", rest, {})
    stage(run / "05-decontaminate", kept, {"contaminated: gsm8k": [leak]}, files=2)
    return run


class Page(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


def test_figures_are_those_of_the_run(run: Path) -> None:
    words = page_of(run).words
    assert "9documents came in" in words and "5left (55.6 %)" in words
    assert "1duplicates dropped" in words and "1with benchmark questions" in words
    assert "7 kept, −22.2 %" in words, "of the nine that came into clean"
    assert "web9100 %77.8 %66.7 %66.7 %55.6 %" in words


def test_every_document_is_counted_once(run: Path) -> None:
    counts = count_run(sorted(run.glob("0*")))
    assert counts.documents == 9
    assert [sum(counts.lengths[where].values()) for where in ("kept", "dropped")] == [5, 4]
    assert counts.languages == {"kept": Counter(en=5), "dropped": Counter(en=3, de=1)}
    assert counts.scores == {"web": Counter({2: 1, 9: 1, 10: 1, 16: 1, 19: 1, 23: 1})}
    assert counts.contaminated == Counter(gsm8k=1)


def test_examples_stand_on_the_right_side_of_their_threshold(run: Path) -> None:
    samples = count_run(sorted(run.glob("0*"))).samples

    def ids(threshold: float, above: bool) -> list[str]:
        return [example.id for example in samples.of(threshold_bucket(threshold, above))]

    assert (ids(2.0, True), ids(2.0, False)) == (["k2"], ["k1"])
    assert (ids(3.0, True), ids(3.0, False)) == (["k3"], [])
    assert (ids(4.0, True), ids(4.0, False)) == ([], ["leak"]), "4.6 is too far from 4 to show what 4 does"


def test_a_duplicate_is_shown_with_what_it_is_a_copy_of(run: Path) -> None:
    [pair] = count_run(sorted(run.glob("0*"))).pairs
    assert pair.duplicate.id == "copy" and pair.of is not None and pair.of.id == "k2"
    assert pair.of.text.startswith("Kept 2. ")


def test_a_copy_of_what_a_later_stage_dropped_is_shown_with_it(tmp_path: Path) -> None:
    first, copy = document("first", "One text."), document("copy", "One text!", duplicate_of="first")
    stage(tmp_path / "03-dedup", [first], {"duplicate: near": [copy]})
    stage(tmp_path / "05-decontaminate", [], {"contaminated: x": [first]})
    [pair] = count_run(sorted(tmp_path.glob("0*"))).pairs
    assert pair.of is not None and pair.of.text == "One text."


def test_hostile_documents_are_text(tmp_path: Path) -> None:
    bad = {"path": HOSTILE, "url": f"https://x/{HOSTILE}", "source": HOSTILE, "language": HOSTILE}
    one = document(HOSTILE, HOSTILE, **(bad | {"quality": 2.1}))
    twin = document("twin" + HOSTILE, HOSTILE, **(bad | {"duplicate_of": HOSTILE}))
    leak = document("leak" + HOSTILE, HOSTILE, **(bad | {"contaminated_by": HOSTILE}))
    folder = tmp_path / "01-decontaminate"
    stage(folder, [one], {f"duplicate: {HOSTILE}": [twin], f"contaminated: {HOSTILE}": [leak], HOSTILE: [leak]})
    page = page_of(tmp_path)
    assert not page.tags.keys() & {"script", "img", "iframe", "object", "link", "form", "base", "b0"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "srcset", "action"}]
    assert {value[0] for name, value in page.attributes if name == "href"} == {"#"}
    assert page.words.count("<script>alert(1)</script>") >= 8, "in the text, the id, the source, the reason, ..."
    assert "&lt;b&gt;" in page.words, "what was escaped in the document stays escaped"
    [policy] = [value for name, value in page.attributes if value.startswith("default-src")]
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_characters_that_hide_or_turn_text_are_named() -> None:
    assert shown("a\u202eb\x00c\ud800\x1b[31m\u2028") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+D800⟩⟨U+001B⟩[31m⟨U+2028⟩"
    assert shown("one\n\ttwo") == "one\n\ttwo"


def test_half_characters_do_not_stop_the_report(tmp_path: Path) -> None:
    stage(tmp_path / "01-sources", [], {"bad-record: x": [document("half", "a \ud83d b")]})
    assert "a ⟨U+D83D⟩ b" in page_of(tmp_path).words


def test_the_page_does_not_depend_on_order_or_files(tmp_path: Path) -> None:
    documents = [document(f"d{n}", f"Text {n}. " * (n % 17 + 1), quality=n % 50 / 10) for n in range(300)]
    pages = []
    for files, seed in ((1, 1), (3, 2)):
        random.Random(seed).shuffle(documents)
        folder = tmp_path / str(files) / "run" / "04-quality"
        stage(folder, documents[:], {}, files=files)
        pages.append(write_report(folder.parent).read_text("utf-8"))
    assert pages[0] == pages[1]


def test_examples_are_few_and_cut(tmp_path: Path) -> None:
    samples = Samples()
    for n in range(1000):
        samples.add("bucket", document(f"d{n}", "x" * 100_000))
        samples.add(f"other {n}", document(f"d{n}"))
    assert len(samples.of("bucket")) == 3 and {len(one.text) for one in samples.of("bucket")} == {600}
    assert samples.of("bucket")[0].length == 100_000
    assert len(samples.buckets()) <= 401, "and one for the reasons beyond"


def test_groups_of_duplicates_are_sampled_where_they_are_too_many() -> None:
    groups = Groups(most=256)
    for n in range(4096):
        for _ in range(n % 3 + 1):
            groups.add(f"document {n}")
    found = groups.sizes()
    assert sum(found.values()) <= 256 and groups.share < 1
    estimate = {members: n / groups.share for members, n in found.items()}
    assert sum(estimate.values()) == pytest.approx(4096, rel=0.25)
    assert set(estimate) == {2, 3, 4}


def test_tokens_of_a_phase_are_summed_by_source(run: Path) -> None:
    def row(low: float | None, tokens: int) -> dict[str, object]:
        own = {"source": "web", "min_quality": low, "max_quality": None, "unique_tokens": 100}
        return own | {"epochs": tokens / 100, "tokens": tokens}

    (run / "06-mix").mkdir()
    plan = {"phases": [{"name": "first", "sources": [row(None, 1000), row(3.0, 500)]}]}
    (run / "06-mix" / "plan.json").write_text(json.dumps(plan))
    words = page_of(run).words
    assert "1,500 tokens" in words and "3 to 5" in words and "10.00" in words
    (run / "06-mix" / "plan.json").write_text('{"phases": [{}]}')
    with pytest.raises(FormatError, match="no plan of a mixture"):
        write_report(run)


def test_mistakes_are_said(tmp_path: Path, run: Path) -> None:
    with pytest.raises(PhialError, match="there is no folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(PhialError, match="holds no finished stage"):
        write_report(tmp_path)
    (run / "02-clean" / "stage.json").write_text("{")
    with pytest.raises(FormatError, match="02-clean"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_damaged_file_of_documents_is_named_and_leaves_the_old_page(run: Path) -> None:
    before = write_report(run).read_bytes()
    file = run / "05-decontaminate" / "kept" / "00001.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FormatError, match="00001.jsonl.zst"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.partial"))


def test_the_command_prints_where_the_page_is(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["report", str(run)])
    assert result.exit_code == 0 and result.stdout == f"{run / 'report.html'}\n"
    other = tmp_path / "page.html"
    result = CliRunner().invoke(data, ["report", str(run), "-o", str(other), "--json"])
    assert json.loads(result.stdout) == {"report": str(other), "bytes": other.stat().st_size}


def test_numbers_read_as_people_write_them() -> None:
    assert [share(1, 3), share(1, 10**6), share(0, 5), share(5, 5), share(99999, 100000), share(1, 0)] == [
        "33.3 %", "< 0.1 %", "0 %", "100 %", "99.9 %", "",
    ]  # fmt: skip
    assert [size(999), size(12_345), size(5e12)] == ["999 B", "12.3 kB", "5.0 TB"]
    assert [length_bin(n) for n in (0, 1, 2, 3, 1024, 1449)] == [0, 0, 2, 3, 20, 21]
