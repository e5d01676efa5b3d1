"""Chat templates: what stands before an assistant's turn and behind it, in training and in runs.

Whatever asks a model or trains one takes its prompts from here, so that both are the same ids:
the template rendered for the messages before a turn, with its generation prompt. The template's
own arguments, and the time that it takes for now, stand in its first line: they go wherever the
tokenizer goes, and hold for every program that renders it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateError, meta, nodes

from mvspec.errors import Unsupported

# Arguments and the clock


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """Arguments of a chat template, and the time that it takes for now.

    Args:
        arguments: the template's own, as `enable_thinking`; values are JSON's.
        clock: the time that it takes for now, in ISO 8601; None where it asks for no time, or
            is to be given the real one.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    clock: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return them as a manifest has them."""
        return {"arguments": dict(self.arguments), "clock": self.clock}

    def __str__(self) -> str:
        each = (f"{name}={json.dumps(value)}" for name, value in sorted(self.arguments.items()))
        return ", ".join(each) or "none"


_FIRST_LINE = re.compile(r"\{# mvspec: (.*?) #\}.*\n")

_GIVEN = {
    "messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now",
    "range", "dict", "lipsum", "cycler", "joiner", "namespace",
}  # fmt: skip
"""Names that whoever renders a template brings: none is an argument."""


def settings_of(tokenizer: Any) -> TemplateSettings | None:
    """Return what a tokenizer's chat template names in its first line; None where it has none."""
    for text in _texts(tokenizer).values():
        if found := _FIRST_LINE.match(text):
            return TemplateSettings(**json.loads(found[1]))
    return None


def bare_template(tokenizer: Any) -> Any:
    """Return the chat template, or the named ones, without the line that names settings."""
    texts = {name: _FIRST_LINE.sub("", text, count=1) for name, text in _texts(tokenizer).items()}
    given = getattr(tokenizer, "chat_template", None)
    return texts if isinstance(given, dict) else texts.get("")


def asking(tokenizer: Any, arguments: Mapping[str, Any] | None, *, freeze: bool = False) -> Any:
    """Return a tokenizer whose chat template is rendered with these arguments.

    Args:
        tokenizer: of transformers; it is not changed.
        arguments: the template's own; None or none of them for those that it names itself.
        freeze: whether a template that asks for the time gets that of now, from now on.

    Raises:
        Unsupported: the template knows no such argument, or names others in its first line.
    """
    named = settings_of(tokenizer)
    given = dict(arguments or {})
    if given:
        _check_arguments(tokenizer, given)
        if named is not None and dict(named.arguments) != given:
            raise Unsupported(
                f"the chat template is to be rendered with {TemplateSettings(given)}, and its "
                f"folder was made with {named}: give those or none"
            )
    if named is not None:
        return tokenizer
    clock = _now() if freeze and has_clock(tokenizer) else None
    if not given and clock is None:
        return tokenizer
    return with_settings(tokenizer, TemplateSettings(given, clock))


def with_settings(tokenizer: Any, settings: TemplateSettings) -> Any:
    """Return a copy of a tokenizer whose chat template names settings in its first line.

    Raises:
        Unsupported: the template asks for a time in a way that cannot be kept.
    """
    made = copy(tokenizer)
    adopt(made, settings)
    return made


def adopt(tokenizer: Any, settings: TemplateSettings) -> None:
    """Let a tokenizer's chat template name settings in its first line, in place of its own."""
    bare = bare_template(tokenizer)
    if isinstance(bare, dict):
        tokenizer.chat_template = {name: _line(text, settings) for name, text in bare.items()}
    elif bare is not None:
        tokenizer.chat_template = _line(bare, settings)


def _now() -> str:
    return datetime.now().isoformat(timespec="seconds")


def _line(text: str, settings: TemplateSettings) -> str:
    """Return a template below the line that sets its arguments and stops its clock."""
    named = json.dumps(settings.to_dict()).replace("#", "\\u0023")
    written = [
        f"{{% set {name} = {_literal(each)} %}}" for name, each in settings.arguments.items()
    ]
    formats = _formats(text) if settings.clock is not None else frozenset()
    if formats:
        now = datetime.fromisoformat(str(settings.clock))
        times = {each: now.strftime(each) for each in sorted(formats)}
        written.append(f"{{% set strftime_now = {_literal(times)}.get %}}")
    return f"{{# mvspec: {named} #}}{''.join(written)}\n{text}"


def _literal(value: Any) -> str:
    """Return a value of JSON as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def check_request(tokenizer: Any, given: Mapping[str, Any]) -> None:
    """Refuse arguments of one request that are not those that the template names.

    Raises:
        Unsupported: a run with them would ask what was never trained.
    """
    named = settings_of(tokenizer)
    if named is None or not given:
        return
    missing = object()
    known = _known_arguments(tokenizer)
    for name, value in given.items():
        if name in known and named.arguments.get(name, missing) != value:
            raise Unsupported(
                f"the chat template is to be rendered with {name}={json.dumps(value)}, and the "
                f"model's folder was made with {named}: give those or none"
            )


def _known_arguments(tokenizer: Any) -> set[str]:
    known: set[str] = set()
    for text in _texts(tokenizer).values():
        tree = _parsed(text)
        asked = [*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)]
        asked = [each for each in asked if each.name in ("defined", "undefined", "default", "d")]
        defaults = {each.node.name for each in asked if isinstance(each.node, nodes.Name)}
        own = {each.name for each in tree.find_all(nodes.Name) if each.ctx == "store"}
        inner = [each for loop in tree.find_all(nodes.For) for each in loop.find_all(nodes.Assign)]
        for each in tree.find_all(nodes.Assign):
            read = {name.name for name in each.node.find_all(nodes.Name)}
            if isinstance(each.target, nodes.Name) and each.target.name in read:
                defaults |= set() if each in inner else {each.target.name}  # set x = x or 1
        known |= meta.find_undeclared_variables(tree) - (own - defaults)
    return known - _GIVEN - set(getattr(tokenizer, "special_tokens_map", ()))


def _check_arguments(tokenizer: Any, given: Mapping[str, Any]) -> None:
    if not _texts(tokenizer):
        raise Unsupported(f"the tokenizer has no chat template that could take {', '.join(given)}")
    known = _known_arguments(tokenizer)
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise Unsupported(f"the chat template knows no argument {name!r}: it takes {takes}")
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise Unsupported(f"the chat template's argument {name} is no value of JSON: {value!r}")


def _texts(tokenizer: Any) -> dict[str, str]:
    given = getattr(tokenizer, "chat_template", None)
    texts = given if isinstance(given, dict) else {"": given}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


@lru_cache(maxsize=64)
def _parsed(text: str) -> nodes.Template:
    # transformers' own tag around what an assistant writes means nothing here.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", _FIRST_LINE.sub("", text, count=1))
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    try:
        return environment.parse(plain)
    except TemplateError as error:
        raise Unsupported(f"the chat template is no template of Jinja: {error}") from None


def has_clock(tokenizer: Any) -> bool:
    """Whether a chat template asks for the time."""
    return any(_formats(text) for text in _texts(tokenizer).values())


@lru_cache(maxsize=64)
def _formats(text: str) -> frozenset[str]:
    """Return the formats in which a template asks for the time.

    Raises:
        Unsupported: one is not written out.
    """
    if "strftime_now" not in text:
        return frozenset()
    tree = _parsed(text)
    asked = [each for each in tree.find_all(nodes.Name) if each.name == "strftime_now"]
    tested = [each.node for each in tree.find_all(nodes.Test)]
    calls = [each for each in tree.find_all(nodes.Call) if each.node in asked]
    found = [each.args[0].value for each in calls
             if len(each.args) == 1 and isinstance(each.args[0], nodes.Const)]  # fmt: skip
    used = [each for each in asked if not any(each is other for other in tested)]
    if len(found) < len(used):
        raise Unsupported(
            "the chat template asks for the time in a format that it works out, so its clock "
            "cannot be stopped: write the format out as strftime_now('%d %b %Y')"
        )
    return frozenset(found)


# Renderings


class ChatShape(NamedTuple):
    """A conversation but for its contents.

    Args:
        messages: for each its role, whether it has any content, and its further fields as JSON.
        generate: whether the template is to write its generation prompt.
    """

    messages: tuple[tuple[str, bool, str], ...]
    generate: bool

    @property
    def marks(self) -> list[str]:
        """What stands for the contents: digits alone, which no change of letters touches."""
        return [f"9{_NONCE:020}{number:06}9" if filled else ""
                for number, (_, filled, _) in enumerate(self.messages)]  # fmt: skip


_NONCE = secrets.randbelow(10**20)
_MARK = re.compile(f"9{_NONCE:020}([0-9]{{6}})9")
_WHOLE_LIST = re.compile(f"""['"]text['"]: *['"]9{_NONCE:020}""")


class MarkedChat(NamedTuple):
    """A conversation as a template writes it, whatever its contents.

    Args:
        pieces: texts of the template, and numbers of messages, in the order of the text.
        parts: whether the template takes a content as a list of parts only.
    """

    pieces: tuple[str | int, ...]
    parts: bool

    def filled(self, contents: Sequence[str], start: int = 0, stop: int | None = None) -> str:
        """Return the text of some pieces with contents in the places of messages."""
        return "".join(each if isinstance(each, str) else contents[each]
                       for each in self.pieces[start:stop])  # fmt: skip


@dataclass(frozen=True)
class ChatRenderer:
    """A chat template, chosen and with its clock stopped; equal ones render alike.

    Args:
        text: the template.
        tokens: the tokenizer's special tokens, as JSON; "" of what is none of transformers'.
        tools: descriptions of the tools, as JSON.
        tokenizer: whose `apply_chat_template` renders.
    """

    text: str
    tokens: str
    tools: str
    tokenizer: Any = field(compare=False)

    @classmethod
    def of(cls, tokenizer: Any, tools: Sequence[Any]) -> ChatRenderer:
        """Return the one that a tokenizer uses where there are these tools.

        Raises:
            Unsupported: of several templates none is the one.
        """
        text = tokenizer.chat_template
        if isinstance(text, dict):
            try:
                text = tokenizer.get_chat_template(tools=list(tools) or None)
            except ValueError as error:
                raise Unsupported(f"chat template: {error}") from None
        try:
            if not _FIRST_LINE.match(text) and _formats(text):
                # Else the time would go on between two renderings of one conversation.
                text = _line(text, TemplateSettings({}, _now()))
        except Unsupported:
            pass  # rendering says what is wrong, and a time that is worked out goes on
        known = getattr(tokenizer, "special_tokens_map", None)
        tokens = "" if known is None else json.dumps(known, default=str)
        return cls(text, tokens, json.dumps(tools, default=str), tokenizer)

    @property
    def times(self) -> list[str]:
        """What the template says of now, in each of its formats."""
        found = _FIRST_LINE.match(self.text)
        if not (clock := found and json.loads(found[1])["clock"]):
            return []
        return [datetime.fromisoformat(clock).strftime(each) for each in _formats(self.text)]

    def render(
        self,
        shape: ChatShape,
        contents: Sequence[str],
        *,
        parts: bool = False,
        without: str | None = None,
    ) -> str:
        """Return a conversation as the template writes it.

        Args:
            contents: of the shape's messages.
            parts: write each as a list of one part.
            without: "tools" or "tool_calls", which are left out.

        Raises:
            Unsupported: the template refuses it.
        """
        chat = []
        for (role, _, fields), content in zip(shape.messages, contents, strict=True):
            given = [{"type": "text", "text": content}] if parts else content
            chat.append({"role": role, "content": given, **json.loads(fields)})
            chat[-1].pop(without, None)
        tools = None if without == "tools" else json.loads(self.tools) or None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=self.text, tokenize=False,
                    add_generation_prompt=shape.generate, tools=tools,
                )
            )  # fmt: skip
        except Exception as error:  # a template may do anything
            roles = ", ".join(role for role, _, _ in shape.messages)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unsupported(f"the chat template refuses the turns {roles}: {reason}") from None

    def cut(self, shape: ChatShape) -> MarkedChat:
        """Render a conversation around marks, and cut it there.

        Raises:
            Unsupported: the template refuses it, writes a message twice, or nothing of tools or
                calls.
        """
        # A server's own rendering may depend on what is not seen here.
        return _cut_once(self, shape) if self.tokens else _cut(self, shape)


def _cut(renderer: ChatRenderer, shape: ChatShape) -> MarkedChat:
    marks = shape.marks
    wanted = sum(map(bool, marks))
    found: list[tuple[int, MarkedChat, str]] = []
    refused: Unsupported | None = None
    for parts in (False, True):  # some templates take a content as a list of parts only
        try:
            text = renderer.render(shape, marks, parts=parts)
        except Unsupported as error:
            refused = refused or error
            continue
        if parts and _WHOLE_LIST.search(text):
            continue  # the list itself was written, as Python or as JSON
        between = _MARK.split(text)
        pieces = [int(each) if at % 2 else each for at, each in enumerate(between)]
        made = MarkedChat(tuple(each for each in pieces if each != ""), parts)
        found.append((len(between) // 2, made, text))
        if found[-1][0] >= wanted:
            break
    if not found:
        raise refused or Unsupported("the chat template writes nothing")
    _, cut, text = max(found, key=lambda each: each[0])
    for number, (role, _, _) in enumerate(shape.messages):
        if (times := cut.pieces.count(number)) > 1:
            raise unwritten(role, times)
    calls = any("tool_calls" in fields for _, _, fields in shape.messages)
    for what, given in (("tools", renderer.tools != "[]"), ("tool_calls", calls)):
        if given and renderer.render(shape, marks, parts=cut.parts, without=what) == text:
            name = "the tools" if what == "tools" else what
            raise Unsupported(f"the chat template writes nothing of {name}: use one that does")
    return cut


_cut_once = lru_cache(maxsize=512)(_cut)


def unwritten(role: str, times: int) -> Unsupported:
    """Return the error of a template that does not write a message once."""
    return Unsupported(
        f"the chat template writes the {role} message {times} times: "
        "set tokenizer.chat_template to one that writes every message once"
    )


def apart(one: str, other: str) -> str:
    """Return two renderings from where they differ on, one beside the other.

    >>> apart("<user>How?<assistant>", "<user>How?<assistant><think>")
    "'<user>How?<assistant>' and '<user>How?<assistant><think>'"
    """
    shorter = min(len(one), len(other))
    at = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    first = max(at - 32, 0)
    return " and ".join(
        repr("…" * (first > 0) + each[first : at + 32] + "…" * (len(each) > at + 32))
        for each in (one, other)
    )
