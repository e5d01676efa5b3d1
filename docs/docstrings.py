"""What griffe cannot see by itself in the docstrings and classes of this project: its extension."""

from __future__ import annotations

from typing import Any

import griffe

MODELS = {"BaseModel", "Node", "_Record"}
"""Names of the Pydantic classes that others derive from."""


class Reference(griffe.Extension):
    """Shows doctests as code, and a Pydantic model's fields as its parameters."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the doctests of a docstring, which are paragraphs of their own."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a Pydantic model the signature of its constructor."""
        if any(str(base).split(".")[-1] in MODELS for base in cls.bases):
            fields = [field for field in cls.attributes.values() if is_field(field)]
            first = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
            parameters = griffe.Parameters(first, *map(parameter, fields))
            if fields:
                init = griffe.Function("__init__", parameters=parameters, lineno=0, endlineno=0)
                cls.set_member("__init__", init)


def fenced(text: str) -> str:
    """Return a docstring with each paragraph that begins with a prompt as a block of code.

    >>> fenced("Add.\\n\\n>>> 1 + 1\\n2")
    'Add.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"```pycon\n{part}\n```" if part.startswith(">>> ") else part for part in paragraphs
    )


def is_field(attribute: griffe.Attribute) -> bool:
    """Tell whether an attribute of a Pydantic model is a field of it."""
    kind = str(attribute.annotation or "")
    other = attribute.name.startswith("_") or attribute.name == "kind" or "ClassVar" in kind
    return bool(kind) and not other and "property" not in attribute.labels


def parameter(field: griffe.Attribute) -> griffe.Parameter:
    """Return the parameter of a constructor that sets a field."""
    return griffe.Parameter(
        field.name,
        annotation=field.annotation,
        kind=griffe.ParameterKind.keyword_only,
        default=default(field),
    )


def default(field: griffe.Attribute) -> griffe.Expr | str | None:
    """Return the default of a field: its value, or what `Field` is given."""
    value = field.value
    if isinstance(value, griffe.ExprCall) and str(value.function) == "Field":
        given = {
            argument.name: argument.value
            for argument in value.arguments
            if isinstance(argument, griffe.ExprKeyword)
        }
        if "default_factory" in given:
            return f"{given['default_factory']}()"
        return given.get("default")
    return value
