"""Help is instant because nothing heavy is imported for it, and each page ends with an example."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from phial.cli.app import app

COMMANDS = [
    "run",
    "chat",
    "pull",
    "list",
    "rm",
    "inspect",
    "tokenize",
    "bench",
    "perplexity",
    "convert",
    "quantize",
    "info",
    "make",
    "data",
    "data run",
    "data clean",
    "data annotate",
    "data classifier",
    "data score",
    "data dedup",
    "data decontaminate",
    "data synthesize",
    "data prefer",
    "data vocabulary",
    "data mix",
    "data optimal",
    "data report",
    "train",
    "train pretrain",
    "train longrope",
    "train sft",
    "train dpo",
    "train breakfix",
    "train embed",
]
HEAVY = [
    "numpy", "rich", "huggingface_hub", "prompt_toolkit", "jinja2", "tokenizers", "sentencepiece", "torch",
    "transformers", "asyncio", "urllib.request", "pydantic", "phial._native", "phial.hub", "phial.engine.engine",
]  # fmt: skip
PROBE = """
import io, json, sys
from phial.cli import app, console
pages = {}
for command in [[], *(name.split() for name in sys.argv[1].split(","))]:
    sys.stdout = io.StringIO()
    assert console.run(app.app, [*command, "--help"]) == 0
    pages[" ".join(command)] = sys.stdout.getvalue()
sys.stdout = sys.__stdout__
print(json.dumps({"pages": pages, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def helped() -> dict:
    """Every help page, and the modules that were imported to show them."""
    import json

    done = subprocess.run([sys.executable, "-c", PROBE, ",".join(COMMANDS)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(helped) -> None:
    assert [name for name in HEAVY if name in helped["modules"]] == []


def test_every_help_page_ends_with_one_example(helped) -> None:
    assert len(helped["pages"]) == len(COMMANDS) + 1
    for command, page in helped["pages"].items():
        last = page.strip().splitlines()[-1]
        assert last.startswith(f"  Example: phial {command}".rstrip()), page
        assert page.count("Example:") == 1


def test_the_commands_are_those_the_documentation_lists() -> None:
    def names(group, before: str = "") -> list[str]:
        found = []
        for name, command in group.commands.items():
            found += [before + name, *(names(command, f"{before}{name} ") if hasattr(command, "commands") else [])]
        return found

    assert names(typer.main.get_command(app)) == COMMANDS


def test_no_arguments_at_all_show_the_help(phial) -> None:
    assert phial().out == phial("--help").out != ""


def test_version(phial) -> None:
    from phial import __version__

    assert phial("--version").out == f"phial {__version__}\n"


def test_sampling_flags_default_to_the_engines_values() -> None:
    from phial.cli.options import SAMPLING_FLAGS
    from phial.engine.sampling import SamplingParams

    params = SamplingParams()
    assert {name: default for name, _, default, _ in SAMPLING_FLAGS} == vars(params)
