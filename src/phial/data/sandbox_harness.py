"""Run as a program behind the doors of phial.data.sandbox: executes a solution, then its tests, and says what happened.

On standard input: {"solution", "tests", "token", "stub"} as JSON. On the descriptor named by its argument, once the
tests have run to their end or something failed: {"token", "outcome", "detail"}. A program that leaves early leaves it
empty.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Execute both parts and report."""
    given = json.load(sys.stdin)
    process = os.getpid()
    outcome, detail = judge(given["solution"], given["tests"], given["stub"])
    if os.getpid() != process:  # a copy that the program made of itself has nothing to say
        os._exit(0)
    os.write(
        int(sys.argv[1]), json.dumps({"token": given["token"], "outcome": outcome, "detail": detail[:300]}).encode()
    )
    os._exit(0)  # no handlers, threads or destructors of the program


def judge(solution: str, tests: str, stub: bool) -> tuple[str, str]:
    """The outcome of both parts: passed, failed, memory, or the part that raised."""
    space: dict[str, Any] = {"__name__": "solution"}
    part = "solution"
    try:
        exec(compile(solution, "solution.py", "exec"), space)
        if stub:
            empty(space)
        part = "tests"
        exec(compile(tests, "tests.py", "exec"), space)
    except AssertionError as error:
        return ("failed" if part == "tests" else "solution_error"), f"AssertionError: {error}"
    except MemoryError:
        return "memory", "MemoryError"
    except Exception as error:
        return f"{part}_error", f"{type(error).__name__}: {error}"
    return "passed", ""


def empty(space: dict[str, Any]) -> None:
    """Put a function that returns None in the place of every function and class of the solution."""
    for name, value in list(space.items()):
        if callable(value) and getattr(value, "__module__", None) == "solution":
            space[name] = lambda *args, **named: None


if __name__ == "__main__":
    main()
