"""Size budgets: a file holds one idea, a function fits on a screen, the compiled core can be read in a day.

Limits, not aims: aim at 100-300 lines a Python file and 10-40 a function.
"""

from __future__ import annotations

import ast
from pathlib import Path

PYTHON_FILE = 500
PYTHON_FUNCTION = 60
NATIVE_FILE = 700
NATIVE_TOTAL = 6000
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py"}


def python_files(repository: Path) -> list[Path]:
    return [path for folder in ("src", "tests", "bench") for path in sorted((repository / folder).rglob("*.py"))]


def native_files(repository: Path) -> list[Path]:
    return [path for path in sorted((repository / "native").rglob("*")) if path.suffix in {".cpp", ".h"}]


def line_count(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def long_functions(source: str, limit: int = PYTHON_FUNCTION) -> list[tuple[str, int]]:
    """(name, lines) of the functions longer than `limit`, decorators not counted, docstring counted."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    sizes = [(f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions]
    return [(name, size) for name, size in sizes if size > limit]


def test_python_files_stay_within_500_lines(repository: Path) -> None:
    files = python_files(repository)
    assert len(files) > 5
    assert [(str(p), n) for p in files if (n := line_count(p)) > PYTHON_FILE] == []


def test_python_functions_stay_within_60_lines(repository: Path) -> None:
    found = {str(p): long for p in python_files(repository) if (long := long_functions(p.read_text("utf-8")))}
    assert found == {}


def test_native_files_stay_within_700_lines_and_6000_together(repository: Path) -> None:
    sizes = {str(p): line_count(p) for p in native_files(repository)}
    assert sizes
    assert {path: n for path, n in sizes.items() if n > NATIVE_FILE} == {}
    assert sum(sizes.values()) <= NATIVE_TOTAL


def test_no_file_is_named_after_nothing(repository: Path) -> None:
    assert [str(p) for p in python_files(repository) if p.name in FORBIDDEN_NAMES] == []


def test_a_function_over_the_limit_is_found() -> None:
    body = "\n".join("    x = 1" for _ in range(PYTHON_FUNCTION))
    assert long_functions(f"def f():\n{body}") == [("f", PYTHON_FUNCTION + 1)]
    assert long_functions(f"class A:\n async def f(self):\n{body}") == [("f", PYTHON_FUNCTION + 1)]
    assert long_functions("def f():\n    return 1") == []
