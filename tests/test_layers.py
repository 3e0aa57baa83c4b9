"""Who may import whom: reads the imports of src/phial and holds the table of docs/concepts/architecture.md.

A package imports strictly lower rows and itself. torch stays in model/ and train/, the compiled core behind engine
and gguf. Imports inside functions and under TYPE_CHECKING count too: the rule is about knowledge, not load time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROWS = [
    {"compressed", "config", "config_file", "intervals", "threads", "language_model"},
    {"tokenizer", "hf", "hub", "manifest"},
    {"model", "gguf"},
    {"engine", "train", "eval", "data"},
    {"search"},
    {"serve", "recipe"},
    {"cli"},
    {"__main__"},
]
# errors stands in row 0 of the table too, but beneath config, which raises its types.
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names} | {"errors": -1}
ONLY_IN = {"torch": {"model", "train"}, "phial._native": {"engine", "gguf"}}
ANYONE_MAY_ASK = {"phial.__version__"}


def imported_names(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names a module imports, relative and literal dynamic imports resolved: `from a import b` gives a.b."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What this module imports against the table; empty when it keeps to it."""
    home = module.split(".")[1]
    if home not in ROW_OF:
        return [f"{module}: {home} stands in no row"]
    found = []
    for name in imported_names(source, module, is_package):
        for limited, allowed in ONLY_IN.items():
            if (name + ".").startswith(limited + ".") and home not in allowed:
                found.append(f"{module} imports {name}, which belongs to {sorted(allowed)}")
        if name.split(".")[0] != "phial" or name in ANYONE_MAY_ASK or name.startswith("phial._native"):
            continue
        other = (name.split(".") + [""])[1]
        if other == home:
            continue
        if other not in ROW_OF:
            found.append(f"{module} imports {name}: name the module it lives in")
        elif ROW_OF[other] >= ROW_OF[home]:
            found.append(f"{module} (row {ROW_OF[home]}) imports {name} (row {ROW_OF[other]})")
    return found


def test_every_module_imports_strictly_lower_rows_or_its_own_package(repository: Path) -> None:
    root = repository / "src"
    found = []
    for path in sorted((root / "phial").rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        if module != "phial":  # the facade names everything, lazily
            found += violations(path.read_text("utf-8"), module, is_package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("phial.config", "from phial.gguf.container import read_gguf"),  # upwards
        ("phial.gguf.container", "import phial.engine.engine"),  # upwards, plain import
        ("phial.engine.engine", "from ..serve import http"),  # upwards, relative
        ("phial.engine.engine", "from phial import cli"),  # a package taken off the root
        ("phial.engine.llama", "from phial.eval.suite import Suite"),  # sideways, same row
        ("phial.errors", "from phial.config import ModelConfig"),  # upwards at the bottom
        ("phial.hub", "from phial.tokenizer.chat import ChatTemplate"),  # sideways, file and package
        ("phial.engine.engine", "def f():\n    from phial.cli import main"),  # hidden in a function
        ("phial.engine.engine", "import importlib\nimportlib.import_module('phial.cli')"),  # dynamic
        ("phial.engine.engine", "from phial import Llama"),  # through the facade
        ("phial.engine.reference", "import torch"),
        ("phial.gguf.convert", "from torch.nn import functional"),
        ("phial.cli", "from phial import _native"),
        ("phial.cli.bench", "import phial._native"),
        ("phial.helpers", "import math"),  # not in the table
    ],
)
def test_a_forbidden_import_is_reported(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("phial.engine.engine", "from phial import _native\nfrom phial.gguf.container import read_gguf"),
        ("phial.engine.llama", "from .engine import Engine\nimport numpy as np\nimport torchless"),
        ("phial.cli.run", "from phial import __version__\nfrom phial.engine.engine import Engine"),
        ("phial.model.transformer", "import torch.nn as nn\nfrom phial.config import ModelConfig"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert violations(source, module) == []
