"""--lora on the command line: adapters change the answer as their scales say, and mistakes are two lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_models import write_tiny_adapter

FEW = ["--max-tokens", "8", "--temperature", "0"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [str(write_tiny_adapter(folder / f"{name}.gguf", seed=seed)) for seed, name in enumerate(["poet", "clerk"])]


def answer(invoke, tiny, *arguments: str) -> str:
    done = invoke("run", "once", "-m", tiny, "--json", *FEW, *arguments)
    assert done.status == 0, done.err
    return json.loads(done.out)["text"]


def test_an_adapter_changes_the_answer_by_its_scale(invoke, tiny, adapters) -> None:
    poet, clerk = adapters
    plain = answer(invoke, tiny)
    texts = {name: answer(invoke, tiny, "--lora", name) for name in (poet, clerk, f"{poet}:-0.5")}
    assert len({plain, *texts.values()}) == 4
    assert answer(invoke, tiny, "--lora", f"{poet}:0", "--lora", f"{clerk}:0.0") == plain
    assert answer(invoke, tiny, "--lora", f"{poet}:1") == texts[poet]
    both = [answer(invoke, tiny, "--lora", a, "--lora", b) for a, b in ((poet, clerk), (clerk, poet))]
    assert both[0] == both[1] not in (plain, *texts.values())


def test_a_name_with_a_colon_is_a_name_where_there_is_such_a_file(invoke, tiny, tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path / "poet:2")
    done = invoke("run", "once", "-m", tiny, *FEW, "--lora", "poet:2")
    assert done.status == 0, done.err
    assert answer(invoke, tiny, "--lora", "poet:2:0") == answer(invoke, tiny)


def test_chat_speaks_with_the_adapter(invoke, tiny, adapters) -> None:
    assert invoke("chat", "-m", tiny, *FEW, "--lora", adapters[0], stdin="once\n").out == (
        answer(invoke, tiny, "--lora", adapters[0]) + "\n"
    )


def test_perplexity_is_the_adapted_models_and_a_journal_knows_it(invoke, tiny, adapters, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("once upon a time there was a hat.\n" * 20)
    common = ["perplexity", "text.txt", "-m", tiny, "--ctx", "64", "--windows", "2", "--json"]
    plain, adapted, off = (
        json.loads(invoke(*common, *more).out)["perplexity"]["value"]
        for more in ([], ["--lora", adapters[0]], ["--lora", f"{adapters[0]}:0"])
    )
    assert plain == off != adapted
    compared = json.loads(invoke(*common, "--kld", tiny, "--lora", adapters[0]).out)
    assert compared["base_perplexity"]["value"] == pytest.approx(plain) and compared["kl"]["value"] > 0.01
    assert invoke(*common, "--resume", "journal", "--lora", adapters[0]).status == 0
    assert invoke(*common, "--resume", "journal", "--lora", f"{adapters[0]}:0.5").status == 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nowhere", "nowhere"),
        ("nowhere:0.5", "nowhere"),
        (":0.5", ":0.5"),
        ("", "''"),
        ("{poet}:nan", "nan"),
        ("{poet}:1e99", "1e+99"),
        ("{tiny}", "general.type"),
        (".", "adapter_config.json"),
    ],
)
def test_a_mistake_is_two_lines_and_status_2(invoke, tiny, adapters, named: str, message: str) -> None:
    done = invoke("run", "once", "-m", tiny, "--lora", named.format(poet=adapters[0], tiny=tiny))
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 2), done.err
    assert message in done.err


def test_an_adapter_for_both_of_its_names_is_one_too_many(invoke, tiny, adapters) -> None:
    done = invoke("run", "once", "-m", tiny, "--lora", adapters[0], "--lora", adapters[0])
    assert done.status == 2 and "twice" in done.err
