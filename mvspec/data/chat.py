"""Chats: messages of role and content, or of from and value, as turns of a document.

Nothing that means something is dropped. Thoughts become a `Think`; what a template renders for
context (calls of tools, names) and which turns carry no loss travel beside the document in a
`ChatContext`; a field that nobody knows is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mvspec.data.columns import RowError, kind_of
from mvspec.forms import parse
from mvspec.tree import builder
from mvspec.tree.ir import Document, Message, Role, Think
from mvspec.tree.node import Node

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip

_THOUGHTS = ("reasoning_content", "thinking")
_TEMPLATE = ("name", "tool_calls", "tool_call_id")
"""Fields that a chat template renders."""


@dataclass(frozen=True, slots=True)
class ChatContext:
    """The part of a chat that its document does not hold, for chat templates and for training.

    Args:
        tools: descriptions of the tools that the model may call.
        fields: by number of the message, what else the template renders of it, as `tool_calls`.
        no_loss: numbers of the assistant's messages that carry no loss.
        turns: how many messages there are.
    """

    tools: tuple[Any, ...] = ()
    fields: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    no_loss: frozenset[int] = frozenset()
    turns: int = 0

    def behind(self, before: ChatContext) -> ChatContext:
        """Return the context of two chats, this one behind the other."""
        fields = {number + before.turns: each for number, each in self.fields.items()}
        no_loss = frozenset(number + before.turns for number in self.no_loss)
        return ChatContext(
            before.tools + self.tools,
            {**before.fields, **fields},
            before.no_loss | no_loss,
            before.turns + self.turns,
        )


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a chat.

    Args:
        role: as a document has it.
        text: its content.
        number: of the message in the chat.
        field: that has the content.
        thoughts: the reasoning before the content, where it has a field of its own.
        thoughts_field: that field.
        fields: what else a template renders.
        loss: whether it carries loss, if it is the assistant's.
        where: the message's address, as `messages[1]`.
    """

    role: Role
    text: str
    number: int = 0
    field: str = "content"
    thoughts: str | None = None
    thoughts_field: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: bool = True
    where: str = ""


def is_chat(value: Any) -> bool:
    """Whether a value means to be a list of messages and not of a document's.

    >>> is_chat([{"role": "user", "content": "Hi"}]), is_chat([{"from": "human", "value": "Hi"}])
    (True, True)
    >>> is_chat([{"role": "user", "body": []}])
    False
    """
    return isinstance(value, list) and any(
        isinstance(each, dict)
        and (
            ("role" in each and ("content" in each or "tool_calls" in each))
            or ("from" in each and "value" in each)
        )
        for each in value
    )


def chat_turns(
    messages: Sequence[Any], name: str = "messages", first: int = 0
) -> Iterator[ChatTurn]:
    """Yield the turns of a chat.

    Args:
        messages: objects of role and content, or of from and value.
        name: what addresses call the list; `first` is the number of its first message.

    Raises:
        RowError: a message lacks its text, or has a field that nobody knows.

    >>> [turn.role for turn in chat_turns([{"from": "human", "value": "Hi"}])]
    ['user']
    """
    for number, each in enumerate(messages, first):
        where = f"{name}[{number}]"
        if not isinstance(each, Mapping):
            raise RowError(where, "not-a-document", f"it is {kind_of(each)}, not a message")
        # Tables give every message every field; what is empty is not there.
        given = {key: value for key, value in each.items() if value not in (None, [], {})}
        who = given.pop("role", given.pop("from", None))
        if not isinstance(who, str) or who not in _ROLES:
            known = "system, user, assistant or tool"
            raise RowError(where, "role", f"its role is {who!r}: expected {known}")
        role = cast(Role, _ROLES[who])
        key = "value" if "value" in each and "content" not in each else "content"
        content = given.pop(key, None)
        if content is None and given.get("tool_calls"):
            content = ""
        text = _joined(content)
        if text is None:
            reason = f"it is {kind_of(content) if key in each else 'missing'}, not a string"
            raise RowError(f"{where}.{key}", "not-a-string", reason)
        has = [each for each in _THOUGHTS if role == "assistant" and each in given]
        thoughts = given.pop(has[0]) if has else None
        if thoughts is not None and not isinstance(thoughts, str):
            raise RowError(where, "not-a-string", f"its {has[0]} is {kind_of(thoughts)}")
        loss = _loss(given, where)
        fields = {field: given.pop(field) for field in _TEMPLATE if field in given}
        if given:
            unknown = ", ".join(map(repr, given))
            reason = f"it has {unknown}, and what that means is not known: take it out"
            raise RowError(where, "unknown-field", reason)
        if loss and role == "assistant" and "tool_calls" in fields:
            reason = (
                "the message calls tools and carries loss, and how a call is written is the "
                "template's: give it weight 0, or write the call into its content"
            )
            raise RowError(f"{where}.tool_calls", "tool-calls", reason)
        yield ChatTurn(
            role, text, number, key, thoughts, has[0] if has else "", fields, loss, where
        )


def _joined(content: Any) -> str | None:
    """Return a content as one text: parts of type text are joined."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _loss(given: dict[str, Any], where: str) -> bool:
    weight, train = given.pop("weight", 1), given.pop("train", True)
    if weight not in (0, 1) or not isinstance(train, bool):
        raise RowError(where, "weight", "a turn carries loss or none: weight is 0 or 1")
    return bool(weight) and train


def turn_message(turn: ChatTurn, body: Callable[[str, str], Iterable[Node]]) -> Message:
    """Return a turn as a message of a document.

    Args:
        body: reads an assistant's text; its second argument is the text's address.
    """
    if turn.role != "assistant":
        return builder.message(turn.role, turn.text)
    inside: tuple[Node, ...] = ()
    if turn.thoughts is not None:
        thoughts = tuple(body(turn.thoughts, f"{turn.where}.{turn.thoughts_field}"))
        inside = (Think.build(body=thoughts),)
    inside += tuple(body(turn.text, f"{turn.where}.{turn.field}"))
    return Message.build(role="assistant", body=inside)


def document(*messages: Message | Mapping[str, Any], describe: bool = False) -> Document:
    """Return a conversation of these messages.

    Args:
        messages: made with `user(...)`, `assistant(...)` and so on, or messages of a chat as
            objects of role and content; an assistant's content is in the form multiverse.
        describe: whether the user's message before an assistant's turn tells the model what is
            asked of the turn's holes: their schemas, choices and patterns.

    Raises:
        ParseError: a content is malformed.
        VerifyError: a message has no text, or a field that nobody knows; no user's message stands
            before holes that are to be described.

    >>> made = document({"role": "user", "content": "2 + 2?"}, builder.assistant("4"))
    >>> [message.role for message in made.messages]
    ['user', 'assistant']
    """

    def body(text: str, address: str) -> Iterable[Node]:
        return (item for each in parse(text, name=address).messages for item in each.body)

    made = list(messages)
    for number, each in enumerate(messages):
        if isinstance(each, Mapping):
            (turn,) = chat_turns([each], first=number)
            made[number] = turn_message(turn, body)
    return builder.document(*made, describe=describe)  # type: ignore[arg-type]
