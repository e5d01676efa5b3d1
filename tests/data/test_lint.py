"""Warnings of labels that are legal but unusual."""

from __future__ import annotations

from traces import CANONICAL

import mvspec
from mvspec.data.check import check_record
from mvspec.data.numbering import numbering_warnings
from mvspec.data.records import Record
from mvspec.errors import Source
from mvspec.forms.multiverse import MULTIVERSE

ODD = CANONICAL.replace("\n2: ", "\n3: ")


def warnings(text: str) -> list[tuple[str, str]]:
    found = numbering_warnings(mvspec.parse(text), Source(text), MULTIVERSE)
    for each in found:
        assert Source(text).position(each.offset) == (each.line, each.column)
    return [(text[each.offset : each.end], each.message) for each in found]


def test_canonical_numbering_is_not_warned_of() -> None:
    assert warnings(CANONICAL) == []


def test_each_block_is_warned_of_once() -> None:
    assert warnings(ODD) == [("3", "outlines are labelled 1, 3: expected 1, 2")]
    inner = CANONICAL.replace("1.1: ", "1: ").replace("1.2: ", "2: ")
    assert warnings(inner) == [("1", "outlines are labelled 1, 2: expected 1.1, 1.2")]


def test_inner_labels_follow_their_path_whatever_it_is_called() -> None:
    moved = CANONICAL.replace("1: Add", "7: Add").replace("\n1: The", "\n7: The")
    moved = moved.replace("1.1: ", "7.1: ").replace("1.2: ", "7.2: ")
    assert warnings(moved) == [("7", "outlines are labelled 7, 2: expected 1, 2")]


def test_numbering_of_json_names_the_node() -> None:
    text = mvspec.parse(ODD).to_json()
    (found,) = check_record(Record("a", text, "json")).diagnostics
    assert found.message.startswith("messages[0].body[0].body[1]: outlines are labelled 1, 3")
