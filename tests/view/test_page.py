"""The page of `mvspec view`: self-contained, closed to whatever its records hold, never lost."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nasty import NASTY, nasty
from traces import CANONICAL
from typer.testing import CliRunner, Result

from mvspec.cli import app
from mvspec.data.records import Record
from mvspec.shown import visible
from mvspec.view import page
from mvspec.view.page import RecordPage, is_page
from mvspec.view.records import view_of


class Reader(HTMLParser):
    """The elements of a page, with what stands in its scripts, styles and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append("")

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("/" + tag, {}))
        self.inside.append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.inside[-1] += data

    def parts(self, name: str) -> list[str]:
        """The data of the page's parts of that name, decoded."""
        return [
            zlib.decompress(base64.b64decode(inside)).decode()
            for (tag, attrs), inside in zip(self.elements, self.inside, strict=True)
            if tag == "script" and attrs.get("data-part") == name
        ]


def page_of(folder: Path, records: list[Record], title: str = "t") -> str:
    with RecordPage(folder / "page.html", title) as writer:
        for record in records:
            view = view_of(record)
            writer.add(*view.lines(), view.index())
    return (folder / "page.html").read_text("utf-8")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def test_a_page_needs_nothing_and_runs_nothing_else(tmp_path: Path) -> None:
    text = page_of(tmp_path, [Record("a", CANONICAL)])
    reader = Reader(text)
    policy = next(attrs["content"] for tag, attrs in reader.elements if "http-equiv" in attrs)
    for inside, (tag, attrs) in zip(reader.inside, reader.elements, strict=True):
        assert not any(name.startswith("on") for name in attrs)
        assert "style" not in attrs
        assert not {"src", "srcset", "action", "formaction", "background"} & set(attrs)
        assert attrs.get("href", "#record") == "#record"
        if tag == "style" or (tag == "script" and "data-part" not in attrs):
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert "unsafe" not in str(policy)
    assert len(re.findall("<script", text)) == 3  # records, index, the page's own
    script = next(i for i, (_, a) in zip(reader.inside, reader.elements, strict=True)
                  if a.get("type") == "module")  # fmt: skip
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|"
                         r"new Function|\bfetch\(|XMLHttpRequest|import\(", script)  # fmt: skip
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\(", without_names)


@given(st.lists(st.tuples(nasty(), nasty(), nasty()), min_size=1, max_size=3), nasty())
def test_no_character_of_a_record_is_markup(rows: list[tuple[str, str, str]], title: str) -> None:
    records = [
        Record(name, {"id": name, "output": text, "note": note}, "value")
        for name, text, note in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        text = page_of(Path(folder), records, title)
        plain = page_of(Path(folder), [Record("a", "b")], "t")
    found, expected = Reader(text), Reader(plain)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected.elements]
    assert [sorted(attrs) for _, attrs in found.elements] == [
        sorted(attrs) for _, attrs in expected.elements
    ]
    lines = "\n".join(found.parts("records")).split("\n")
    for (name, said, note), line in zip(rows, lines[::2], strict=True):
        searched = json.loads(line)
        assert said in searched
        assert note in searched
        assert name in searched


@pytest.mark.parametrize("title", NASTY)
def test_titles_are_text(title: str, tmp_path: Path) -> None:
    shown = visible(title)
    reader = Reader(page_of(tmp_path, [], title))
    titles = [i for i, (tag, _) in zip(reader.inside, reader.elements, strict=True)
              if tag in ("title", "h1")]  # fmt: skip
    assert [each.strip() for each in titles] == [shown.strip()] * 2


def test_the_script_is_whole(tmp_path: Path) -> None:
    names = {path.stem for path in Path(page.__file__).parent.glob("*.js")}
    assert {*page.SCRIPTS, "layout_page"} == names  # that one is the script of a single layout
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to check the script's syntax")
    script = tmp_path / "page.mjs"
    folder = Path(page.__file__).parent
    script.write_text("".join((folder / f"{n}.js").read_text("utf-8") for n in page.SCRIPTS))
    done = subprocess.run([node, "--check", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_groups_know_their_records(tmp_path: Path) -> None:
    records = [Record(str(n), f"{n} " + "x" * 4000) for n in range(200)]
    reader = Reader(page_of(tmp_path, records))
    firsts = [int(attrs["data-first"] or "") for _, attrs in reader.elements
              if attrs.get("data-part") == "records"]  # fmt: skip
    assert len(firsts) > 3
    sizes = [len(part.split("\n")) // 2 for part in reader.parts("records")]
    assert firsts == [sum(sizes[:at]) for at in range(len(sizes))]
    (index,) = reader.parts("index")
    assert [entry[0] for entry in json.loads(index)] == [str(n) for n in range(200)]


def test_the_command_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text(CANONICAL, "utf-8")
    done = run("one.txt")
    assert done.exit_code == 0
    assert re.fullmatch(r"one\.html: 1 record, \d+ kB\n", done.stdout)
    assert is_page(Path("one.html"))
    assert run("one.txt").exit_code == 0  # over its own page
    assert not list(tmp_path.glob("*.partial"))


def test_bad_lines_are_records_and_counted(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.html"
    file.write_bytes(b'"Answer: 1"\n{broken\n"\\u003cThink>\\nHm"\n\xff\n{"x": 1}\n')
    done = run(file, "-o", out)
    assert done.exit_code == 1
    assert "5 records, 1 cut" in done.stdout
    assert "3 of them could not be read" in done.stderr
    (index,) = Reader(out.read_text("utf-8")).parts("index")
    assert [entry[2] for entry in json.loads(index)] == ["ok", "unread", "cut", "unread", "unread"]


def test_what_stands_in_the_way_is_kept(tmp_path: Path) -> None:
    text, other = tmp_path / "a.txt", tmp_path / "mine.html"
    text.write_text("Answer: 4", "utf-8")
    other.write_text("<p>mine", "utf-8")
    refused = run(text, "-o", other)
    assert (refused.exit_code, other.read_text("utf-8")) == (2, "<p>mine")
    assert "--force" in refused.stderr
    assert run(text, "-o", other, "--force").exit_code == 0
    assert is_page(other)
    for arguments in (
        (text, "-o", tmp_path / "no" / "a.html"),
        (text, "-o", tmp_path),
        (text, "-o", text, "--force"),
        (tmp_path / "absent.txt", "-o", tmp_path / "b.html"),
        (text, "-o", tmp_path / "b.html", "--record", "absent"),
        (text, "-o", tmp_path / "b.html", "--form", "untagged"),
        (text, "-o", tmp_path / "b.html", "--tokenizer", str(tmp_path / "absent.json")),
    ):
        before = text.read_text("utf-8")
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr.strip()
        assert text.read_text("utf-8") == before
        assert not (tmp_path / "b.html").exists()
        assert not list(tmp_path.glob("*.partial"))


def test_workers_write_the_same_page(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{n}", "output": f"Answer: {n}", "correct": n % 2 == 0} for n in range(50)]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert run(file, "-o", tmp_path / "a.html").exit_code == 0
    assert run(file, "-o", tmp_path / "b.html", "--workers", "2").exit_code == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
