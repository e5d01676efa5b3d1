"""A hole's constraint as a grammar of llguidance: a Lark rule."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from mvspec.errors import Unsupported
from mvspec.tree.ir import Gen

# Unless told so, llguidance leaves one tokenisation of what can be written in one way only.
_HEADER = '%llguidance {"no_forcing": true}\nstart: '

# One-line JSON as Python writes it; in free white space small models go in circles.
_JSON = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

# The parser that `re` itself uses; since Python 3.11 it has no public name.
_parse: Any = importlib.import_module("re._parser").parse

# Its nodes that a grammar cannot hold: they look around, look back, or forbid to try again.
_LACKING = {
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "FAILURE": "look-around",
    "GROUPREF": "back references",
    "GROUPREF_EXISTS": "back references",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
    "AT": "anchors inside a regex",
}

_TYPES = re.ASCII | re.UNICODE | re.LOCALE

# Keywords of a JSON schema that hold schemas, and those that hold them by name.
_SCHEMAS = (
    "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "not", "contains",
    "propertyNames", "if", "then", "else",
)  # fmt: skip
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

# Formats that say what a text is for, and hold no grammar: Pydantic writes them for paths, bytes,
# secrets and the like, and looks at the value when it is there.
_ANNOTATIONS = {
    "path", "file-path", "directory-path", "binary", "base64", "base64url", "base32", "password",
    "json-string", "regex", "color", "byte", "multi-host-uri", "ipvanyaddress",
    "ipvanyinterface", "ipvanynetwork", "ipv4interface", "ipv6interface", "ipv4network",
    "ipv6network", "phone", "name-email",
}  # fmt: skip


def grammar_of(hole: Gen, lead: str) -> str:
    """Return the grammar of a hole's lead and value.

    Raises:
        Unsupported: the regex asks for what is no regular language.
    """
    if hole.json_schema is not None:
        schema = json.loads(hole.json_schema)
        if isinstance(schema, bool):  # one allows everything, the other nothing
            schema = {} if schema else {"enum": []}
        _prepare(schema)
        text = "%json " + json.dumps(schema | {"x-guidance": _JSON})
        return _HEADER + (f"/{_literal(lead)}/ {text}" if lead else text)
    if hole.choices is not None:
        value = "|".join(map(_literal, hole.choices))
    else:
        try:
            tree = _parse(r"(?s:.*)" if hole.regex is None else hole.regex)
            value = _regular(list(tree), tree.state.flags, True, True)
        except _Lacks as lacks:
            raise Unsupported(
                f"hole {hole.name!r}: this engine lacks the capability {str(lacks)!r}: "
                f"write the regex {hole.regex!r} without it, or use choices or a schema"
            ) from None
    return f"{_HEADER}/{_literal(lead)}(?:{value})/"


def unsupported_part(hole: Gen, compiles: Callable[[str], bool]) -> str:
    """Return where in a schema the part stands that a grammar cannot hold; "" where that is not
    one part.

    Args:
        compiles: whether a grammar can be held.
    """
    schema = json.loads(hole.json_schema or "false")
    if not isinstance(schema, dict):
        return ""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    # From the innermost on: what holds a part that fails, fails as well.
    for pointer, part in reversed(list(_places(schema))[:1000]):
        alone = hole.model_copy(update={"json_schema": json.dumps(shared | part)})
        if not compiles(grammar_of(alone, "")):
            return f" (at {pointer})"
    return ""


def _prepare(schema: dict[str, Any]) -> None:
    """Leave annotations out, and forbid properties without a name, where a schema names some.

    What it forbids is junk to whoever wrote the schema, and small models write it without end.
    """
    nodes = [node for _, node in _places(schema)]
    for node in nodes:
        if node.get("format") in _ANNOTATIONS:
            del node["format"]
        elif str(node.get("format", "")).removeprefix("uuid").isdigit():  # of one version
            node["format"] = "uuid"
    for node in nodes:
        # Schemas that hold together must allow each other's properties.
        if "allOf" in node or ("properties" in node and node.keys() & {"$ref", "anyOf", "oneOf"}):
            return
    for node in nodes:
        if "properties" in node and "patternProperties" not in node:
            node.setdefault("additionalProperties", False)


def _places(schema: Any, pointer: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a schema and those in it, each with its JSON pointer."""
    if isinstance(schema, list):
        for index, each in enumerate(schema):
            yield from _places(each, f"{pointer}/{index}")
    elif isinstance(schema, dict):
        yield pointer, schema
        for key in _SCHEMAS:
            yield from _places(schema.get(key), f"{pointer}/{key}")
        for key in _NAMED:
            named = schema.get(key)
            for name, each in named.items() if isinstance(named, dict) else ():
                name = str(name).replace("~", "~0").replace("/", "~1")
                yield from _places(each, f"{pointer}/{key}/{name}")


class _Lacks(Exception):
    """A regex asks for a capability; its name is the message."""


def _literal(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\u{{{ord(c):x}}}" for c in text)


def _regular(items: list[Any], flags: int, starts: bool, ends: bool) -> str:
    """Write a tree of Python's regex parser as a regex without flags or character names.

    llguidance reads Rust's syntax, in which the same text can mean something else: `\\w` there
    holds other characters, `[a&&b]` is an intersection.

    Args:
        items: nodes in a row.
        flags: that hold for them.
        starts, ends: whether the first stands where the value starts, the last where it ends.
    """
    out = []
    for index, (kind, value) in enumerate(items):
        first, last = starts and index == 0, ends and index == len(items) - 1
        match kind.name:
            case "LITERAL" if not flags & re.IGNORECASE:
                out.append(_literal(chr(value)))
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                out.append(_characters(_atom(kind.name, value), flags & ~re.VERBOSE & ~re.DEBUG))
            case "BRANCH":
                # Each branch once: llguidance 1.9.1 fails on some with two equal ones.
                branches = {_regular(list(each), flags, first, last): 0 for each in value[1]}
                out.append(f"(?:{'|'.join(branches)})")
            case "SUBPATTERN":
                _, added, dropped, inner = value
                kept = flags & ~_TYPES if added & _TYPES else flags
                inner = _regular(list(inner), (kept | added) & ~dropped, first, last)
                out.append(f"(?:{inner})")
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, inner = value
                inner = _regular(list(inner), flags, False, False)
                bound = "" if str(most) == "MAXREPEAT" else most
                out.append(f"(?:{inner}){{{least},{bound}}}")
            case "AT" if (first and value.name in ("AT_BEGINNING", "AT_BEGINNING_STRING")) or (
                last and value.name in ("AT_END", "AT_END_STRING")
            ):
                pass  # a full match starts and ends there anyway
            case _:
                raise _Lacks(_LACKING.get(kind.name, kind.name.lower()))
    return "".join(out)


def _atom(kind: str, value: Any) -> str:
    """Write a node that matches one character in Python's syntax."""
    if kind == "ANY":
        return "."
    if kind == "IN":
        inside = ""
        for each, what in value:
            match each.name:
                case "NEGATE":
                    inside += "^"
                case "RANGE":
                    inside += f"\\U{what[0]:08x}-\\U{what[1]:08x}"
                case "CATEGORY":
                    letter = what.name.removeprefix("CATEGORY_")
                    inside += "\\" + (letter[4] if letter.startswith("NOT_") else letter[0].lower())
                case _:
                    inside += f"\\U{what:08x}"
        return f"[{inside}]"
    return f"[{'^' if kind == 'NOT_LITERAL' else ''}\\U{value:08x}]"


@lru_cache(maxsize=256)
def _characters(atom: str, flags: int) -> str:
    """Return the class of the characters that an atom matches: Python is asked about each."""
    codes = np.r_[:0xD800, 0xE000:0x110000]  # all but halves of surrogate pairs
    every = codes.astype("<u4").tobytes().decode("utf-32-le")
    runs = (match.span() for match in re.finditer(f"(?:{atom})+", every, flags))
    ranges = [f"\\u{{{ord(every[i]):x}}}-\\u{{{ord(every[j - 1]):x}}}" for i, j in runs]
    return "[" + "".join(ranges or [r"^\u{0}-\u{10ffff}"]) + "]"
