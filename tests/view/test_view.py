"""The page in headless Chromium: real clicks and keys, and texts that would like to be scripts."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nasty import NASTY
from traces import CANONICAL
from typer.testing import CliRunner

import mvspec
from mvspec.cli import app
from mvspec.data.sources import read
from mvspec.errors import MvspecError
from mvspec.shown import visible
from mvspec.view.page import RecordPage
from mvspec.view.record_view import AUTHORS, lay_words
from mvspec.view.records import view_of

selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import JavascriptException, TimeoutException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,860",
)  # fmt: skip


class Viewer:
    """A page in the browser."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def open(self, page: Path, address: str = "") -> None:
        self.browser.get("about:blank")  # a mere change of the address would not load anything
        self.browser.get(page.as_uri() + address)
        self.wait("return document.querySelector('#name')?.textContent")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        return WebDriverWait(self.browser, 20, 0.02).until(lambda _: self.run(script, *arguments))

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def named(self, name: str) -> None:
        self.wait("return document.querySelector('#name').textContent === arguments[0]", name)

    @property
    def text(self) -> str:
        return str(self.run("return document.getElementById('panel').textContent"))

    def complaints(self) -> list[str]:
        """What the browser has complained of since it was asked last."""
        entries: list[dict[str, str]] = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def tab(self, name: str) -> None:
        self.one(f"[data-tab='{name}'][role=tab]").click()
        self.wait("return document.getElementById('panel').dataset.tab === arguments[0]", name)

    def inspector(self) -> dict[str, str]:
        """What the token inspector says, by name."""
        self.wait("return !document.getElementById('inspector').hidden")
        pairs = self.run(
            "return [...document.querySelectorAll('#inspector dt')]"
            ".map((dt) => [dt.textContent, dt.nextElementSibling.textContent])"
        )
        text = self.run("return document.querySelector('#inspector .piece').textContent")
        return {**dict(pairs), "text": text}


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield Viewer(browser)
        browser.quit()


def trace_row(text: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A trace of a text in words, as `Trace.save` writes it; all threads go in step."""
    rng = random.Random(seed)
    pages = lay_words(mvspec.parse(text))
    starts = [0]
    for width in pages.widths:
        starts.append(starts[-1] + width)
    owners = [run.thread for run in pages.runs for _ in range(run.size)]
    authors = [AUTHORS[run.author] for run in pages.runs for _ in range(run.size)]
    positions = [run.position + index for run in pages.runs for index in range(run.size)]
    return {
        "model": "a model",
        "threads": [
            {"id": index, "label": each.label, "title": each.title, "block": each.block}
            | ({"parent": each.parent} if index else {})
            for index, each in enumerate(pages.threads)
        ],
        "ids": [rng.randrange(1000) for _ in owners],
        "token_texts": [text[a:b] for a, b in pairwise(starts)],
        "thread_ids": owners,
        "position_ids": [10 + position for position in positions],
        "authors": authors,
        "logprobs": [-rng.random() if author == "model" else None for author in authors],
        "forward_ids": positions,
        "forward_seconds": [0.1 * (step + 1) for step in range(max(positions) + 1)],
        "forward_tokens": [1] * (max(positions) + 1),
        "seconds": 9.0,
        **more,
    }


def write(path: Path, rows: list[Any], title: str = "records") -> Path:
    """Write rows as JSONL and a page of them."""
    data = path.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with RecordPage(path, title) as page:
        for record in read(data).checked(heads=True):
            shown = view_of(record)
            page.add(*shown.lines(), shown.index())
    return path


BROKEN = CANONICAL.replace("1.1: It is 5.\n</Path>\n", "1.1: It is 5.\n")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a record of every kind: text, trace, cut, malformed, samples, unreadable."""
    rows = [
        CANONICAL,
        trace_row(CANONICAL),
        {"id": "cut", "output": CANONICAL[:300], "correct": False, "task": "sums"},
        {"id": "broken", "output": BROKEN, "correct": True, "task": "sums", "question": "2 + 3?"},
        {"id": "strange", "x": 1},
    ]
    return write(tmp_path_factory.mktemp("view") / "mixed.html", rows)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 2,000 samples, one of them with a word of its own."""
    rows = [
        {"id": f"r{n:04}", "output": f"Answer: {n}" + " needle" * (n == 1234), "correct": n % 4 > 0}
        for n in range(2000)
    ]
    return write(tmp_path_factory.mktemp("view") / "many.html", rows)


def test_paths_stand_side_by_side(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed)
    viewer.named("mixed.jsonl:1")
    outer = viewer.all(".tree .think > .b > .parallel > .g > .path")
    assert [path.find_element(By.CSS_SELECTOR, ".o").text for path in outer] == [
        "Add.", "Multiply.",
    ]  # fmt: skip
    assert outer[0].rect["y"] == outer[1].rect["y"]
    assert outer[0].rect["x"] + outer[0].rect["width"] <= outer[1].rect["x"]
    inner = viewer.all(".tree .path .path")
    assert [path.find_element(By.CSS_SELECTOR, "b").text for path in inner] == [
        "path 1.1", "path 1.2",
    ]  # fmt: skip
    assert inner[0].rect["y"] == inner[1].rect["y"]
    assert "46 words at 19–59" in outer[0].text
    facts = viewer.one("#facts").text.replace("\n", " ")
    assert "words 89" in facts
    assert "blocks 2" in facts
    # Of 77 positions; rounded once, in the list and in the head alike.
    assert "degree of parallelism 1.156" in facts
    assert "×1.156" in viewer.all(".item .last")[0].text


def test_on_a_narrow_screen_paths_stand_one_below_the_other(viewer: Viewer, mixed: Path) -> None:
    size = viewer.browser.get_window_size()
    viewer.browser.set_window_size(500, 800)
    try:
        viewer.open(mixed)
        outer = viewer.all(".tree .think > .b > .parallel > .g > .path")
        assert outer[0].rect["y"] < outer[1].rect["y"]
        overflow = "return document.documentElement.scrollWidth - innerWidth"
        assert viewer.run(overflow) <= 0
        assert not viewer.one("#records").is_displayed()
        viewer.one("#drawer").click()
        assert viewer.one("#records").is_displayed()
        viewer.wait("return document.querySelector('[data-record=\"3\"]')")
        viewer.one("[data-record='3']").click()
        viewer.named("broken")
        assert not viewer.one("#records").is_displayed()
    finally:
        viewer.browser.set_window_size(size["width"], size["height"])


def test_a_token_under_the_pointer_says_what_it_is(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed, "#2/tree")
    leaf = next(each for each in viewer.all(".tree .t") if each.text == "The product is 6.")
    width = leaf.rect["width"] / 2
    ActionChains(viewer.browser).move_to_element_with_offset(leaf, int(12 - width), 0).perform()
    said = viewer.inspector()
    row = trace_row(CANONICAL)
    at = next(
        i for i, text in enumerate(row["token_texts"])
        if text == "The " and row["threads"][row["thread_ids"][i]]["label"] == "2"
    )  # fmt: skip
    assert said["text"] == "The "
    assert said["position"] == str(row["position_ids"][at])
    assert said["thread"] == "2 Multiply."
    assert said["written"] == "free"
    assert said["id"] == str(row["ids"][at])
    assert said["logprob"].startswith(f"{row['logprobs'][at]:.3f}")
    assert said["forward"].startswith(str(row["forward_ids"][at]))
    # A click keeps the token, and arrow keys go on from there, in every view.
    ActionChains(viewer.browser).click().perform()
    viewer.keys(Keys.ARROW_RIGHT)
    assert viewer.inspector()["text"] == "product "
    viewer.tab("tokens")
    chosen = viewer.wait("return document.querySelector('.tokens .row.here')")
    assert "product" in chosen.text


def test_the_timeline_is_to_scale(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed, "#2/timeline")
    viewer.wait("return document.querySelectorAll('.plot rect').length > 4")
    assert [each.text for each in viewer.all(".timeline .label b")] == [
        "root", "1", "1.1", "1.2", "2",
    ]  # fmt: skip
    row = trace_row(CANONICAL)
    ends = max(row["position_ids"]) + 1
    lefts = viewer.run(
        "return [...document.querySelectorAll('.plot rect')].map((r) => "
        "[r.x.baseVal.value, r.width.baseVal.value])"
    )
    unit = (viewer.run("return document.querySelector('.plot svg').clientWidth") - 16) / ends
    own = [p for p, owner in zip(row["position_ids"], row["thread_ids"], strict=True) if owner == 0]
    assert lefts[0][0] == pytest.approx(8 + own[0] * unit, abs=0.5)
    assert max(left + width for left, width in lefts) == pytest.approx(8 + ends * unit, abs=0.5)
    for kind in ("forward", "second"):
        viewer.one(f"[data-axis={kind}]").click()
        assert viewer.one(f"[data-axis={kind}]").get_attribute("aria-pressed") == "true"
        label = viewer.one(".plot svg").get_attribute("aria-label") or ""
        assert "5 threads over " + kind in label
    bar = viewer.all(".plot rect.model")[0]
    ActionChains(viewer.browser).move_to_element(bar).perform()
    assert viewer.inspector()["thread"] == "root"


def test_list_header_and_stats_count_words_alike(viewer: Viewer, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "How  much?"}, {"role": "assistant", "content": CANONICAL}]
    rows = [{"id": "text", "output": CANONICAL}, {"id": "chat", "messages": chat}]
    page = write(tmp_path / "words.html", rows)
    told = CliRunner().invoke(
        app, ["stats", str(tmp_path / "words.jsonl"), "--each", "--json"]
    ).stdout.splitlines()  # fmt: skip
    for at, counted in enumerate(map(json.loads, told), 1):
        viewer.open(page, f"#{at}")
        viewer.named(counted["record"])
        parts = ("words", "critical path", "degree of parallelism", "blocks")
        header = viewer.run(
            "return Object.fromEntries([...document.querySelectorAll('#facts div')]"
            ".map((each) => [...each.children].map((part) => part.textContent)))"
        )
        degree = f"{counted['parallelism']:.3f}"
        assert [header[name] for name in parts] == [
            str(counted["tokens"]), str(counted["critical_path"]), degree, str(counted["blocks"])
        ]  # fmt: skip
        listed = viewer.all(f"[data-record='{at - 1}'] .last > *")
        assert [each.text for each in listed] == [
            str(counted["tokens"]), f"×{degree}", f"{counted['blocks']} blocks"
        ]  # fmt: skip
    assert [json.loads(line)["tokens"] for line in told] == [89, 90]


def test_the_mask_is_the_law(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed, "#2/mask")
    row = trace_row(CANONICAL)
    n = len(row["token_texts"])
    first = row["thread_ids"].index(1)
    second = row["thread_ids"].index(4 if row["threads"][4]["label"] == "2" else 2)
    colour = (
        "const c = document.querySelector('.stage canvas'), at = (i) => Math.floor((i + .5) "
        "* c.width / arguments[2]); return [...c.getContext('2d').getImageData("
        "at(arguments[1]), at(arguments[0]), 1, 1).data]"
    )
    viewer.wait("return document.querySelector('.stage canvas').width > 300")
    hidden, seen, later = (
        viewer.run(colour, query, key, n)
        for query, key in ((second + 1, first + 1), (n - 1, first + 1), (first, second))
    )
    assert len({tuple(hidden), tuple(seen), tuple(later)}) == 3
    assert viewer.run(colour, n - 2, second + 1, n) != hidden
    canvas = viewer.one(".stage canvas")
    size = canvas.rect["width"]
    x, y = (first + 1.5) * size / n - size / 2, (second + 1.5) * size / n - size / 2
    ActionChains(viewer.browser).move_to_element_with_offset(canvas, int(x), int(y)).perform()
    assert "does not see" in viewer.one("#mask-says").text
    assert "another path" in viewer.one("#mask-says").text
    viewer.run("document.querySelector('.stage canvas').focus()")
    for _ in range(3):
        viewer.keys(Keys.ARROW_UP)
    assert viewer.one("#mask-says").text


def test_repairs_stand_in_their_place(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed, "#4/tree")
    viewer.named("broken")
    repair = viewer.one(".tree .path .path .repair")
    assert repair.text == "1 missing-closing"
    repair.click()
    viewer.wait("return document.getElementById('panel').dataset.tab === 'source'")
    edit = viewer.one("#edit-0")
    assert viewer.run("return document.activeElement.id") == "edit-0"
    assert edit.find_element(By.CSS_SELECTOR, "ins").text == "</Path>␊"
    before = viewer.run(
        "const raw = document.querySelector('.raw'), r = document.createRange();"
        "r.setStart(raw, 0); r.setEndBefore(document.getElementById('edit-0'));"
        "return r.toString()"
    )
    assert BROKEN.startswith(before)
    assert before.endswith("1.1: It is 5.\n")
    viewer.open(mixed, "#5")
    viewer.named("strange")
    assert "missing-field" in viewer.text
    assert '"x": 1' in viewer.text


def test_filters_and_verdicts(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed)
    chips = {chip.get_attribute("data-filter"): chip for chip in viewer.all(".chip")}
    assert set(chips) == {"ok", "cut", "malformed", "unread", "right", "wrong"}
    chips["wrong"].click()
    assert viewer.one("#count").text == "1 of 5 records; 0.0 % of 1 right"
    assert [each.text for each in viewer.all(".item .name")] == ["cut"]
    assert legible(viewer)  # with the pointer on what is pressed
    chips["malformed"].click()
    assert viewer.one("#count").text == "0 of 5 records"
    chips["wrong"].click()
    assert [each.text for each in viewer.all(".item .name")] == ["broken"]
    viewer.all(".item")[0].click()
    viewer.named("broken")
    assert [each.text for each in viewer.all("#verdict .badge")] == ["malformed", "right"]
    assert not viewer.one("#next").is_enabled()
    viewer.tab("fields")
    assert "2 + 3?" in viewer.text


def test_search_reads_every_record(viewer: Viewer, many: Path) -> None:
    viewer.open(many)
    assert viewer.one("#count").text == "2,000 records; 75.0 % of 2,000 right"
    assert len(viewer.all(".item")) < 40
    viewer.keys("/")
    viewer.keys("NEEDLE")
    viewer.wait("return document.getElementById('count').dataset.query === 'NEEDLE'")
    assert viewer.one("#count").text == "1 of 2,000 records; 100.0 % of 1 right"
    viewer.named("r1234")
    if viewer.run("return Boolean(globalThis.Highlight)"):
        assert viewer.run("return CSS.highlights.get('match').size") == 1
    viewer.keys(Keys.ESCAPE)
    viewer.wait("return document.getElementById('count').textContent.startsWith('2,000 records')")
    viewer.keys(Keys.ESCAPE)
    viewer.keys("j")
    viewer.named("r1235")
    viewer.one("#search").send_keys("r19")
    viewer.one("[data-filter=wrong]").click()
    told = "return document.getElementById('count').textContent === arguments[0]"
    viewer.wait(told, "25 of 2,000 records; 0.0 % of 25 right")


def test_the_keyboard_does_everything(viewer: Viewer, many: Path) -> None:
    viewer.open(many)
    viewer.named("r0000")
    for key, name in (("j", "r0001"), ("j", "r0002"), ("k", "r0001")):
        viewer.keys(key)
        viewer.named(name)
    viewer.keys("l")
    assert viewer.run("return document.activeElement.id") == "list"
    viewer.keys(Keys.END)
    viewer.named("r1999")
    viewer.wait("return document.querySelector('[data-record=\"1999\"][aria-selected=true]')")
    assert viewer.one("#list").get_attribute("aria-activedescendant") == "record-1999"
    viewer.keys(Keys.PAGE_UP)
    viewer.wait("return document.querySelector('#name').textContent < 'r1999'")
    viewer.keys(Keys.HOME)
    viewer.named("r0000")
    for number, tab in ((2, "timeline"), (3, "mask"), (4, "tokens"), (5, "fields"), (1, "tree")):
        viewer.keys(str(number))
        viewer.wait("return document.getElementById('panel').dataset.tab === arguments[0]", tab)
    assert viewer.run("return location.hash") == "#1/tree"
    viewer.one("#tab-tree").send_keys(Keys.ARROW_RIGHT)
    viewer.wait("return document.activeElement.id === 'tab-timeline'")
    viewer.keys("?")
    assert viewer.run("return document.getElementById('keys').open")
    viewer.keys("j")  # the page of keys has the keyboard to itself
    viewer.keys(Keys.ESCAPE)
    assert not viewer.run("return document.getElementById('keys').open")
    viewer.named("r0000")
    viewer.keys("r")
    assert viewer.run("return document.activeElement.id") == "panel"


def test_dark_and_light(viewer: Viewer, mixed: Path) -> None:
    viewer.open(mixed)
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = viewer.run(ground)
    viewer.one("#theme").click()
    dark = viewer.run(ground)
    assert light != dark
    viewer.open(mixed)  # the choice is kept
    assert viewer.run(ground) == dark
    viewer.keys("d")
    assert viewer.run(ground) == light
    viewer.run("localStorage.clear()")
    for scheme, colour in (("dark", dark), ("light", light)):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        viewer.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        viewer.open(mixed)
        assert viewer.run(ground) == colour


# WCAG's contrast of every text on the screen with the ground behind it.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (c) => [.2126, .7152, .0722].reduce((sum, part, i) => {
  const v = c[i] / 255; return sum + part * (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
}, 0);
const ground = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const c = rgba(getComputedStyle(at).backgroundColor);
    if (c[3] > 250) return c;
  }
  return [255, 255, 255, 255];
};
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const box = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !box.checkVisibility() || box.closest("script, :disabled"))
    continue;
  const a = light(rgba(getComputedStyle(box).color)), b = light(ground(box));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) bad.push([walk.currentNode.data.trim().slice(0, 30), ratio]);
}
return bad;
"""


def legible(viewer: Viewer) -> bool:
    """Whether all text is, once the grounds have faded to where they go."""
    with suppress(TimeoutException):
        WebDriverWait(viewer.browser, 2, 0.1).until(lambda _: viewer.run(CONTRAST) == [])
    return bool(viewer.run(CONTRAST) == [])


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible(viewer: Viewer, mixed: Path, dark: bool) -> None:
    for tab in ("tree", "tokens", "source", "fields"):
        viewer.open(mixed, f"#4/{tab}")
        viewer.run("document.documentElement.dataset.theme = arguments[0]",
                   "dark" if dark else "light")  # fmt: skip
        assert legible(viewer), viewer.run(CONTRAST)


ACTIVE = (
    "base", "details", "embed", "form", "iframe", "img", "link", "object", "script", "style",
    "template", "textarea", "title",
)  # fmt: skip


def test_nothing_in_a_record_runs(viewer: Viewer, tmp_path: Path) -> None:
    rows: list[Any] = []
    for text in NASTY:
        safe = text.replace("\n", " ")
        try:
            tree = mvspec.document(mvspec.user(text), mvspec.assistant(
                mvspec.parallel(mvspec.branch(safe, text), mvspec.branch("b", "c"))))  # fmt: skip
            rows.append({"id": text, "document": json.loads(tree.to_json()), text: text})
        except MvspecError:  # no document holds half of a surrogate pair
            rows.append({"id": text, "output": text, text: text})
    everything = " ".join(NASTY)
    rows.append({
        "id": "trace", "question": everything, "task": NASTY[0],
        "trace": trace_row("Hi there", token_texts=[*NASTY[:2]], model=NASTY[0],
                           threads=[{"id": 0, "title": everything}]),
    })  # fmt: skip
    viewer.complaints()
    page = write(tmp_path / "nasty.html", rows, everything)
    viewer.open(page)
    assert viewer.run("return window.ran") is None
    own = "return document.querySelectorAll('script').length"
    scripts = viewer.run(own)
    for at, row in enumerate(rows, 1):
        viewer.run("location.hash = arguments[0]", f"#{at}/tree")
        viewer.wait("return location.hash.startsWith(arguments[0] + '/')", f"#{at}")
        name = visible(row["id"]).replace("\n", "␊")
        viewer.named(name)
        shown = viewer.text
        if "document" in row:
            assert shown.count(visible(row["id"])) >= 2
        elif "output" in row:  # as it stands, and with U+FFFD in its place
            assert "� �" in shown
            viewer.tab("source")
            assert "\\ud800" in viewer.text
            assert "\\udfff" in viewer.text
        if at % 6 and at != len(rows):
            continue
        said = [v for k, v in row.items() if k not in ("id", "document", "output", "trace")]
        for tab in [each.get_attribute("data-tab") or "" for each in viewer.all("[role=tab]")]:
            viewer.run("document.getElementById('tab-' + arguments[0]).click()", tab)
            inside = viewer.run(
                "return [...document.querySelectorAll('#panel *, .item *, #facts *')]"
                ".map((each) => each.localName)"
            )
            assert set(inside).isdisjoint(ACTIVE)
            if tab == "fields":
                fields = viewer.text
                assert all(visible(each) in fields for each in said)
    assert viewer.run("return window.ran") is None
    assert viewer.run(own) == scripts
    attributes = viewer.run(
        "return [...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on")]
    assert viewer.complaints() == []


def test_the_policy_holds(viewer: Viewer, mixed: Path) -> None:
    """Even code that got into the page could neither run, load nor send."""
    viewer.open(mixed)
    script = (
        "const s = document.createElement('script'); s.append('window.ran = 1');"
        "document.body.append(s); s.remove(); return window.ran"
    )
    with suppress(JavascriptException):  # trusted types refuse it before the policy does
        assert viewer.run(script) is None
    assert viewer.run("return window.ran") is None
    blocked = viewer.browser.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        "const i = new Image(); i.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';"
        "document.body.append(i)"
    )
    assert blocked == "img-src"
    viewer.complaints()


def test_a_page_of_thousands_is_only_as_large_as_the_screen(viewer: Viewer, many: Path) -> None:
    viewer.open(many)
    assert viewer.run("return document.querySelectorAll('*').length") < 700
    viewer.run("document.getElementById('list').scrollTop = 74 * 1000")
    viewer.wait("return document.querySelector('[data-record=\"1000\"]')")
    assert len(viewer.all(".item")) < 40


def test_a_long_record_does_not_freeze(viewer: Viewer, tmp_path: Path) -> None:
    block = mvspec.parallel(*(mvspec.branch(f"Case {n}", f"It is {n}.") for n in range(1500)))
    document = mvspec.document(mvspec.assistant("word " * 50_000 + "\n", block))
    page = write(tmp_path / "long.html", [json.loads(document.to_json())])
    viewer.open(page)
    assert viewer.run("return document.documentElement.classList.contains('single')")
    assert viewer.run("return document.querySelectorAll('*').length") < 3000
    more = viewer.all(".tree .more")
    assert more[0].text == "… 230,001 more characters"
    more[0].click()
    assert viewer.text.count("word ") == 50_000
    viewer.all(".tree .more")[-1].click()
    assert len(viewer.all(".tree .path")) == 1500
    for tab in ("timeline", "mask", "tokens"):
        viewer.tab(tab)
    assert len(viewer.all(".tokens .row")) < 80


def test_an_empty_page_says_so(viewer: Viewer, tmp_path: Path) -> None:
    viewer.browser.get(write(tmp_path / "empty.html", []).as_uri())
    viewer.wait("return document.getElementById('count').textContent === '0 records'")
    assert "There are no records." in viewer.text


def test_an_answer_stands_beside_its_question_and_gold_answer(
    viewer: Viewer, tmp_path: Path
) -> None:
    asked = "What is <b>2+3</b>?\n" + "Why? " * 2000
    rows = [
        {"format": 2, "settings": {"task": "math"}},
        {"id": "p1", "sample": 1, "question": asked, "gold": "5", "score": 0.0, "extracted": "6",
         "prompt": [{"role": "user", "content": asked}], "output": "It is 6."},
        {"id": "p2", "output": "Four."},
    ]  # fmt: skip
    page = write(tmp_path / "run.html", rows)
    viewer.open(page, "#2")
    viewer.named("p1 sample 1")
    told = viewer.run(
        "return [...document.querySelectorAll('#asked div')]"
        ".map((each) => [...each.children].map((part) => part.textContent))"
    )
    assert told == [["question", asked], ["gold", "5"], ["extracted", "6"]]
    assert "It is 6." in viewer.text
    # A long question scrolls, and leaves the answer its place.
    assert viewer.one("#asked").size["height"] < 260
    assert viewer.one("#panel").size["height"] > 200
    viewer.open(page, "#3")
    viewer.named("p2")
    assert not viewer.one("#asked").is_displayed()
    assert viewer.complaints() == []
