"""`phial data prefer`: from a configuration to pairs for training; mistakes are told before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Phial

WRITTEN = "[prefer]\nsamples = 0\n[prefer.formats]\njson_object = 3\n[prefer.identity]\n"
NAMED = WRITTEN + 'name = "Phial"\nmaker = "us"\nprompts = 4\n'


def test_templates_give_pairs_and_chats_that_training_reads(phial: Phial, tmp_path: Path) -> None:
    from phial.train.chats import read_chats
    from phial.train.pairs import read_pairs

    (tmp_path / "prefer.toml").write_text(NAMED)
    ended = phial("data", "prefer", "prefer.toml", "-o", "out", "--json")
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert (report["pairs"], report["chats"], report["model"]) == (7, 7, None)
    pairs = list(read_pairs([tmp_path / "out/pairs.jsonl"]))
    assert len(pairs) == 7
    assert not [pair.fault for pair in pairs if pair.fault]
    assert [c.messages for c in read_chats([tmp_path / "out/chats.jsonl"])] == [pair.chosen for pair in pairs]

    (tmp_path / "again.toml").write_text('pairs = ["out/pairs.jsonl", "more.jsonl"]\n')
    more = ['{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}']
    more += ['{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Yes?", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: No."}']
    (tmp_path / "more.jsonl").write_text("\n".join([*more, more[0]]) + "\n")
    again = phial("data", "prefer", "again.toml", "-o", "again")
    assert again.out.splitlines()[1].split() == ["given", "10", "0", "9", "duplicate", "1"]
    pairs += read_pairs([tmp_path / "more.jsonl"])
    both = [(pair.chosen, pair.rejected) for pair in read_pairs([tmp_path / "again/pairs.jsonl"])]
    assert both == [(pair.chosen, pair.rejected) for pair in pairs[:9]]


def test_a_model_that_answers_noise_gives_no_pairs_and_every_prompt_is_counted(
    phial: Phial, tiny: str, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Say {n}.", "checks": [{"check": "number", "value": n, "alone": True}]} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "prefer.toml").write_text('[prefer]\nprompts = ["rows.jsonl"]\nsamples = 2\nmax_tokens = 4\n')
    ended = phial("data", "prefer", "prefer.toml", "-m", tiny, "--judge", tiny, "-o", "out")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[1].split() == ["file", "3", "6", "0", "0", "none_good", "3"]
    assert "no benchmark was given" in ended.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert 6 <= report["costs"]["model"]["tokens_out"] <= 6 * 4
    assert report["position"]["comparisons"] == 6
    held = phial("data", "prefer", "prefer.toml", "-m", tiny, "-o", "held", "--samples", "1", "--temperature", "0")
    assert held.out.splitlines()[1].split()[:4] == ["file", "3", "3", "0"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("samples = 0\n", (), "nothing to make pairs of"),
        ("[prefer.formats]\nhaiku = 3\n", (), "formats.haiku"),
        (WRITTEN + "prompts = 3\n", (), "identity.name"),
        (NAMED, ("--samples", "2", "--workers", "2"), "--workers 2 with a model on this machine"),
        ("[prefer.formats]\nnumber_words = 2000\n", (), "2000 prompts of the kind number_words"),
        ('pairs = ["bad.jsonl"]\n', (), "the conversations differ"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_looked_for(
    phial: Phial, text: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "prefer.toml").write_text(text)
    bad = {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}
    bad = {side: [*said, {"role": "assistant", "content": "c"}] for side, said in bad.items()}
    (tmp_path / "bad.jsonl").write_text(json.dumps(bad) + "\n")
    ended = phial("data", "prefer", "prefer.toml", "-o", "out", "-m", "no-such-model.gguf", *options)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert "no-such-model" not in ended.err
    assert not (tmp_path / "out").exists()
