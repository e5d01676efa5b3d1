"""What the site shows of files that lie outside docs/: a hook of mkdocs.

README.md is the home page, the other pages of the root stand under Project, and every other file
that a page links to becomes a page with its text, so that no link of the site leads out of it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the root, and where they stand in the site."""

LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)((?:#[^)]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and a page for each file that some page links to."""
    texts = {name: (ROOT / name).read_text("utf-8") for name in PAGES}
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=texts[name]))
    for file in files.documentation_pages():
        if file.abs_src_path is not None and file.src_uri not in PAGES.values():
            texts[f"docs/{file.src_uri}"] = Path(file.abs_src_path).read_text("utf-8")
    sources = {
        target
        for name, text in texts.items()
        for _, link, _ in LINK.findall(text)
        if (target := target_of(name, link)) and site_uri(target).startswith("source/")
    }
    for target in sorted(sources):
        files.append(File.generated(config, site_uri(target), content=source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the pages of the site."""
    names = {uri: name for name, uri in PAGES.items()}
    name = names.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        target = target_of(name, match[2])
        if target is None:
            return match[0]
        here = os.path.dirname(page.file.src_uri)
        return match[1] + os.path.relpath(site_uri(target), here or ".") + match[3]

    return LINK.sub(moved, markdown)


def target_of(name: str, link: str) -> str | None:
    """Return the file that a link leads to, from the root; None for what is no file there.

    >>> target_of("docs/serving.md", "../examples/triage.py")
    'examples/triage.py'
    """
    target = os.path.normpath(os.path.join(os.path.dirname(name), link))
    return target if (ROOT / target).is_file() else None


def site_uri(target: str) -> str:
    """Return where the site has a file of the repository.

    >>> site_uri("README.md"), site_uri("docs/run.md"), site_uri("examples/triage.py")
    ('index.md', 'run.md', 'source/examples/triage.py.md')
    """
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md"


def source_page(target: str) -> str:
    """Return a page that shows a file of the repository."""
    text = (ROOT / target).read_text("utf-8")
    language = LANGUAGES.get(Path(target).suffix, "text")
    return (
        f"---\nsearch:\n  exclude: true\n---\n# {target}\n\n~~~~{language}\n{text.rstrip()}\n~~~~\n"
    )
