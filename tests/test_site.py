"""The site builds without a warning, asks nothing of the network, and leaves nothing out."""

from __future__ import annotations

import base64
import functools
import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROOMS = ("mvspec", "mvspec.compiler", "mvspec.curation", "mvspec.runtime", "mvspec.training")

pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


class Requests(HTMLParser):
    """What a browser fetches for a page by itself, and elements that would make scripts fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag != "a" and "src" in given:
            self.urls.append(given["src"])
        if tag in ("image", "use", "object") and (url := given.get("href") or given.get("data")):
            self.urls.append(url)
        links = ("canonical", "next", "prev", "alternate")
        if tag == "link" and given.get("rel") not in links:
            self.urls.append(given["href"])
        self.urls += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        # The theme loads mermaid from elsewhere, where a page has such a diagram.
        assert "mermaid" not in given.get("class", "").split()


def test_pages_request_nothing_from_outside(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text("utf-8"))
        assert parser.urls
        for url in parser.urls:
            assert not re.match(r"(\w+:)?//", url) or url.startswith("data:"), f"{page}: {url}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", text), sheet


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver",
)
def test_a_browser_requests_nothing_from_outside(address: str) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        for page in ("index.html", "law.html", "api/compiler.html"):
            browser.get(address + page)
            assert browser.find_element("css selector", "h1").is_displayed()
        browser.get(address + "index.html?q=separator")  # the search, in a worker
        waiting = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(browser, 20)
        waiting.until(lambda _: "matching" in browser.find_element(
            "css selector", ".md-search-result__meta").get_attribute("textContent"))  # fmt: skip
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in sent
            if each["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []


def test_the_reference_has_every_public_name_once(site: Path) -> None:
    """The rooms are reached through the links in mvspec/, and not a second time beside it."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    rows = [line.split(" ") for line in zlib.decompress(data).decode().splitlines()]
    names = [row[0] for row in rows]
    assert len(names) == len(set(names))
    assert all(name.split(".")[0] == "mvspec" for name in names)
    pages = {row[0]: row[3].split("#")[0] for row in rows}
    for room in ROOMS:
        page = "api/" + room.removeprefix("mvspec.") + ".html"
        for name in getattr(importlib.import_module(room), "__all__", ()):
            assert pages.get(f"{room}.{name}") == page, name


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = yaml.safe_load(config)["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(nav)))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert pages <= listed, sorted(pages - listed)


def test_pictures_are_up_to_date() -> None:
    drawn = dict(runpy.run_path(str(ROOT / "docs/pictures.py"))["pictures"]())
    assert {path.name for path in ROOT.glob("docs/law/*.svg")} == set(drawn)
    for name, text in drawn.items():
        assert pixels(text) == pixels((ROOT / "docs/law" / name).read_text("utf-8")), name


def pixels(svg: str) -> str:
    """Return an SVG with its images unpacked: how zlib packs them depends on its version."""

    def unpacked(match: re.Match[str]) -> str:
        png = base64.b64decode(match[1])
        at = png.index(b"IDAT")
        size = int.from_bytes(png[at - 4 : at], "big")
        return png[:33].hex() + zlib.decompress(png[at + 4 : at + 4 + size]).hex()

    return re.sub(r"data:image/png;base64,([\w+/=]+)", unpacked, svg)
