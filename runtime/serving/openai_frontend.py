"""The OpenAI frontend: tags in texts from outside are plain characters, and fork nothing.

It works in the process that answers HTTP. Tags are special tokens, so SGLang's own tokenising
would let a user's text hold live ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

from mvspec.compiler.chat_template import check_request
from mvspec.compiler.planning import plan_document
from mvspec.compiler.vocabulary import Vocabulary, has_tags
from mvspec.errors import MvspecError, ParseError
from mvspec.forms import parse
from mvspec.law.tags import TAG
from mvspec.runtime.options import Options
from mvspec.runtime.serving.adaptive_requests import seed_of
from mvspec.runtime.serving.protocol import KEY, PlanPayload
from mvspec.tree.builder import message
from mvspec.tree.ir import Document, Message

_RENDERED = {"messages", "tools", "tool_choice", "chat_template_kwargs", "response_format"}
"""Fields of a chat whose texts may come into its prompt."""

_MOST_CHOICES = 1024

_BOUNDS = {"top_k": 1 << 31, "logit_bias": 1e38}
"""What numbers are below that SGLang makes tensors of; not a number is not."""

_JSON: Any = str | int | float | dict
_SCALARS = ("logprob_start_len", "top_logprobs_num")
_GRAMMARS = {"json_schema", "regex", "ebnf", "structural_tag"}
_SWITCHES = {"skip_special_tokens", "spaces_between_special_tokens"}


class OpenAIFrontend:
    """The plugin in one process that answers HTTP; used where requests fork by themselves."""

    def __init__(self) -> None:
        self._known: tuple[Any, Vocabulary | None] = None, None

    def _vocabulary(self, tokenizer: Any) -> Vocabulary | None:
        """Return the vocabulary of the server's tokenizer; None where it has no tags."""
        if self._known[0] is not tokenizer:
            tagged = tokenizer is not None and has_tags(tokenizer)
            self._known = tokenizer, Vocabulary.of(tokenizer) if tagged else None
        return self._known[1]

    # Prompts as text

    def prompt(self, manager: Any, request: Any, *args: Any, **kw: Any) -> None:
        """Let tags in a prompt's text be plain characters, and n choices of one seed differ.

        Raises:
            ValueError: it asks for what would end the server; SGLang answers with status 400.
        """
        _check_fields(request, manager.model_config.vocab_size)
        _seed_each_choice(request)
        text = getattr(request, "text", None)
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            return
        vocabulary = self._vocabulary(manager.tokenizer)
        if vocabulary is None or not any(map(TAG.search, texts)):
            return
        ids = [_plain(each, manager.tokenizer, vocabulary) for each in texts]
        request.text = None
        request.input_ids = ids[0] if isinstance(text, str) else ids

    # Chats

    def chat(
        self, original: Callable[..., Any], serving: Any, request: Any, raw: Any = None
    ) -> Any:
        """Tokenise a chat whose texts hold tags by the law, instead of as one plain text.

        Raises:
            ValueError: the request is at fault; SGLang answers with status 400.
        """
        tokenizer = serving.tokenizer_manager.tokenizer
        try:
            check_request(tokenizer, request.chat_template_kwargs or {})
        except MvspecError as error:
            raise ValueError(str(error)) from None
        vocabulary = self._vocabulary(tokenizer)
        as_text = _history(raw) == "text"
        contents = [_content(each) for each in request.messages]
        if vocabulary is None or not TAG.search(request.model_dump_json(include=_RENDERED)):
            return original(serving, request, raw)
        marked = request.model_copy(deep=True)
        for each in marked.messages:
            each.content = ""
        if TAG.search(marked.model_dump_json(include=_RENDERED)):
            raise ValueError("tags may stand in the text of messages only: not in tools or names")
        last = request.messages[-1] if request.messages else None
        goes_on = request.continue_final_message and last is not None and last.role == "assistant"
        if goes_on and TAG.search(contents[-1]):
            raise ValueError("continue_final_message does not work with tags in that message")
        turns = _turns(request.messages, contents, as_text=as_text)
        document = Document(messages=tuple(turns))
        rendering = _Rendering(partial(original, serving, marked, raw), marked, vocabulary)
        law = copy(vocabulary)
        law.source = rendering
        try:
            plan = plan_document(document, law, template=True)
            ids, payload = PlanPayload.of(plan, Options(), live=False)
        except MvspecError as error:
            raise ValueError(str(error)) from None
        adapted, _ = rendering.made
        adapted.text, adapted.input_ids = None, ids
        if len(payload.ops) > 1:
            custom = dict(adapted.sampling_params.get("custom_params") or {})
            unasked = payload.model_copy(update={"unasked": True, "document": None})
            custom[KEY] = unasked.model_dump_json()
            adapted.sampling_params["custom_params"] = custom
        return adapted, request


class _Rendering:
    """The server's own rendering of a chat, in the place of a tokenizer's."""

    chat_template = "the server's"

    def __init__(self, render: Callable[[], Any], request: Any, vocabulary: Vocabulary) -> None:
        self.backend_tokenizer = vocabulary.backend
        self.made: tuple[Any, Any] = None, None
        self._render = render
        self._request = request
        self._messages = list(request.messages)
        self._decode = vocabulary.decode

    def apply_chat_template(self, chat: Sequence[dict[str, str]], **_: Any) -> str:
        """Return the chat as text; the server adds the beginning of the answer."""
        self._request.messages = self._messages[: len(chat)]
        for each, given in zip(self._request.messages, chat, strict=True):
            each.content = given["content"]
        self.made = self._render()
        adapted = self.made[0]
        text = adapted.text if adapted.input_ids is None else self._decode(adapted.input_ids)
        return str(text)


def _content(each: Any) -> str:
    """Return a message's text; several parts as SGLang joins them."""
    content = each.content
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(part.text for part in content if getattr(part, "type", "") == "text")


def _history(raw: Any) -> str:
    """Return how a chat's client wants earlier turns read: "strict", or "text" where they fail.

    The client says so in a field that SGLang's own model of a request leaves out.

    Raises:
        ValueError: it says something else.
    """
    body: bytes = getattr(raw, "_body", None) or b""
    told = json.loads(body).get(KEY) if f'"{KEY}"'.encode() in body else None
    if told is None:
        return "strict"
    if not isinstance(told, Mapping) or set(told) - {"history"}:
        raise ValueError(f'{KEY} is an object with "history" in it, not {json.dumps(told)[:80]}')
    asked = told.get("history", "strict")
    if asked not in ("strict", "text"):
        raise ValueError(f'{KEY}.history is "strict" or "text", not {json.dumps(asked)[:80]}')
    return str(asked)


def _check_fields(request: Any, vocabulary: int) -> None:
    """Refuse what SGLang itself takes, and dies of in its scheduler or detokenizer.

    Raises:
        ValueError: by the name of the field.
    """
    given = getattr(request, "sampling_params", None)
    for params in given if isinstance(given, list) else [given]:
        for name, value in params.items() if isinstance(params, dict) else ():
            if name in _BOUNDS and not all(each < _BOUNDS[name] for each in _numbers(value)):
                expected = f"below {_BOUNDS[name]}"
            elif name in ("max_new_tokens", "min_new_tokens") and isinstance(value, float):
                expected = "a whole number"
            elif name in _GRAMMARS and not isinstance(value, str | None):
                expected = "a string"
            elif name in _SWITCHES and not isinstance(value, bool | None):
                expected = "true or false"
            elif name == "is_normalized" and value:
                expected = "a client's to say"
            else:
                continue
            raise ValueError(f"{name}: {str(value)[:80]} is not {expected}")
    if any(abs(each) >= 1 << 31 for each in _numbers(getattr(request, "priority", None))):
        raise ValueError(f"priority: {request.priority} is not a number of 32 bits")
    batch = isinstance(getattr(request, "text", None), list) or isinstance(
        next(iter(getattr(request, "input_ids", None) or ()), None), list
    )
    for name in _SCALARS:
        if not batch and isinstance(getattr(request, name, None), list):
            raise ValueError(f"{name} is a list, and the request one prompt")
    if isinstance(getattr(request, "positional_embed_overrides", None), _JSON):
        raise ValueError("positional_embed_overrides hold tensors, which no JSON is")
    tops = _numbers(getattr(request, "top_logprobs_num", None))
    if tops and max(tops) > vocabulary:
        raise ValueError(
            f"{max(tops)} likeliest tokens were asked for, and the vocabulary has {vocabulary}: "
            "ask for fewer"
        )


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a field: it, or those in it."""
    if isinstance(value, dict):
        value = list(value.values())
    each = value if isinstance(value, list) else [value]
    return [one for one in each if isinstance(one, int | float)]


def _seed_each_choice(request: Any) -> None:
    """Give each of n choices a seed of its own, which follows from the request's and its number.

    SGLang would send n requests with the one seed, and these would draw the same tokens.
    """
    params = getattr(request, "sampling_params", None)
    prompts = request.text if getattr(request, "text", None) is not None else request.input_ids
    if not isinstance(params, dict) or not prompts:
        return
    custom = params.get("custom_params")
    if isinstance(custom, dict) and KEY in custom:
        return
    count, seed = params.get("n"), params.get("sampling_seed")
    if not (isinstance(count, int) and isinstance(seed, int) and 1 < count <= _MOST_CHOICES):
        return
    each = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
    every = [prompt for prompt in each for _ in range(count)]
    if request.text is not None:
        request.text = every
    else:
        request.input_ids = every
    request.sampling_params = [
        params | {"n": 1, "sampling_seed": seed if not number else seed_of(f"{seed}/{number}")}
        for _ in each
        for number in range(count)
    ]


def _turns(
    messages: Sequence[Any], contents: Sequence[str], *, as_text: bool = False
) -> Iterator[Message]:
    """Yield the turns of a chat; an assistant's text that holds tags is a tree.

    Args:
        as_text: whether one that does not parse is plain characters.

    Raises:
        ValueError: it does not parse.
    """
    for index, (each, text) in enumerate(zip(messages, contents, strict=True)):
        if each.role != "assistant" or index == len(messages) - 1:
            # The server renders the roles; here they only say what comes from outside. A last
            # message of the assistant's is a question to SGLang, or text to go on with.
            yield message("user", text)
        elif not TAG.search(text):
            yield message("assistant", text)
        else:
            try:
                yield parse(text, name=f"messages[{index}].content").messages[0]
            except ParseError as error:
                if as_text:
                    yield message("user", text)
                    continue
                raise ValueError(
                    f"an assistant's text with tags has to be well-formed: {error}; with "
                    f'"{KEY}": {{"history": "text"}} in the request it is read as plain characters'
                ) from None


def _plain(text: str, tokenizer: Any, vocabulary: Vocabulary) -> list[int]:
    """Return the ids of a prompt as SGLang makes them, but for its tags."""
    at = 0
    ids: list[int] = []
    for found in TAG.finditer(text):
        part = text[at : found.start()]
        ids += vocabulary.encode(part) if at else tokenizer.encode(part)
        ids += vocabulary.encode_outside(found[0])
        at = found.end()
    return ids + (vocabulary.encode(text[at:]) if at else tokenizer.encode(text))
