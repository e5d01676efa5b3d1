"""What notebooks show of documents, plans, traces and results: text as text, and no scripts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from nasty import NASTY, nasty
from test_traces import RUNS

import mvspec
from mvspec.compiler import plan_document
from mvspec.compiler.plan import Adaptive, ExecutionPlan
from mvspec.trace import Trace, TracedThread
from mvspec.view.notebook import panel_html, text_html, tree_html


class Elements(HTMLParser):
    """The elements of some HTML, in which every one that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def safe(html: str) -> Elements:
    found = Elements(html)
    assert set(found.names) <= {
        "b", "div", "path", "rect", "span", "style", "svg", "text", "title",
    }  # fmt: skip
    assert not {name for name in found.attributes if name.startswith("on") or name == "id"}
    for style in re.findall(r"<style>(.*?)</style>", html, re.DOTALL):
        assert not re.search(r"@import|url\(", style)
    return found


def test_a_run_in_a_notebook() -> None:
    engine, document, options = RUNS["static, untagged"]
    result = engine.run(document, options)
    trace = safe(result.trace._repr_html_())
    assert "parallelism" in trace.text
    assert trace.names.count("svg") >= 1
    whole = safe(result._repr_html_())
    assert "result" in whole.text
    for name in ("a", "b", "end"):
        assert re.search(rf"\b{name}\b", whole.text)


def test_a_plan_in_a_notebook() -> None:
    from bpe import chat_tokenizer

    document = mvspec.document(mvspec.assistant("A ", mvspec.gen("x", 5)))
    shown = safe(plan_document(document, chat_tokenizer())._repr_html_()).text
    assert "generate %0 $x max 5" in shown
    assert "predicted speedup" in shown
    adaptive = ExecutionPlan(ops=(Adaptive(thread=0),))
    assert "adaptive" in safe(adaptive._repr_html_()).text


@pytest.mark.parametrize("text", NASTY)
def test_traces_of_nasty_texts(text: str) -> None:
    trace: Any = Trace(
        model=text, threads=(TracedThread(id=0, title=text, label=text),), ids=(1,),
        token_texts=(text,), thread_ids=(0,), position_ids=(0,), authors=("model",),
        logprobs=(None,), forward_ids=(0,),
        forward_seconds=(0.1,), forward_tokens=(1,),
    )  # fmt: skip
    assert mvspec.view.terminal.visible(text).strip() in safe(trace._repr_html_()).text


@given(nasty(), nasty())
def test_panels_are_text(title: str, text: str) -> None:
    found = safe(panel_html(title, [(title, text)], [text_html(text, title, None)]))
    assert found.text.count(mvspec.view.terminal.visible(text)) >= 2


def test_several_are_on_one_page() -> None:
    node = mvspec.assistant(mvspec.parallel(mvspec.branch("a", "b"), mvspec.branch("c", "d")))
    html = tree_html(node)
    # Every rule is about what is inside, so that neither the page nor another element minds.
    rules = re.sub(r"\{[^}]*\}", "", re.findall(r"<style>(.*?)</style>", html, re.DOTALL)[0])
    selectors = [each.strip() for line in rules.split("\n") for each in line.split(",")]
    assert all(each.startswith(".mvspec") for each in selectors if each)
    assert Elements(html + html).names.count("style") == 2
