"""Rewrites a parsed Jinja template so that it pays for its work: loops, macros, blocks and containers.

The environment (sandbox.py) offers spend(), checked() and concatenated(); calls to them are put into the syntax tree,
where no template can name or shadow them. Also Hugging Face's {% generation %} tag.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer


class GenerationExtension(Extension):
    """Hugging Face's {% generation %} marks the assistant's words for training; here it is its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Metering(NodeTransformer):
    """Puts a payment in front of every loop body, macro and block, and a check around every literal container."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._meter(node)
        if node.test is not None:
            node.test = nodes.And(_own("spend", [nodes.Const(0)], node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._meter(node)

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _own("concatenated", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _own("checked", [node], node) if getattr(node, "ctx", "load") == "load" else node

    visit_Tuple = visit_Dict = visit_List

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise SecurityError("autoescape is not available")

    def _meter(self, node: Any) -> nodes.Node:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_own("spend", [nodes.Const(text)], node), lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _own(name: str, arguments: list[Any], at: nodes.Node) -> nodes.Call:
    attribute = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(attribute, arguments, [], None, None, lineno=at.lineno)
