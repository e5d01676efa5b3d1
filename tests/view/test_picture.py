"""Pictures of layouts: exact shares, paths found, files that need nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bpe import small_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from strategies import turns
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec
from mvspec import Message
from mvspec.cli import app
from mvspec.compiler import Layout, compile_document, concatenate
from mvspec.compiler.masks import dense_mask
from mvspec.compiler.stages import compile_stages
from mvspec.data.records import InputError
from mvspec.view.layout_page import layout_html, layout_png, write_pictures
from mvspec.view.mask_image import draw, find_stretches

LOWERINGS = ("multiverse", "sequential", "tree", "official", "shared(3)")


def layout_of(text: str, lowering: str = "multiverse") -> Layout:
    return compile_document(mvspec.parse(text), small_tokenizer(), lowering)


def packed() -> Layout:
    return concatenate([layout_of(CANONICAL), layout_of("Four."), layout_of(CANONICAL)])


def assert_exact(layout: Layout, cells: int) -> None:
    picture = draw(layout, cells)
    mask = dense_mask(layout).numpy().astype(float)
    rows = np.add.reduceat(mask, picture.edges[:-1], axis=0)
    count = np.add.reduceat(rows, picture.edges[:-1], axis=1)
    sizes = np.diff(picture.edges)
    assert np.allclose(picture.seen, count / (sizes[:, None] * sizes[None]))


@given(turns(max_depth=3), st.sampled_from(LOWERINGS), st.integers(1, 40))
def test_a_cell_shows_the_share_that_is_visible(turn: Message, lowering: str, cells: int) -> None:
    layout = compile_document(turn, small_tokenizer(), lowering)
    if len(layout):
        assert_exact(layout, cells)


@pytest.mark.parametrize("cells", [1, 7, 50, 10_000])
def test_packed_rows_are_drawn_exactly(cells: int) -> None:
    assert_exact(packed().padded(len(packed()) + 30), cells)


def test_pixels_tell_hidden_from_seen_and_from_what_is_to_come() -> None:
    layout = layout_of(CANONICAL)
    picture = draw(layout)
    mask = dense_mask(layout).numpy()
    assert len(picture.pixels) == len(layout)
    future = np.triu(np.ones_like(mask), 1)
    assert (picture.pixels[future] == 255).all()
    grey = {tuple(pixel) for pixel in picture.pixels[~mask & ~future].tolist()}
    assert len(grey) == 1
    seen = {tuple(pixel) for pixel in picture.pixels[mask].tolist()}
    assert len(seen) == 5
    assert not grey & seen


def test_paths_are_found_from_the_intervals() -> None:
    stages = compile_stages(mvspec.parse(CANONICAL), small_tokenizer())
    stretches = find_stretches(stages.layout)
    labels = np.repeat(stretches.labels(), np.diff(stretches.starts))
    assert labels.tolist() == stages.threads()


class Loads(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page_needs_nothing_else() -> None:
    page = layout_html(layout_of(CANONICAL), small_tokenizer())
    loads = Loads()
    loads.feed(page)
    assert loads.found
    assert all(address.startswith("data:image/png;base64,") for address in loads.found)
    assert "http" not in page


def test_text_of_a_layout_cannot_leave_its_script() -> None:
    page = layout_html(layout_of("</script><b>bold</b> \u2028 & <!-- x"), small_tokenizer())
    assert page.count("</script>") == 1
    assert "<b>bold" not in page.replace("<b>", "", 1)


def test_a_notebook_shows_the_page() -> None:
    layout = layout_of(CANONICAL)
    assert layout._repr_html_() == layout_html(layout)
    assert "without tokens" in layout_html(layout.truncate(0))
    for lowering in LOWERINGS:
        assert "<svg" in layout_html(layout_of(CANONICAL, lowering))


def test_a_large_layout_stays_a_small_page() -> None:
    layout = concatenate([layout_of(CANONICAL)] * 150)
    page = layout_html(layout, small_tokenizer())
    assert len(layout) > 20_000
    assert len(page) < 1_000_000
    assert re.search(r"A cell is up to \d+ × \d+ tokens", page)


def test_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, layout in enumerate((layout_of(CANONICAL), packed(), layout_of("a").truncate(0))):
        path = tmp_path / f"{number}.png"
        layout_png(layout, path, "a title with $x_1$ and 答案")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_show_draws_masks(tmp_path: Path) -> None:
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "trace.txt").write_text(CANONICAL, "utf-8")

    def show(*args: object) -> int:
        command = ["show", str(tmp_path / "trace.txt"), *map(str, args)]
        return CliRunner().invoke(app, command).exit_code

    tokenizer = ("--tokenizer", tmp_path / "tokenizer.json")
    assert show("--mask", tmp_path / "mask.html", *tokenizer) == 0
    assert "path 1.2" in (tmp_path / "mask.html").read_text("utf-8")
    assert show("--mask", tmp_path / "tree.html", *tokenizer, "--lowering", "tree") == 0
    assert show("--mask", tmp_path / "mask.html") == 2
    assert show("--mask", tmp_path / "mask.gif", *tokenizer) == 1
    with pytest.raises(mvspec.Unsupported, match="one record"):
        write_pictures(tmp_path / "a.png", [("a", packed()), ("b", packed())])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for name in ("mask.png", "mask.html"):
        with pytest.raises(InputError, match="there is no folder"):
            write_pictures(tmp_path / "none" / name, [])
