"""The mixture: phases apart, proportions and epochs as asked for, the same bytes for any number of workers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phial.config_file import checked
from phial.data.document import Document, DocumentFile
from phial.data.mixing import mix
from phial.data.mixture import MixConfig
from phial.data.shards import ShardReader, document_key
from phial.data.vocabulary import write_vocabulary
from phial.errors import PhialError

WORDS = "the small model read a textbook about rivers and answered every question of the knight".split()


def documents() -> list[Document]:
    """400 pages and 60 notes of 10 to 40 words; scores 0 to 4.9, the notes synthetic and unscored."""
    made = []
    for number in range(460):
        text = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(10 + number % 31)) + f" {number}"
        if number < 400:
            metadata: dict[str, Any] = {"source": "web", "quality": number % 50 / 10}
        else:
            metadata = {"source": "notes", "synthetic": True}
        made.append(Document(text, f"d{number}", metadata=metadata))
    return made


def write_stage(folder: Path, made: list[Document], n_files: int = 4) -> Path:
    for place in range(n_files):
        file = DocumentFile(folder / "kept" / f"{place:05}.jsonl.zst")
        for document in made[place::n_files]:
            file.write(document)
        file.close()
    (folder / "stage.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    write_vocabulary([document.text for document in documents()], 300, folder)
    return str(folder)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stage(tmp_path_factory.mktemp("stage"), documents())


@pytest.fixture
def config(vocabulary: str) -> Callable[..., MixConfig]:
    def make(**changes: Any) -> MixConfig:
        phases = [
            {"name": "one", "tokens": 12_000, "sources": [{"source": "web", "min_quality": 1.0}]},
            {
                "name": "two",
                "tokens": 8_000,
                "sources": [
                    {"source": "web", "min_quality": 3.0, "weight": 1},
                    {"source": "notes", "weight": 1},
                ],
            },
        ]
        table = {"tokenizer": vocabulary, "seed": 7, "validation": 0.05, "shard_tokens": 3000, "phases": phases}
        return checked(MixConfig, {**table, **changes}, "the test")

    return make


def keys_of(folder: Path) -> list[int]:
    reader = ShardReader(folder, verify=True)
    return [reader.key(number) for number in range(reader.n_documents)]


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_phases_and_validation_share_no_document(stage: Path, config: Callable[..., MixConfig], tmp_path: Path) -> None:
    plan = mix(stage, config(), tmp_path)
    one, two, held = (set(keys_of(tmp_path / name)) for name in ("one", "two", "validation"))
    assert min(len(one), len(two), len(held)) > 10
    assert one.isdisjoint(two)
    assert held.isdisjoint(one | two)
    scores = {document_key(d.id): d.metadata.get("quality") for d in documents()}
    assert all(scores[key] >= 1 for key in one)
    assert all(scores[key] is None or scores[key] >= 3 for key in two)
    assert {s["source"] for s in ShardReader(tmp_path / "validation").index["shards"]} == {"web", "notes"}
    low = sum(1 for score in scores.values() if score is not None and score < 1)
    assert plan.unused["web"][0] == low == 80


def test_the_shards_hold_what_the_plan_says_and_every_document_as_it_was_written(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path, vocabulary: str
) -> None:
    from phial.gguf.open_tokenizer import open_tokenizer

    plan = mix(stage, config(), tmp_path)
    opened = open_tokenizer(vocabulary)
    texts = {document_key(d.id): d.text for d in documents()}
    source = {document_key(d.id): d.metadata["source"] for d in documents()}
    for phase in ("one", "two"):
        reader, tokens = ShardReader(tmp_path / phase), Counter[str]()
        seen: Counter[int] = Counter()
        for number in range(reader.n_documents):
            ids, key = reader.document(number).tolist(), reader.key(number)
            assert opened.tokenizer.decode(ids[:-1]) == texts[key]
            assert ids[-1] == opened.eos_id
            tokens[source[key]] += len(ids)
            seen[key] += 1
        rows = [row for row in plan.slots if row.phase == phase]
        assert dict(tokens) == {row.source: row.tokens for row in rows}
        for row in rows:
            counts = [n for key, n in seen.items() if source[key] == row.source]
            assert set(counts) <= {row.copies, row.copies + 1}
            asked = (12_000 if phase == "one" else 8_000) * (1 if phase == "one" else 0.5)
            assert asked <= row.tokens < asked + 100  # one document at most beyond what was asked for
            assert row.epochs == asked / row.unique_tokens
            assert row.epochs <= row.cap
        assert sum(row.share for row in rows) == pytest.approx(1)
    assert json.loads((tmp_path / "plan.json").read_text())["phases"][1]["name"] == "two"


def test_any_number_of_workers_and_a_second_run_give_the_same_bytes(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    mix(stage, config(), tmp_path / "a", workers=1)
    mix(stage, config(), tmp_path / "b", workers=2)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert len([n for n in bytes_of(tmp_path / "a") if n.startswith("one/") and n.endswith(".tokens")]) > 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.tokens")}
    mix(stage, config(), tmp_path / "a")
    assert times == {path: path.stat().st_mtime_ns for path in times}  # nothing was made again


def test_a_run_that_was_stopped_or_damaged_ends_with_the_same_bytes(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    mix(stage, config(), tmp_path)
    whole = bytes_of(tmp_path)
    (tmp_path / "one" / "index.json").unlink()
    (tmp_path / "one" / "00001.json").unlink()
    (tmp_path / "one" / "00002.tokens").write_bytes(b"damaged")
    (tmp_path / "work" / "00001.table").write_bytes(b"")
    (tmp_path / "two" / "00000.starts").unlink()
    (tmp_path / "two" / "00099.tokens").write_bytes(b"of another mixture")
    mix(stage, config(), tmp_path)
    assert bytes_of(tmp_path) == whole


def test_how_the_documents_lie_in_files_does_not_matter(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    other = write_stage(tmp_path / "stage", documents()[::-1], n_files=3)
    mix(stage, config(), tmp_path / "a")
    mix(other, config(), tmp_path / "b")
    for phase in ("one", "two", "validation"):
        assert bytes_of(tmp_path / "a" / phase).keys() == bytes_of(tmp_path / "b" / phase).keys()
        assert keys_of(tmp_path / "a" / phase) == keys_of(tmp_path / "b" / phase)


def test_another_seed_gives_another_split_and_order(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    mix(stage, config(), tmp_path / "a")
    mix(stage, config(seed=8), tmp_path / "b")
    first, second = keys_of(tmp_path / "a" / "one"), keys_of(tmp_path / "b" / "one")
    assert set(first) != set(second)
    assert sorted(first) != first  # the order is not that of the keys


def test_a_repeat_comes_an_epoch_later_and_every_stretch_has_the_mixture(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    phases = [{"name": "only", "tokens": 30_000, "sources": [{"source": "web"}, {"source": "notes", "max_epochs": 99}]}]
    plan = mix(stage, config(phases=phases), tmp_path)
    source = {document_key(d.id): d.metadata["source"] for d in documents()}
    notes = [key for key in keys_of(tmp_path / "only") if source[key] == "notes"]
    count, copies = len(set(notes)), plan.slots[1].copies
    assert copies >= 2
    for number in range(copies):
        assert len(set(notes[number * count : (number + 1) * count])) == count
    reader, half = ShardReader(tmp_path / "only"), 0
    for number in range(reader.n_documents // 2):
        half += len(reader.document(number)) * (1 if source[reader.key(number)] == "web" else -1)
    assert abs(half) < 0.1 * reader.n_tokens  # as many tokens of each in the first half, too


def test_stricter_scores_give_nested_documents(stage: Path, config: Callable[..., MixConfig], tmp_path: Path) -> None:
    kept: list[set[int]] = []
    for low in (0.0, 2.0, 4.0):
        phases = [{"name": "only", "sources": [{"source": "web", "min_quality": low}]}]
        mix(stage, config(phases=phases), tmp_path / str(low))
        kept.append(set(keys_of(tmp_path / str(low) / "only")))
    assert kept[0] > kept[1] > kept[2]


def test_without_tokens_a_phase_has_the_most_that_repeats_nothing(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    phases = [{"name": "only", "sources": [{"source": "web", "weight": 3}, {"source": "notes"}]}]
    plan = mix(stage, config(phases=phases), tmp_path)
    assert max(row.epochs for row in plan.slots) == pytest.approx(1, abs=1e-3)
    assert max(Counter(keys_of(tmp_path / "only")).values()) == 1
    assert plan.slots[0].share == pytest.approx(0.75, abs=0.02)


def test_more_epochs_than_the_cap_is_an_error_with_a_number_that_works(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path
) -> None:
    def phases(tokens: int, **share: Any) -> list[dict[str, Any]]:
        return [{"name": "only", "tokens": tokens, "sources": [share]}]

    with pytest.raises(PhialError, match=r"phase only wants 500,000 tokens of web.* epochs, the cap is 4\n") as caught:
        mix(stage, config(phases=phases(500_000, source="web")), tmp_path)
    most = int(caught.value.hint.split("can have ")[1].split()[0].replace(",", ""))
    assert mix(stage, config(phases=phases(most, source="web")), tmp_path).slots[0].epochs == pytest.approx(4, abs=1e-3)
    with pytest.raises(PhialError, match=r"of notes.* the cap is 8\n"):  # synthetic text may be read more often
        mix(stage, config(phases=phases(500_000, source="notes")), tmp_path)
    mix(stage, config(phases=phases(most + 5000, source="web", max_epochs=6.5)), tmp_path)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"source": "nets"}], "no source 'nets'\nhint: it has: notes, web"),
        ([{"source": "web", "min_quality": 5}], "no document of web .* from 5 to inf"),
        ([{"source": "notes", "min_quality": 1}], r"documents of notes have no quality score"),
        ([{"source": "web", "min_quality": 3, "max_quality": 3}], "no quality lies in"),
        ([{"source": "web", "max_quality": 3}, {"source": "web", "min_quality": 2}], "with scores in common"),
        ([{"source": "web", "weight": 0}], "weight"),
        ([], "sources"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(
    stage: Path, config: Callable[..., MixConfig], tmp_path: Path, sources: list[Any], message: str
) -> None:
    with pytest.raises(PhialError, match=message):
        mix(stage, config(phases=[{"name": "only", "tokens": 100, "sources": sources}]), tmp_path)


def test_phases_need_names_of_their_own_and_all_or_none_their_tokens(config: Callable[..., MixConfig]) -> None:
    share = [{"source": "web"}]
    for names, tokens in ((("a", "a"), (1, 1)), (("a", "validation"), (1, 1)), (("a", "b"), (1, None))):
        phases = [{"name": n, "tokens": t, "sources": share} for n, t in zip(names, tokens, strict=True)]
        with pytest.raises(PhialError, match=r"different names|none does"):
            config(phases=phases)


def test_what_cannot_be_tokenised_is_named(stage: Path, config: Callable[..., MixConfig], tmp_path: Path) -> None:
    broken = write_stage(tmp_path / "stage", [Document("\ud800", "bad", metadata={"source": "web"})], 1)
    with pytest.raises(PhialError, match="document bad"):
        mix(broken, config(), tmp_path / "out")
    with pytest.raises(PhialError, match="no tokenizer at nowhere"):
        mix(stage, config(tokenizer="nowhere"), tmp_path / "out")


def toml_of(vocabulary: str) -> str:
    return f"""
[mix]
tokenizer = {json.dumps(vocabulary)}

[[mix.phases]]
name = "one"
tokens = 4000
sources = [{{source = "web", min_quality = 1}}]
"""


def test_the_command_shows_the_plan_and_writes_the_shards(stage: Path, vocabulary: str, tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_text(toml_of(vocabulary))
    command = [sys.executable, "-m", "phial", "data", "mix", str(stage), "-c", "mix.toml", "-o", "out"]
    planned = subprocess.run([*command, "--plan"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "web" in planned.stdout
    assert "(unused)" in planned.stdout
    assert not (tmp_path / "out" / "one").exists()
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    phase = json.loads(done.stdout)["phases"][0]
    assert phase["tokens"] == ShardReader(tmp_path / "out" / "one").n_tokens == phase["sources"][0]["tokens"]
    assert 4000 <= phase["tokens"] < 4100


def test_a_run_with_a_mix_table_ends_in_shards(vocabulary: str, tmp_path: Path) -> None:
    from phial.data.run import run_all

    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Document {number} of a small corpus about rivers.")
    sources = '[[sources]]\nname = "web"\npaths = ["texts/*.txt"]\nlicence = "CC0-1.0"\n'
    skip = 'tasks = 2\nskip = ["clean", "dedup", "quality", "decontaminate"]\n'
    table = toml_of(vocabulary).replace("tokens = 4000", "").replace(", min_quality = 1", "")
    (tmp_path / "corpus.toml").write_text(skip + sources + table)
    stages = run_all(tmp_path / "corpus.toml", tmp_path / "run")
    assert (stages[-1]["name"], stages[-1]["documents_in"], stages[-1]["kept"]) == ("mix", 40, 40)
    held = sum(n for n, _ in stages[-1]["validation"].values())
    assert ShardReader(tmp_path / "run" / "06-mix" / "one").n_documents == 40 - held
