"""Everything that draws: trees, pages, masks and timelines.

Importing it registers how nodes and traces are shown; the drawing itself is loaded when it is
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvspec.shown import as_html, as_rich, as_text
from mvspec.trace import Result, Trace
from mvspec.tree.node import Node

if TYPE_CHECKING:
    from rich.tree import Tree


@as_html.register(Node)
def _node_html(node: Node) -> str:
    from mvspec.view.notebook import tree_html

    return tree_html(node)


@as_text.register(Node)
def _node_text(node: Node) -> str:
    from mvspec.view.terminal import tree_text

    return tree_text(node)


@as_rich.register(Node)
def _node_rich(node: Node) -> Tree:
    from mvspec.view.terminal import tree_rich

    return tree_rich(node)


@as_html.register(Trace)
def _trace_html(trace: Trace) -> str:
    from mvspec.view.notebook import trace_html

    return trace_html(trace)


@as_html.register(Result)
def _result_html(result: Result) -> str:
    from mvspec.view.notebook import result_html

    return result_html(result)
