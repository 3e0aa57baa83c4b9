"""English that is on every machine with Python: the documentation inside the standard library, under Python's licence.

A document is a module: what it says of itself, and of each public class and function, with its signature; and each
chapter of the language reference that comes with `help()`. Read from the source files, nothing is imported or run.
About two megabytes, the same for the same version of Python.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from phial.errors import PhialError

LICENCE = "PSF-2.0"
_SHORTEST = 200  # characters of a document
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_TOPICS = "pydoc_data/topics.py"
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs(root: Path | None = None) -> Iterator[str]:
    """The documents, modules in the order of their names.

    Args:
        root: the library's folder; None: that of the running interpreter.

    Raises PhialError where there are no source files.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    found = False
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(place.parts) and (tree := _parsed(path)) is not None:
            found = True
            documents = _topics(tree) if place.as_posix() == _TOPICS else [_module(tree, _name(place))]
            yield from (text for text in documents if len(text) >= _SHORTEST)
    if not found:
        raise PhialError(f"{root} holds no source of the standard library", "use a Python that came with it")


def _parsed(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old string escapes
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates, and files for other versions
            return None


def _name(place: Path) -> str:
    parts = place.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(tree: ast.Module, name: str) -> str:
    parts = [text] if (text := ast.get_docstring(tree)) else []
    parts += _described(tree.body, "")
    return f"{name}\n\n" + "\n\n".join(parts) if parts else ""


def _described(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Public definitions that have words, each under its signature; those of a class under its name."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        name = prefix + node.name
        if text := ast.get_docstring(node):
            yield f"{name}{'' if isinstance(node, ast.ClassDef) else f'({ast.unparse(node.args)})'}\n\n{text}"
        if isinstance(node, ast.ClassDef):
            yield from _described(node.body, f"{name}.")


def _topics(tree: ast.Module) -> list[str]:
    """The values of the dictionary of chapters."""
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    values = [value for table in tables for value in table.values if isinstance(value, ast.Constant)]
    return [value.value.strip() for value in values if isinstance(value.value, str)]
