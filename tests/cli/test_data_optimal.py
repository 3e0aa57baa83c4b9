"""`phial data optimal` from documents to a choice, with trainings of a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Phial

from phial.config_file import checked
from phial.data.document import Document, DocumentFile
from phial.data.mixing import mix
from phial.data.mixture import MixConfig
from phial.data.optimal_config import OptimalConfig, read_optimal
from phial.data.optimal_pools import make_pools
from phial.data.optimal_runs import proxies, run_proxies
from phial.data.vocabulary import write_vocabulary
from phial.recipe.optimal import PretrainedProxies
from phial.train.loop import run_step

CONFIG = """
[optimal]
stage = "stage"
tokenizer = "vocabulary"
validation = "mix/validation"
keep_rates = [0.3, 1.0]
budgets = [640, 1280, 1920, 2560]
seeds = 2
one_run = true
draws = 20
separate = ["b"]

[[optimal.models]]
name = "tiny"

[optimal.models.training]
sequence = 16
batch_tokens = 128
micro_batch = 8
model = { architecture = "llama", n_embd = 16, n_layer = 1, n_head = 1, n_ff = 32, tie_embeddings = true }
loop = { optimizer = { lr = 0.01 }, schedule = { kind = "constant", warmup = 2 } }
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """200 pages, the better ones of fewer different words; the configuration is optimal.toml."""
    words = "river stone bread lamp winter garden letter glass road bridge".split()
    made = []
    for number in range(200):
        quality = number % 5
        text = " ".join(words[(number * 7 + i * i) % (10 - quality)] for i in range(20))
        made.append(Document(f"{text} {number}", f"d{number}", metadata={"source": "web", "quality": float(quality)}))
    write_vocabulary([document.text for document in made], 280, tmp_path / "vocabulary")
    file = DocumentFile(tmp_path / "stage" / "kept" / "00000.jsonl.zst")
    for document in made:
        file.write(document)
    file.close()
    (tmp_path / "stage" / "stage.json").write_text("{}")
    table = {
        "tokenizer": str(tmp_path / "vocabulary"),
        "validation": 0.1,
        "phases": [{"name": "a", "sources": [{"source": "web"}]}],
    }
    mix(tmp_path / "stage", checked(MixConfig, table, "test"), tmp_path / "mix")
    (tmp_path / "optimal.toml").write_text(CONFIG)
    return tmp_path


def test_from_documents_to_a_choice(invoke: Phial, corpus: Path) -> None:
    listed = invoke("data", "optimal", "optimal.toml", "-o", "run", "--list", "--json")
    assert listed.status == 0, listed.err
    assert [row["measured_at"] for row in json.loads(listed.out)] == [[640, 1280, 1920, 2560]] * 4
    told = invoke("data", "optimal", "optimal.toml", "-o", "run", "--tokens", "2560", "--json")
    assert told.status == 0, told.err
    report = json.loads(told.out)
    model = report["models"]["tiny"]
    assert model["losses"] == 16 and model["choices"][0]["tokens"] == 2560
    losses = [row["measured"] for row in model["held_out"]["keep_rates"]]
    first = [json.loads(path.read_text())["rows"] for path in (corpus / "run" / "proxies").glob("*.json")]
    assert all(1 < loss < 5 for loss in losses)
    assert all(rows[0]["validation/loss"] > rows[-1]["validation/loss"] for rows in first)  # they learn
    assert all([row["tokens"] for row in rows] == [640, 1280, 1920, 2560] for rows in first)
    again = invoke("data", "optimal", "optimal.toml", "-o", "run", "--hold-out", "none")
    assert again.status == 0 and "4 of 4 trained" in again.err
    assert "keep-rate" in again.out and "held out" not in again.out and "tiny, 2,560 tokens" in again.out


def test_budgets_that_branch_off_one_run_are_trainings_of_their_own_bit_for_bit(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "optimal.toml").write_text(CONFIG.replace('kind = "constant"', 'kind = "wsd", decay = 0.25'))
    config = read_optimal(corpus / "optimal.toml").model_copy(update={"seeds": 1, "budgets": (640, 1280, 1920)})
    alone, pools = config.model_copy(update={"one_run": False}), make_pools(config, corpus / "run")

    def losses(asked: OptimalConfig, folder: str) -> list[tuple[int, float]]:
        todo = [proxy for proxy in proxies(asked, pools) if proxy.keep == 1]
        found = run_proxies(todo, asked.measure, corpus / folder, PretrainedProxies(asked), lambda done, text: None)
        return sorted((one.tokens, one.loss) for one in found)

    expected, steps, step = losses(alone, "each"), [], run_step

    def counted(*arguments: Any) -> dict[str, Any]:
        steps.append(len(steps))
        if len(steps) == 18:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr("phial.train.loop.run_step", counted)
    with pytest.raises(KeyboardInterrupt):
        losses(config, "one")
    assert losses(config, "one") == expected and len(expected) == 3
    # 5 steps; 10, of which 3 were taken; 15, of which 7 were, until the 18th in all, 11 of the last branch being kept
    assert len(steps) == 18 + 4


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "constant"', 'kind = "cosine"', "one_run with the schedule 'cosine'"),
        ('kind = "constant"', 'kind = "wsd", decay = 0.6', "one_run with a decay of 0.6"),
        ("warmup = 2 } }", "warmup = 0.1 } }", "one_run with a warmup of 0.1 of each budget"),
        ("1280", "1300", "one_run with a budget of 1300 tokens"),
        ("sequence = 16", "sequence = 16\nmax_epochs = 4", "max_epochs is decided by [optimal]"),
        ("micro_batch = 8", "micro_batch = 0", "micro_batch (0)"),
        ("warmup = 2 } }", "warmup = 2 }, seed = 1 }", "training.loop is no table without a seed"),
        ("keep_rates = [0.3, 1.0]", "keep_rate = 1", "optimal.keep_rates"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused_before_anything_is_made(
    invoke: Phial, corpus: Path, before: str, after: str, message: str
) -> None:
    (corpus / "optimal.toml").write_text(CONFIG.replace(before, after))
    ended = invoke("data", "optimal", "optimal.toml", "-o", "run")
    assert ended.status == 2 and message in ended.err and len(ended.err.splitlines()) == 2
    assert not (corpus / "run").exists()


def test_a_hold_out_that_is_not_known_is_refused(invoke: Phial, corpus: Path) -> None:
    ended = invoke("data", "optimal", "optimal.toml", "-o", "run", "--hold-out", "middle")
    assert ended.status == 2 and "--hold-out middle" in ended.err
