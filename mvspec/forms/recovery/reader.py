"""One pass over a text: a rule for every tag, and a place for text where only tags may stand."""

from __future__ import annotations

import re

from mvspec.forms.recovery.edits import LEAD, NUMBER
from mvspec.forms.recovery.rules import RULES
from mvspec.forms.recovery.scan import Scan
from mvspec.law.limits import MAX_DEPTH
from mvspec.law.tags import TAG, Tag

__all__ = ["read"]

_LABEL_LINE = re.compile(rf"^[ \t]*+{NUMBER}[ \t]*+:", re.MULTILINE)
_FULL_LINE = re.compile(r"^[^\S\n]*+\S", re.MULTILINE)
TAGS = {tag.value: tag for tag in Tag}
_PARTIAL_TAG = re.compile(r"</?[A-Za-z]*\Z")


def read(text: str, max_depth: int = MAX_DEPTH) -> Scan:
    """Return the tags of the repaired text and those dropped; time is linear in the text."""
    scan = Scan(text, max_depth)
    tags = list(TAG.finditer(text))
    following = next_structural(text, tags)
    at = 0
    for index, match in enumerate(tags):
        scan.run_start = max(scan.run_start, at)
        scan.at, scan.end = match.span()
        scan.next_at = tags[index + 1].start() if index + 1 < len(tags) else -1
        after = following[index]
        scan.following = TAGS[after.group()] if after else None
        scan.following_end = after.end() if after else len(text)
        tag = TAGS[match.group()]
        if scan.too_deep and not (tag is Tag.END_THINK and scan.at == scan.last_end_think):
            scan.too_deep += (tag is Tag.PARALLEL) - (tag is Tag.END_PARALLEL)
            scan.deep()
        else:
            place_text(scan, tag, scan.at)
            RULES[tag](scan)
        at = match.end()
    finish(scan, at)
    return scan


def next_structural(text: str, tags: list[re.Match[str]]) -> list[re.Match[str] | None]:
    """Return, for every tag, the next one that does not stand in the text like a word."""
    out: list[re.Match[str] | None] = [None] * len(tags)
    after: re.Match[str] | None = None
    for index in range(len(tags) - 1, -1, -1):
        out[index] = after
        match = tags[index]
        if text[match.start() + 1] == "/" or LEAD.match(text, match.end()):
            after = match
    return out


def finish(scan: Scan, at: int) -> None:
    """Close what is open where the text ends, after the tag that its last characters begin."""
    end = len(scan.text)
    scan.run_start = max(scan.run_start, at)
    scan.next_at, scan.following = -1, None
    partial = _PARTIAL_TAG.search(scan.text, max(at, end - 14))
    scan.at, scan.end = partial.start() if partial else end, end
    place_text(scan, None, scan.at)
    if partial:
        tag = completed(scan, partial.group())
        if tag:
            scan.accept(tag)
    scan.at = end
    scan.cut_inside = scan.top
    scan.close_to(0)


def completed(scan: Scan, partial: str) -> Tag | None:
    """Return the tag that the last characters of the text begin, if they can only be a tag."""
    expected = scan.expected()
    if scan.top in (Tag.THINK, Tag.PATH, Tag.OUTLINE, Tag.CONCLUSION):
        closing = Tag(f"</{scan.top.value[1:]}")
        full = scan.has_text(scan.run_start, scan.at) and scan.text[scan.at - 1] == "\n"
        certain = scan.top is Tag.OUTLINE or partial.startswith(closing.value[:3])
        expected = (closing,) if full and certain else ()
    return next((tag for tag in expected if tag.value.startswith(partial)), None)


def place_text(scan: Scan, tag: Tag | None, stop: int) -> None:
    """Make room for the text before `tag`, up to `stop`, where only tags may stand."""
    frame = scan.stack[-1]
    start = scan.run_start
    if frame.kind not in (Tag.PARALLEL, Tag.GOAL) or not scan.has_text(start, stop):
        return
    message = f"text stands where {' or '.join(scan.expected())} was expected"
    if frame.kind is Tag.PARALLEL and not frame.goal and tag is Tag.END_GOAL:
        scan.write(Tag.GOAL, "missing-opening", message, start)
        frame = scan.stack[-1]
    if frame.kind is Tag.GOAL:
        place_outlines(scan, tag, stop, message)
    elif not frame.goal:
        scan.reopen(f"{message}: <Parallel> left out")
    elif frame.conclusion_end:
        if tag is Tag.END_PARALLEL:
            scan.reopen(f"{message}: kept in the conclusion")
        else:
            scan.write(Tag.END_PARALLEL, "missing-closing", message, start)
    elif tag is Tag.END_CONCLUSION:
        scan.write(Tag.CONCLUSION, "missing-opening", message, start)
    elif tag is Tag.END_PATH or scan.label_after(start):
        scan.write(Tag.PATH, "missing-opening", message, start)
    elif frame.path_end:
        scan.reopen(f"{message}: kept in the path before it")
    elif tag is not Tag.PATH:
        scan.write(Tag.PATH, "missing-opening", message, start)


def place_outlines(scan: Scan, tag: Tag | None, stop: int, message: str) -> None:
    """Make outlines of the lines of a goal that stand outside of one."""
    lines = list(_LABEL_LINE.finditer(scan.text, scan.run_start, stop))
    if not lines and tag is not Tag.OUTLINE and not scan.parent.outline_count:
        lines = list(_FULL_LINE.finditer(scan.text, scan.run_start, stop))
    if tag is Tag.END_OUTLINE and not lines:
        scan.write(Tag.OUTLINE, "missing-opening", message, scan.run_start)
    for index, line in enumerate(lines):
        if index:
            scan.write(Tag.END_OUTLINE, "missing-closing", message, line.start())
        scan.write(Tag.OUTLINE, "missing-opening", message, line.start())
    if lines and tag is not Tag.END_OUTLINE:
        scan.write(Tag.END_OUTLINE, "missing-closing", message, stop)
