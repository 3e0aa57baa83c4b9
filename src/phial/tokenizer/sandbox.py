"""Jinja templates of strangers, run so that they can neither reach out nor run on: an immutable sandbox with a budget.

Every loop iteration, call, filter and every character made costs from one budget, so time and memory are bounded on
any machine alike; a deadline is the second belt. Values are kept to trees of plain data no larger than the budget,
which leaves no single operation that takes long. Left out because a short template could make them huge: format, %,
center, batch, round, lipsum and other filters chat templates do not use; autoescape, include, import.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, Undefined, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import LoopControlExtension
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from phial.errors import FormatError, PhialError
from phial.tokenizer.metering import GenerationExtension, Metering

MAX_SOURCE = 256 * 1024
BASE_BUDGET = 500_000
BUDGET_PER_CHARACTER = 64  # of the messages
DEADLINE_SECONDS = 10.0
MAX_INTEGER_BITS = 4096
MAX_INDENT = 8
MAX_NESTING = 32

_STRING_METHODS = frozenset(
    "strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith removeprefix removesuffix"
    " upper lower title capitalize find rfind index rindex count isdigit isalpha isalnum isspace isupper islower"
    " replace join".split()
)
_DATA_METHODS = frozenset("items keys values get index count".split())
_FILTERS = (
    "trim length count list join map select reject selectattr rejectattr first last upper lower title capitalize"
    " replace default d string int float items dictsort indent abs min max sort unique reverse"
).split()
_STRFTIME = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")


class BoundedTemplate:
    """A compiled template that renders within a budget.

    Raises:
        FormatError: the source is no Jinja template, or larger than MAX_SOURCE characters.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise FormatError(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}")
        self._environment = _Environment()
        self._lock = threading.Lock()  # the environment holds the budget of one rendering
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # syntax errors, nesting beyond the parser's or Python's limits
            raise FormatError(f"the chat template cannot be compiled: {_described(error)}") from error

    def render(self, variables: Mapping[str, Any], *, input_size: int, now: datetime) -> str:
        """The rendered text. `input_size` (characters of all inputs) widens the budget; `now` is for strftime_now.

        Raises:
            PhialError: the template raised an error, broke a rule of the sandbox or used up its budget.
        """
        with self._lock:
            self._environment.open_budget(BASE_BUDGET + BUDGET_PER_CHARACTER * input_size, now)
            try:
                return self._template.render(variables)
            except Exception as error:  # whatever foreign code may raise
                raise PhialError(f"the chat template failed: {_described(error)}", _HINT) from error
            finally:
                self._environment.close_budget()


_HINT = "choose a built-in template by name, or fix the messages if the template says so"


def _described(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error.message)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        # optimized=False and a finalize that wants the context: nothing is evaluated while compiling
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[LoopControlExtension, GenerationExtension],
        )
        ready: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS}
        ready.update(join=_join, replace=_replace_filter, indent=_indent, items=_items, string=_string)
        self.filters = {name: self._charged(function) for name, function in ready.items()}
        self.filters.update(tojson=self._tojson, safe=lambda value: value)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._charged(function, is_test=True) for name, function in tests.items()}
        self.globals = {"range": self._range, "namespace": Namespace, "dict": dict}
        self.globals.update(raise_exception=self._raise, strftime_now=self._strftime_now)
        self._left: int | None = None
        self._deadline = 0.0
        self._now = datetime.min

    def open_budget(self, budget: int, now: datetime) -> None:
        self._left, self._deadline, self._now = budget, time.monotonic() + DEADLINE_SECONDS, now

    def close_budget(self) -> None:
        self._left = None

    def spend(self, cost: int) -> bool:
        """Take `cost` from the budget; True, so that it can stand in a condition."""
        if self._left is None:
            raise SecurityError("evaluated outside a rendering")
        self._left -= cost + 1
        if self._left < 0:
            raise SecurityError("it does too much work or makes too much text")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {DEADLINE_SECONDS:g} seconds")
        return True

    def checked(self, value: Any) -> Any:
        """The value, if it is a tree of plain data that the budget covers; its size is spent."""
        level = [value]
        for _ in range(MAX_NESTING):
            deeper: list[Any] = []
            for item in level:
                self.spend(len(item) if isinstance(item, (str, list, tuple, dict)) else 0)
                if isinstance(item, (list, tuple)):
                    deeper += item
                elif isinstance(item, dict):
                    deeper += [*item.keys(), *item.values()]
                elif not (item is None or isinstance(item, (str, int, float, Undefined))):
                    raise SecurityError(f"a {type(item).__name__} is no plain data")
            if not deeper:
                return value
            level = deeper
        raise SecurityError(f"data nested deeper than {MAX_NESTING} levels")

    def concatenated(self, *values: Any) -> str:
        """The `~` operator."""
        return "".join(str(self.checked(value)) for value in values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the % operator on text is not available")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_INTEGER_BITS:
                raise OverflowError(f"{operator} makes too large a number")
        if operator == "*":
            self._check_product(left, right)
        result = super().call_binop(context, operator, left, right)
        return self.checked(result) if isinstance(result, (str, list, tuple)) else result

    def _check_product(self, left: Any, right: Any) -> None:
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, (str, list, tuple)):
                self.spend(max(0, times) * len(value))
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_INTEGER_BITS:
                raise OverflowError("* makes too large a number")

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what templates may call: macros, loops, blocks, our own functions, harmless methods of plain data."""
        self.spend(0)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        harmless = (Macro, LoopContext, BlockReference, Undefined)
        if owner is self or obj is Namespace or isinstance(obj, harmless) or isinstance(owner, LoopContext):
            return super().call(context, obj, *args, **kwargs)
        for internal in ("_loop_vars", "_block_vars"):  # what compiled templates pass to every call
            kwargs.pop(internal, None)
        if obj is dict:
            return self.checked(dict(*args, **kwargs))
        if isinstance(owner, str) and name in _STRING_METHODS:
            return self.checked(_call_string_method(self, owner, name, args, kwargs))
        if isinstance(owner, (dict, list, tuple)) and name in _DATA_METHODS:
            return obj(*args, **kwargs)
        raise SecurityError(f"{name or type(obj).__name__} may not be called")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Metering().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def _charged(self, function: Callable[..., Any], is_test: bool = False) -> Callable[..., Any]:
        """A filter or test that spends the size of its arguments before and of its result after."""

        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            if not is_test and any(isinstance(a, Namespace) for a in args):  # may hold itself a thousand times over
                raise SecurityError("a namespace is no plain data")
            self.spend(sum(len(a) for a in args if isinstance(a, (str, list, tuple, dict))))
            result = function(*args, **kwargs)
            return self.checked(result) if isinstance(result, (str, list, tuple, dict)) else result

        return charged

    def _range(self, *args: int) -> range:
        result = range(*args)
        self.spend(len(result))
        return result

    def _tojson(self, value: Any, indent: int | None = None, **options: Any) -> str:
        if indent is not None and not 0 <= indent <= MAX_INDENT:
            raise OverflowError(f"tojson(indent={indent})")
        if unknown := options.keys() - {"ensure_ascii", "separators", "sort_keys"}:
            raise SecurityError(f"tojson has no option {min(unknown)}")
        if any(not isinstance(part, str) or len(part) > 4 for part in options.get("separators") or ()):
            raise OverflowError("tojson separators have at most 4 characters")
        self.checked([value, *options.values()])
        text = json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})
        self.spend(len(text))
        return text

    def _raise(self, message: Any) -> None:
        raise TemplateRuntimeError(str(self.checked(message))[:500])

    def _strftime_now(self, form: str) -> str:
        if len(form) > 200 or not _STRFTIME.fullmatch(form):  # widths such as %999999d fill the memory
            raise SecurityError(f"strftime_now({form[:40]!r})")
        return self._now.strftime(form)


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    environment = context.environment
    assert isinstance(environment, _Environment)
    return environment.checked(value)


def _call_string_method(
    environment: _Environment, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    environment.spend(len(text))
    if name == "replace":
        return _replace(environment, text, *args, **kwargs)
    if name == "join":
        (items,) = args
        return _joined(environment, items, text)
    return getattr(text, name)(*args, **kwargs)


def _replace(environment: _Environment, text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old)
    environment.spend(len(text) + (found if count < 0 else min(found, count)) * len(new))
    return text.replace(old, new, count)


@pass_environment
def _replace_filter(environment: _Environment, text: Any, old: str, new: str, count: int | None = None) -> str:
    return _replace(environment, str(environment.checked(text)), old, new, -1 if count is None else count)


@pass_environment
def _join(environment: _Environment, value: Any, separator: str = "", attribute: str | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [environment.getitem(item, attribute) for item in items]
    return _joined(environment, items, separator)


def _joined(environment: _Environment, value: Any, separator: str) -> str:
    items = environment.checked(list(value))
    environment.spend(len(items) * len(separator))
    return separator.join(str(item) for item in items)


@pass_environment
def _indent(
    environment: _Environment, text: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    if (width if isinstance(width, int) else len(width)) > MAX_INDENT:
        raise OverflowError(f"indent(width={width})")
    space = " " * width if isinstance(width, int) else width
    lines = text.split("\n")
    environment.spend(len(text) + len(lines) * len(space))
    return "\n".join(space + line if (line or blank) and (i or first) else line for i, line in enumerate(lines))


@pass_environment
def _string(environment: _Environment, value: Any) -> str:
    return str(environment.checked(value))


def _items(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [] if isinstance(value, Undefined) else list(value.items())
