"""Views show every node, interpret no markup, and say how much they leave out."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from rich.console import Console
from strategies import documents

import mvspec
from mvspec import assistant, branch, document, gen, parallel, system, think, user
from mvspec.shown import visible
from mvspec.tree.ir import Document
from mvspec.tree.node import Node
from mvspec.view.notebook import tree_html
from mvspec.view.terminal import MIN_COLUMN, tree_rich, tree_text

MARKUP = "[bold]not bold[/bold] [/] :smile: <script>alert(1)</script> & \x00\x1b[31m\r\u202e"

TRIP = document(
    system("Be brief."),
    user("Train or plane?"),
    assistant(
        think(
            "Compare.",
            parallel(
                branch("Price", "The train costs 90."),
                branch(
                    "Time",
                    "Door to door.",
                    parallel(branch("Train", "Six hours."), branch("Plane", gen("plane"))),
                ),
                conclusion="Train.",
            ),
        ),
        "Take the train.",
    ),
)


def rich_text(node: Node, width: int) -> str:
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(tree_rich(node))
    return capture.get()


class Page(HTMLParser):
    """Collects what an element shows, and checks that its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown.append(data)


def page(node: Node) -> Page:
    reader = Page()
    reader.feed(tree_html(node))
    assert not reader.open
    return reader


def test_plain_tree() -> None:
    assert str(TRIP).splitlines() == [
        "document",
        "├─ system",
        "│  └─ Be brief.",
        "├─ user",
        "│  └─ Train or plane?",
        "└─ assistant",
        "   ├─ think",
        "   │  ├─ Compare.",
        "   │  └─ parallel, 2 paths",
        "   │     ├─ path 1: Price",
        "   │     │  └─ The train costs 90.",
        "   │     ├─ path 2: Time",
        "   │     │  ├─ Door to door.",
        "   │     │  └─ parallel, 2 paths",
        "   │     │     ├─ path 2.1: Train",
        "   │     │     │  └─ Six hours.",
        "   │     │     ├─ path 2.2: Plane",
        "   │     │     │  └─ gen plane: at most 256 tokens",
        "   │     │     └─ conclusion",
        "   │     └─ conclusion",
        "   │        └─ Train.",
        "   └─ Take the train.",
    ]


def test_paths_stand_side_by_side_where_there_is_room() -> None:
    wide, narrow = rich_text(TRIP, 120), rich_text(TRIP, 60)
    assert re.search(r"path 1: Price.*path 2: Time", wide)
    assert not re.search(r"path 1: Price.*path 2: Time", narrow)
    for title in ("path 1: Price", "path 2: Time", "path 2.1: Train", "gen plane", "conclusion"):
        assert title in wide
        assert title in narrow


@pytest.mark.parametrize("width", [20, 80, 3 * MIN_COLUMN, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    block = parallel(branch("a", "x" * 500), branch("b", "word " * 100))
    assert max(map(len, rich_text(block, width).splitlines())) <= width


def test_markup_is_text() -> None:
    node = user(MARKUP)
    shown = "[bold]not bold[/bold] [/] :smile: <script>alert(1)</script> & ␀␛[31m␍\\u202e"
    assert visible(MARKUP) == shown
    assert visible("\ud800 \U000e0001 \x7f\t.") == "\\ud800 \\U000e0001 ␡    ."
    assert shown in tree_text(node)
    assert shown in rich_text(node, 200)
    assert shown in page(node).shown
    assert "<script>" not in tree_html(node)


def test_markup_is_text_in_titles() -> None:
    outline = "[red]x[/red] <b>\x00"
    block = parallel(branch(outline, "a"), branch("other", gen("g", regex="[/b]<i>")))
    for width in (60, 160):
        assert "[red]x[/red] <b>␀" in rich_text(block, width)
        assert "matches '[/b]<i>'" in rich_text(block, width)
    assert "&lt;b&gt;␀" in tree_html(block)
    assert "<i>" not in tree_html(block)


def test_long_text_says_how_much_is_left_out() -> None:
    node = user("y" * 1_000_000)
    assert "… (999,600 more characters)" in tree_text(node)
    assert "more characters)" in rich_text(node, 100)
    assert "… (980,000 more characters)" in tree_html(node)
    assert "y" * 1_000_000 in tree_text(node, None)
    assert len(tree_html(node)) < 50_000


def test_holes_show_their_terms() -> None:
    hole = gen("price", max_tokens=8, stop=["\n", "."], choices=["1", "2"])
    assert str(hole) == "gen price: at most 8 tokens; until '\\n' or '.'; one of '1', '2'"
    assert 'JSON of {"type":"object"}' in str(gen("row", schema={"type": "object"}))


def test_html_needs_nothing_from_elsewhere() -> None:
    assert not re.search(r"https?:|<script|src=|@import|url\(", tree_html(TRIP))


@pytest.mark.parametrize("node", list(TRIP.walk()), ids=lambda node: type(node).__name__)
def test_every_node_has_every_view(node: Node) -> None:
    assert str(node) == str(node).rstrip("\n")
    assert rich_text(node, 100).strip()
    assert page(node).shown


@given(documents())
def test_views_show_any_document(any_document: Document) -> None:
    plain = tree_text(any_document, None)
    for outline in any_document.walk(mvspec.Path):
        assert f"path {outline.label}" in plain
    assert rich_text(any_document, 30)
    assert rich_text(any_document, 150)
    assert page(any_document).shown
