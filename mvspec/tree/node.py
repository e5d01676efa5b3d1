"""Base of the nodes of a document: they compare, hash, walk, map, fold and print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Self, TypeVar, overload

from pydantic import BaseModel, ConfigDict, ValidationError

from mvspec.errors import VerifyError
from mvspec.shown import REPR_LIMIT, as_html, as_rich, as_text, excerpt

T = TypeVar("T")
N = TypeVar("N", bound="Node")


class Node(BaseModel):
    """An immutable node of a document.

    >>> from mvspec import Path, branch, parallel
    >>> block = parallel(branch("Cost", "Low."), branch("Speed", "High."), conclusion="Buy.")
    >>> [path.label for path in block.walk(Path)]
    ['1', '2']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __eq__(self, other: object) -> bool:
        # Fields only: what travels beside a document (a hole's Python class) is not its meaning.
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, f) == getattr(other, f) for f in field_names(type(self)))

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, f) for f in field_names(type(self)))))

    @property
    def children(self) -> tuple[Node, ...]:
        """The nodes directly inside this one, in the order of the surface form."""
        out: list[Node] = []
        for field in field_names(type(self)):
            value = getattr(self, field)
            if isinstance(value, Node):
                out.append(value)
            elif isinstance(value, tuple):
                out += (item for item in value if isinstance(item, Node))
        return tuple(out)

    def addressed_children(self) -> Iterator[tuple[str, Node]]:
        """Yield `children` with where each stands in this node, such as `body[1]`."""
        for field in field_names(type(self)):
            value = getattr(self, field)
            if isinstance(value, Node):
                yield field, value
            elif isinstance(value, tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Node):
                        yield f"{field}[{index}]", item

    @overload
    def walk(self) -> Iterator[Node]: ...
    @overload
    def walk(self, kind: type[N]) -> Iterator[N]: ...
    def walk(self, kind: type[Any] | None = None) -> Iterator[Any]:
        """Yield this node and all below it, parents first, in surface order.

        Args:
            kind: yield only nodes of this class.
        """
        # Generators inside each other would hand every node up through all levels.
        waiting: list[Node] = [self]
        while waiting:
            node = waiting.pop()
            if kind is None or isinstance(node, kind):
                yield node
            waiting += reversed(node.children)

    def addresses(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Yield (address, node) as `walk` does, with addresses like `messages[0].body[1]`."""
        yield prefix, self
        for step, child in self.addressed_children():
            yield from child.addresses(f"{prefix}.{step}" if prefix else step)

    def fold(self, function: Callable[[Node, tuple[T, ...]], T]) -> T:
        """Reduce the tree from the leaves up: `function(node, results of its children)`."""
        return function(self, tuple(child.fold(function) for child in self.children))

    def map(self, function: Callable[[Node], Node | tuple[Node, ...] | None]) -> Self:
        """Return a copy with every node below this one replaced by `function(node)`.

        Children are replaced before their parents. Inside a tuple, a returned tuple is spliced
        in and None removes the node; texts that come to touch are joined, with a newline
        where None removed something between them. The copy is verified like any other tree.

        Raises:
            VerifyError: the new tree breaks an invariant.
        """
        fields: dict[str, Any] = {}
        changed = False
        for field in field_names(type(self)):
            value = getattr(self, field)
            new: Any = value
            if isinstance(value, Node):
                new = function(value.map(function))
            elif isinstance(value, tuple) and any(isinstance(item, Node) for item in value):
                new = self._map_items(value, function)
            fields[field] = new
            changed |= new is not value
        return type(self).build(**fields) if changed else self

    @staticmethod
    def _map_items(
        items: tuple[Any, ...], function: Callable[[Node], Node | tuple[Node, ...] | None]
    ) -> tuple[Any, ...]:
        out: list[Any] = []
        removed = False
        for item in items:
            result = function(item.map(function))
            if result is None:
                removed = True
                continue
            for new in result if isinstance(result, tuple) else (result,):
                joined = new.joined(out[-1], "\n" if removed else "") if out else None
                if joined is not None:
                    out.pop()
                out.append(new if joined is None else joined)
                removed = False
        if len(out) == len(items) and all(a is b for a, b in zip(out, items, strict=True)):
            return items
        return tuple(out)

    def joined(self, before: Node, glue: str) -> Node | None:
        """Return the one node that this and the node before it make; None where both stay."""
        return None

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Make a node, as its constructor does, with errors that say where and how to fix it.

        Raises:
            VerifyError: an invariant is broken.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise verify_error(error) from None

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Make a node of fields that a reader has checked: all of them, and none is verified.

        Verifying is most of the time of parsing lines; law 1 holds the result equal to what the
        constructor makes.
        """
        node = cls.__new__(cls)
        object.__setattr__(node, "__dict__", fields)
        object.__setattr__(node, "__pydantic_fields_set__", set(fields))
        object.__setattr__(node, "__pydantic_extra__", None)
        object.__setattr__(node, "__pydantic_private__", None)
        return node

    def __repr__(self) -> str:
        return excerpt(super().__repr__(), REPR_LIMIT)

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        return as_rich(self)

    def _repr_html_(self) -> str:
        return as_html(self)


@cache
def field_names(kind: type[Node]) -> tuple[str, ...]:
    """Return the names of a class's fields; pydantic makes its own mapping anew each time."""
    return tuple(kind.model_fields)


def verify_error(error: ValidationError) -> VerifyError:
    """Turn pydantic's report into one error that names the first bad place in the tree."""
    first, *rest = error.errors(include_url=False, include_input=False)
    address = ""
    before: int | str = ""
    for step in first["loc"]:
        if isinstance(step, int):
            address += f"[{step}]"
        elif isinstance(before, str) or step not in _KINDS:
            # Pydantic puts the union's tag among the steps, after an index.
            address += f".{step}" if address else step
        before = step
    message = first["msg"].removeprefix("Value error, ")
    if rest:
        message += f" (and {len(rest)} more)"
    return VerifyError(address, message)


_KINDS = frozenset({"text", "gen", "parallel", "think"})
