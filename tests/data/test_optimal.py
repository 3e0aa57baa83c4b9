"""The experiment around the law: nested pools, proxies that are not trained twice, and what is written at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phial.config_file import checked
from phial.data.document import Document, DocumentFile
from phial.data.mixing import mix
from phial.data.mixture import MixConfig
from phial.data.optimal import run_optimal
from phial.data.optimal_config import OptimalConfig, read_optimal
from phial.data.optimal_law import Law
from phial.data.optimal_pools import Pools, make_pools
from phial.data.optimal_runs import Proxy, points_of, proxies, run_proxies
from phial.data.shards import ShardReader
from phial.data.vocabulary import write_vocabulary
from phial.errors import PhialError

WORDS = "river stone bread lamp winter garden letter glass road bridge paper cloud silver window music".split()
TRAINING = {"sequence": 16, "batch_tokens": 64, "micro_batch": 4}


def documents() -> list[Document]:
    """500 pages with scores 0 to 4.9, and 40 notes without, which are synthetic."""
    made = []
    for number in range(540):
        text = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(10 + number % 31)) + f" {number}"
        web = number < 500
        metadata: dict[str, Any] = {"source": "web", "quality": number % 50 / 10} if web else {"source": "notes"}
        made.append(Document(text, f"d{number}", metadata=metadata))
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage, a vocabulary and validation shards, and the configuration beside them."""
    folder = tmp_path_factory.mktemp("corpus")
    made = documents()
    write_vocabulary([document.text for document in made], 300, folder / "vocabulary")
    for place in range(3):
        file = DocumentFile(folder / "stage" / "kept" / f"{place:05}.jsonl.zst")
        for document in made[place::3]:
            file.write(document)
        file.close()
    (folder / "stage" / "stage.json").write_text("{}")
    sources = [{"source": "web", "min_quality": 2.0}]
    table = {"tokenizer": str(folder / "vocabulary"), "validation": 0.1, "phases": [{"name": "a", "sources": sources}]}
    mix(folder / "stage", checked(MixConfig, table, "test"), folder / "mix")
    (folder / "optimal.toml").write_text(
        """
[optimal]
stage = "stage"
tokenizer = "vocabulary"
validation = "mix/validation"
sources = ["web"]
pool_tokens = 8000
keep_rates = [0.1, 0.3, 1.0]
budgets = [800, 1600, 3200, 6400, 12800]
draws = 30
plan_tokens = [6400, 100000]

[[optimal.models]]
name = "tiny"
training = { sequence = 16, batch_tokens = 64, micro_batch = 4 }

[optimal.phase_2]
shares = [0.0, 0.2, 0.4, 0.6]
tokens = 6400
best = 0.1
sources = ["notes"]
"""
    )
    return folder


@pytest.fixture
def config(corpus: Path) -> OptimalConfig:
    return read_optimal(corpus / "optimal.toml")


@pytest.fixture(scope="module")
def pools(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Pools:
    return make_pools(read_optimal(corpus / "optimal.toml"), tmp_path_factory.mktemp("pools"))


class FollowsTheLaw:
    """A trainer whose losses are the law's, with noise by seed; remembers what it was asked to train."""

    def __init__(self, unique: Sequence[int], stop_after: int | None = None) -> None:
        self.law = Law(
            np.array(unique, float), np.full(3, 20.0), np.array([-0.30, -0.27, -0.25]), np.array([2.0, 4.0, 6.0]),
            np.full(3, 1.0),
        )  # fmt: skip
        self.trained: list[str] = []
        self.stop_after = stop_after

    def __call__(self, proxy: Proxy, folder: Path) -> list[Mapping[str, float]]:
        if self.stop_after is not None and len(self.trained) == self.stop_after:
            raise KeyboardInterrupt
        folder.mkdir(parents=True)
        self.trained.append(proxy.name)
        rng = np.random.default_rng([proxy.seed, proxy.tokens, proxy.keep, round(100 * proxy.share)])
        mean = self.law.loss(proxy.keep, proxy.at) if proxy.keep else [3 + 2 * (proxy.share - 0.3) ** 2]
        return [{"validation/loss": float(loss + rng.normal(0, 0.003)), "loss": 9.0} for loss in mean]


def keys_of(folder: Path) -> set[int]:
    reader = ShardReader(folder, verify=True)
    return {reader.key(number) for number in range(reader.n_documents)}


def test_pools_are_nested_have_their_share_and_nothing_of_validation(pools: Pools, corpus: Path) -> None:
    held, keys = keys_of(corpus / "mix" / "validation"), [keys_of(pool.folder) for pool in pools.keep]
    assert held and keys[0] < keys[1] < keys[2] and not held & keys[2]
    assert pools.keep[2].tokens == pytest.approx(8000, abs=140)  # the longest document has 140 tokens
    for pool, rate in zip(pools.keep, (0.1, 0.3, 1.0), strict=True):
        assert pool.tokens == pytest.approx(rate * pools.keep[2].tokens, abs=140)
        assert pool.tokens == ShardReader(pool.folder).n_tokens
    assert sum(pools.buckets) == pools.keep[2].tokens
    assert pools.keep[0].least > pools.keep[1].least > pools.keep[2].least


def test_a_pool_has_the_best_documents(pools: Pools) -> None:
    from phial.data.shards import document_key

    scores = {document_key(d.id): d.metadata["quality"] for d in documents() if d.metadata["source"] == "web"}
    whole, best = keys_of(pools.keep[2].folder), keys_of(pools.keep[0].folder)
    assert min(scores[key] for key in best) >= max(scores[key] for key in whole - best)
    assert min(scores[key] for key in best) == pytest.approx(pools.keep[0].least)


def test_phases_share_no_document_and_the_second_has_its_own_sources(pools: Pools) -> None:
    first, second = (keys_of(pool.folder) for pool in pools.phases)
    assert not first & second and len(second) == len(keys_of(pools.keep[0].folder)) + 40
    assert first | second > keys_of(pools.keep[2].folder)


def test_pools_are_written_once_and_again_when_something_changed(
    config: OptimalConfig, tmp_path: Path
) -> None:  # fmt: skip
    first = make_pools(config, tmp_path)
    before = (tmp_path / "pools.json").stat().st_mtime_ns
    assert make_pools(config, tmp_path) == first and (tmp_path / "pools.json").stat().st_mtime_ns == before
    (tmp_path / "pools" / "keep-0.3" / "00000.tokens").write_bytes(b"short")
    assert make_pools(config, tmp_path) == first
    other = make_pools(config.model_copy(update={"seed": 1}), tmp_path)
    assert other.keep[2].digest != first.keep[2].digest


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], FollowsTheLaw]:
    folder, config = tmp_path_factory.mktemp("run"), read_optimal(corpus / "optimal.toml")
    pools = make_pools(config, folder)
    trainer = FollowsTheLaw(pools.buckets)
    return folder, run_optimal(config, pools, folder, trainer), trainer


def test_the_report_says_what_the_law_says(done: tuple[Path, dict[str, Any], FollowsTheLaw]) -> None:
    folder, report, trainer = done
    assert report == json.loads((folder / "optimal.json").read_text())
    model = report["models"]["tiny"]
    inside, beyond = model["choices"]
    assert inside["keep_rate"] == (0.1, 0.3, 1.0)[int(trainer.law.loss([1, 2, 3], 6400).argmin())]
    assert not any("epochs" in warning for warning in inside["warnings"])
    assert beyond["extrapolation"] == pytest.approx(100000 / 12800)
    assert any("epochs, measured are" in warning for warning in beyond["warnings"])
    test = model["held_out"]
    assert (test["tokens"], test["fitted_up_to"]) == (12800, 6400)
    truth = trainer.law.loss([1, 2, 3], 12800)
    assert [row["predicted"] for row in test["keep_rates"]] == pytest.approx(truth, abs=0.06)
    assert model["phase_2"]["share"] == pytest.approx(0.3, abs=0.05) and model["phase_2"]["law"] is None
    assert [pool["keep_rate"] for pool in report["pools"]] == [0.1, 0.3, 1.0]


def test_points_and_pictures_are_written(done: tuple[Path, dict[str, Any], FollowsTheLaw]) -> None:
    folder, report, _ = done
    rows = list(csv.DictReader((folder / "points.csv").open()))
    assert len(rows) == 3 * (3 * 5 + 4)
    one = next(row for row in rows if (row["keep_rate"], row["tokens"]) == ("0.1", "12800"))
    assert float(one["epochs"]) == pytest.approx(12800 / report["pools"][0]["unique_tokens"], rel=1e-3)
    assert (folder / "optimal.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = (folder / "optimal.svg").read_text()
    assert picture.startswith("<?xml") and picture.rstrip().endswith("</svg>")
    assert not list(folder.glob("*.partial"))


def test_what_is_measured_is_not_trained_again_and_a_stopped_run_goes_on(
    config: OptimalConfig, pools: Pools, tmp_path: Path
) -> None:
    def measured(trainer: FollowsTheLaw, asked: OptimalConfig = config, folder: Path = tmp_path) -> list[float]:
        todo = proxies(asked, pools)
        return [one.loss for one in run_proxies(todo, config.measure, folder, trainer, lambda done, text: None)]

    whole, stopped, rest, more = (FollowsTheLaw(pools.buckets, stop) for stop in (None, 20, None, None))
    expected = measured(whole, folder=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        measured(stopped)
    assert len(list(tmp_path.glob("*.json"))) == 20
    assert measured(rest) == expected
    assert sorted(stopped.trained + rest.trained) == sorted(whole.trained)
    measured(more, config.model_copy(update={"seeds": 4}))
    assert len(more.trained) == 3 * 5 + 4 and all("-seed-3-" in name for name in more.trained)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "other"]


def test_another_training_is_another_proxy(config: OptimalConfig, pools: Pools) -> None:
    model = config.models[0].model_copy(update={"training": TRAINING | {"micro_batch": 2}})
    other = proxies(config.model_copy(update={"models": (model,)}), pools)
    assert {proxy.name for proxy in other}.isdisjoint(proxy.name for proxy in proxies(config, pools))


def test_one_run_measures_every_budget(config: OptimalConfig, pools: Pools, tmp_path: Path) -> None:
    todo = proxies(config.model_copy(update={"one_run": True, "phase_2": None}), pools)
    trainer, seen = FollowsTheLaw(pools.buckets), []
    measured = run_proxies(todo, config.measure, tmp_path, trainer, lambda done, text: seen.append(done))
    points = points_of(measured, "tiny")
    assert len(trainer.trained) == len({point.run for point in points}) == 9 and len(points) == 45
    assert {(point.keep, point.tokens) for point in points} == {(k, n) for k in (1, 2, 3) for n in config.budgets}
    assert seen == sorted(seen) and seen[-1] == 9 * 12800


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_rates": (0.3, 0.1)}, "do not rise"),
        ({"budgets": (100, 200)}, "at least 3"),
        ({"separate": ("c",)}, r"separate names \['c'\]"),
        ({"models": ()}, "at least 1"),
        (
            {"phase_2": {"shares": (0, 0.2, 0.4), "tokens": 100, "best": 0.5, "keep_rate": 0.3}},
            "phase 2 has the best 0.5",
        ),
        ({"phase_2": {"shares": (0, 0.4, 0.2), "tokens": 100, "best": 0.1}}, "do not rise from 0"),
    ],
)
def test_a_table_that_is_not_right_is_refused(config: OptimalConfig, changes: dict[str, Any], message: str) -> None:
    table = config.model_dump(mode="json") | changes
    with pytest.raises(PhialError, match=message):
        checked(OptimalConfig, table, "test.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_tokens": 10**9}, "pool_tokens is 1,000,000,000, the stage has"),
        ({"sources": ("notes",), "phase_2": None}, "documents of .* have no quality score"),
        ({"sources": ("books",)}, "the stage has no source 'books'"),
        ({"measure": "accuracy"}, "the proxies have no measure 'accuracy'"),
    ],
)
def test_a_corpus_that_does_not_fit_is_refused(
    config: OptimalConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = config.model_copy(update={"pool_tokens": None, **changes})
    with pytest.raises(PhialError, match=message):
        run_optimal(asked, make_pools(asked, tmp_path), tmp_path, FollowsTheLaw([1, 1, 1]))


def test_a_loss_that_is_no_number_is_refused_and_not_kept(config: OptimalConfig, tmp_path: Path) -> None:
    with pytest.raises(PhialError, match="validation/loss is nan"):
        run_optimal(
            config, make_pools(config, tmp_path), tmp_path, lambda proxy, folder: [{"validation/loss": float("nan")}]
        )
    assert not list((tmp_path / "proxies").glob("*.json"))
