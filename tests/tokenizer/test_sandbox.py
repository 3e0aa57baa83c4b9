"""Templates that try to run on, swell or reach out: each ends in an error, soon and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime
from typing import Any

import pytest

from phial.errors import FormatError, PhialError
from phial.tokenizer.sandbox import DEADLINE_SECONDS, MAX_SOURCE, BoundedTemplate

NOW = datetime(2024, 4, 22)
DOUBLING = "{% set ns = namespace(x=X) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}END"


def doubling(start: str, step: str, end: str = "") -> str:
    return DOUBLING.replace("X", start).replace("STEP", step).replace("END", end)


RUNAWAYS = {
    "huge range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(99999) if false %}{% endfor %}" * 50,
    "literal text in a loop": "{% set x %}{% for i in range(90000) %}" + "y" * 200_000 + "{% endfor %}{% endset %}",
    "lists in a loop": "{% for i in range(50000) %}{% set x = range(90000) | list %}{% endfor %}",
    "string times number": "{{ 'a' * 10**9 }}",
    "number times string": "{{ 10**9 * 'a' }}",
    "list times number": "{{ [1] * 10**9 }}",
    "doubling by ~": doubling("'aaaa'", "ns.x ~ ns.x"),
    "doubling by +": doubling("'aaaa'", "ns.x + ns.x"),
    "doubling by join": doubling("'aaaa'", "[ns.x, ns.x] | join"),
    "doubling by replace": doubling("'aaaa'", "ns.x | replace('a', 'aa')"),
    "doubling by method": doubling("'aaaa'", "ns.x.replace('a', 'aa')"),
    "doubling by set block": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling lists": doubling("[1]", "ns.x + ns.x"),
    "a tree of lists": doubling("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "a tree of tuples": doubling("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "a tree of dicts": doubling("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x | tojson }}"),
    "a tree of namespaces": doubling("namespace()", "namespace(a=ns.x, b=ns.x)", "{{ ns.x }}"),
    "namespaces through a filter": doubling("namespace()", "namespace(a=ns.x, b=ns.x)", "{{ ns.x | upper }}"),
    "namespaces in an error": doubling("namespace()", "namespace(a=ns.x, b=ns.x)", "{{ raise_exception(ns.x) }}"),
    "deep lists": doubling("[1]", "[ns.x]", "{{ ns.x | tojson(indent=8) }}"),
    "quadratic replace": "{% set a = 'a' * 200000 %}{{ a.replace('a', a) }}",
    "quadratic join": "{% set a = 'a' * 200000 %}{{ a.join(a) }}",
    "select in": "{{ range(90000) | select('in', range(90000) | list) | list | length }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "power": "{{ (9**999) ** 9 }}",
    "product": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "center": "{{ 'a' | center(10**9) }}",
    "method center": "{{ 'a'.center(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:>1000000000}'.format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "indent": "{{ 'x' | indent(10**9, first=true) }}",
    "indent by text": "{{ 'a\\n' | indent('b' * 10**6) }}",
    "tojson indent": "{{ [1] | tojson(indent=10**9) }}",
    "tojson separators": "{{ range(9000) | list | tojson(separators=['x' * 100000, ':']) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "strftime width": "{{ strftime_now('%999999999d') }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ " + "+".join("1" * 30000) + " }}",
    "deep ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "autoescape": "{% autoescape 'a' * 10**9 %}{% endautoescape %}",
    "large source": "x" * (MAX_SOURCE + 1),
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "method's owner": "{{ range.__self__.globals }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "mutation": "{{ messages.append(1) }}",
    "dict mutation": "{{ {}.update(a=1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'a' %}",
    "encode": "{{ 'a'.encode() }}",
    "a method as text": "{{ 'a'.encode }}",
    "format to attributes": "{{ '{0.__class__}'.format(1) }}",
    "undefined": "{{ nothing.at.all }}",
    "syntax": "{{ 1 +",
    "unknown tag": "{% shell 'ls' %}",
    "unknown filter": "{{ 1 | shell }}",
    "type error": "{{ 1 + 'a' }}",
    "division": "{{ 1 // 0 }}",
    "its own error": "{{ raise_exception('no such turn') }}",
}


def render(source: str, **variables: Any) -> str:
    return BoundedTemplate(source).render({"messages": [], **variables}, input_size=100, now=NOW)


SLOW_TO_TRACE = {"nested loops", "filtered loops", "branching macro", "long sum", "deep ifs"}  # and small by nature


@pytest.mark.parametrize("name", sorted(RUNAWAYS))
@pytest.mark.timeout(60)
def test_a_runaway_template_is_stopped_soon(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(PhialError, match="chat template"):
        render(RUNAWAYS[name])
    assert time.monotonic() - started < DEADLINE_SECONDS + 1


@pytest.mark.parametrize("name", sorted(RUNAWAYS.keys() - SLOW_TO_TRACE))
def test_a_runaway_template_stays_small(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PhialError, match="chat template"):
            render(RUNAWAYS[name])
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", sorted(ESCAPES))
def test_a_template_that_reaches_out_or_fails_is_an_error(name: str) -> None:
    with pytest.raises(PhialError, match="chat template"):
        render(ESCAPES[name])


def test_an_unsafe_attribute_reads_as_nothing() -> None:
    assert render("{{ ''.__class__ }}") == ""


def test_a_namespace_may_be_tested_for() -> None:
    assert (
        render("{% set ns = namespace(a=1) %}{{ ns is defined and ns.a is number and other is undefined }}") == "True"
    )


def test_a_template_cannot_shadow_its_meter() -> None:
    source = "{% set environment = none %}{% set spend = none %}{% for i in range(10**7) %}{% endfor %}"
    with pytest.raises(PhialError, match="too much work"):
        render(source)


def test_the_budget_grows_with_the_messages_and_is_renewed() -> None:
    template = BoundedTemplate("{% for m in messages %}{% for i in range(40) %}{{ m }}{% endfor %}{% endfor %}")
    text = "x" * 100_000
    with pytest.raises(PhialError, match="too much"):
        template.render({"messages": [text]}, input_size=0, now=NOW)
    for _ in range(3):
        assert len(template.render({"messages": [text]}, input_size=len(text), now=NOW)) == 4_000_000


def test_the_time_is_the_callers() -> None:
    assert render("{{ strftime_now('%d %B %Y, 100%%') }}") == "22 April 2024, 100%"


def test_a_template_that_is_no_template_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="cannot be compiled"):
        BoundedTemplate("{% for %}")
