"""The house itself: one way of imports, unique names, composed classes, docstrings, its size."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("mvspec", "compiler", "runtime", "curation", "training")
BASES = {"Node", "_Op", "MvspecError", "Exception", "Protocol"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the product by its import name."""
    found: dict[str, ast.Module] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "mvspec" else ("mvspec", *parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


@cache
def classes() -> dict[str, list[tuple[str, ast.ClassDef]]]:
    """Every class at the top of a module, by name."""
    found: dict[str, list[tuple[str, ast.ClassDef]]] = defaultdict(list)
    for name, module in modules().items():
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append((name, node))
    return found


def imports(name: str) -> set[str]:
    """The modules that a module imports: at its top, in functions, and for types only."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return (found & modules().keys()) - {name}


def circles() -> Iterator[list[str]]:
    """Strongly connected groups of modules, by Tarjan's algorithm."""
    graph = {name: imports(name) for name in modules()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                yield sorted(group)

    for name in sorted(graph):
        if name not in index:
            yield from visit(name)


def test_no_import_goes_round_in_a_circle() -> None:
    assert list(circles()) == []


def test_public_classes_have_names_of_their_own() -> None:
    twice = {
        name: [module for module, _ in found]
        for name, found in classes().items()
        if len(found) > 1 and not name.startswith("_")
    }
    assert twice == {}


def ancestors(node: ast.ClassDef) -> set[str]:
    """Names of a class's bases, and of theirs where they are ours."""
    found: set[str] = set()
    for base in node.bases:
        target = base.value if isinstance(base, ast.Subscript) else base
        name = getattr(target, "id", "")  # `torch.optim.Optimizer` is not ours
        found.add(name)
        for _, ours in classes().get(name, ()):
            found |= ancestors(ours)
    return found


def test_classes_are_composed_and_not_cut() -> None:
    """A class of ours derives from ours only where it is a node, op, error or protocol."""
    cut = []
    for name, found in classes().items():
        for module, node in found:
            ours = [base for base in ancestors(node) if base in classes()]
            allowed = ancestors(node) | {node.name}
            if ours and not allowed & BASES:
                cut.append(f"{module}.{name}({', '.join(ours)})")
    assert cut == []


def test_no_attribute_of_a_package_hides_a_module() -> None:
    hidden = []
    for name, module in modules().items():
        below = {
            other.removeprefix(f"{name}.").split(".")[0]
            for other in modules()
            if other.startswith(f"{name}.")
        }
        bound = {alias.asname or alias.name for node in module.body
                 if isinstance(node, ast.ImportFrom) for alias in node.names
                 if f"{node.module}.{alias.name}" not in modules()}  # fmt: skip
        bound |= {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        hidden += [f"{name}.{each}" for each in sorted(below & bound)]
    assert hidden == []


@pytest.mark.parametrize("kind", ["modules", "classes and functions"])
def test_docstrings_name_the_thing_first(kind: str) -> None:
    vague = re.compile(r"(?:What|Who|Where|How|Why|When|Whose|Which)\b")
    wrong: list[str] = []
    for name, module in modules().items():
        if kind == "modules":
            said = ast.get_docstring(module) or ""
            if vague.match(said) or (not said and module.body):
                wrong.append(f"{name}: {said.splitlines()[0] if said else 'no docstring'}")
            continue
        for node in module.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name[0] == "_":
                continue
            said = ast.get_docstring(node) or ""
            # An overload, and a rule of a table, are described where they are gathered.
            if vague.match(said) or not (said or node.decorator_list):
                wrong.append(f"{name}.{node.name}: {said.splitlines()[0] if said else 'none'}")
    assert wrong == []


def test_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    known = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)]
    assert not missing
    assert len(named) > 40
