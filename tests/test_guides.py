"""What the pages show is so: commands have the options they are shown with, configurations are accepted, links lead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from phial.cli.app import app
from phial.config_file import checked, read_toml

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs/guides"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "bench/results").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"^(?:\$ )?(?:torchrun .*?-m )?phial (.*)$")


def shown(page: Path) -> Iterator[list[str]]:
    """The words behind `phial` of every command in a guide's blocks, up to a pipe."""
    for _, block in FENCE.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if found := CALL.match(line):
                words = split(found[1])
                stop = [place for place, word in enumerate(words) if word in ("|", ">", "<", "&&", "2>")]
                yield words[: stop[0] if stop else None]


def split(line: str) -> list[str]:
    """As a shell does; by white space where a text goes on in the next line."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def unknown(words: list[str]) -> list[str]:
    """Options that a command does not have, or the name that is no command."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    return [word for word in rest if re.match(r"--?[a-zA-Z]", word) and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_commands_have_the_options_they_are_shown_with(page: Path) -> None:
    assert {" ".join(words): unknown(words) for words in shown(page) if unknown(words)} == {}


def test_an_option_that_is_none_is_found() -> None:
    assert unknown(["train", "sft", "model", "data", "--nope=1", "-o", "run"]) == ["--nope=1"]
    assert unknown(["train", "nope"]) == ["nope"]


def test_configurations_of_the_align_guide_are_accepted(tmp_path: Path) -> None:
    """A block is of the section it stands in; that of adapters is a table of every tuning command."""
    from phial.data.preference import PreferConfig
    from phial.recipe.breakfix_config import BreakfixConfig
    from phial.train.dpo import DpoConfig
    from phial.train.embed import EmbedConfig
    from phial.train.sft import SftConfig

    kinds: dict[str, type[BaseModel]] = {
        "Fine-tune": SftConfig, "Adapters": SftConfig, "Preference data": PreferConfig, "Learn from": DpoConfig,
        "Make it safe": BreakfixConfig, "Embed": EmbedConfig,
    }  # fmt: skip
    read = set()
    for section in (GUIDES / "align.md").read_text("utf-8").split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for language, block in FENCE.findall(section):
            if language == "toml":
                (tmp_path / "shown.toml").write_text(block, "utf-8")
                table = read_toml(tmp_path / "shown.toml")
                kind = next(kind for name, kind in kinds.items() if title.startswith(name))
                checked(kind, table.get("prefer", table), title)
                read.add(kind)
    assert read == set(kinds.values())


def anchor(heading: str) -> str:
    """What a heading is called in links: small letters, hyphens between words, no other signs."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_to_files_and_headings() -> None:
    dead = []
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if re.match(r"https?:|mailto:", link):
                continue
            if not target.exists():
                dead.append(f"{page.name}: {link}")
            elif heading and anchor(heading) not in map(anchor, HEADING.findall(target.read_text("utf-8"))):
                dead.append(f"{page.name}: {link}")
    assert dead == []
