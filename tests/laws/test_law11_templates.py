"""Law 11: the tokens before an answer are, id for id, what a run asks, and its end is taught."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from zoo import CONVERSATIONS, HAND_MADE, TRL, template_tokenizer

from mvspec.compiler import compile_rows, plan_document
from mvspec.compiler.chat_template import asking
from mvspec.compiler.plan import Extend
from mvspec.compiler.stages import Stages
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.records import Record
from mvspec.errors import MvspecError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.runtime.protocol import plan_for
from mvspec.tree.ir import Document, Message


def reading(row: dict[str, Any]) -> Any:
    return Record("chat.jsonl:1", row, "value").needed()


def written(message: Message) -> str:
    if message.role == "assistant":
        return "".join(piece.text for piece in MULTIVERSE.pieces(message))
    return "".join(part.text for part in message.body)  # type: ignore[union-attr]


def asked_by_transformers(tokenizer: Any, found: Any, count: int) -> list[str]:
    """What transformers renders of the first messages, their contents as texts and as parts."""
    texts = []
    for parts in (False, True):
        chat = []
        for number, message in enumerate(found.document.messages[:count]):
            text: Any = written(message)
            content = [{"type": "text", "text": text}] if parts else text
            fields = found.context.fields.get(number, {})
            chat.append({"role": message.role, "content": content, **fields})
        try:
            texts.append(
                tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=True,
                    tools=list(found.context.tools) or None,
                )
            )  # fmt: skip
        except Exception:
            continue
    return texts


def taught(stages: Stages, vocabulary: Vocabulary) -> list[tuple[int, int, str]]:
    """Of each turn with loss: its first token, the token after its end, and its text."""
    found: list[tuple[int, int, str]] = []
    at, inside = 0, False
    for part in stages.segments:
        encode = vocabulary.encode_outside if part.author == "outside" else vocabulary.encode
        end = at + len(encode(part.text))
        if part.author in ("model", "engine") and part.loss:
            first, _, text = found.pop() if inside else (at, 0, "")
            found.append((first, end, text + part.text))
            inside = True
        else:
            inside = False
        at = end
    assert at == len(stages.layout)
    return found


def check(tokenizer: Any, row: dict[str, Any]) -> tuple[int, str]:
    """Hold the law for a conversation; return how many rows it became, or why it is refused."""
    found = reading(row)
    vocabulary = Vocabulary.of(tokenizer)
    try:
        rows = compile_rows(found.document, tokenizer, template=True, context=found.context)
    except MvspecError as error:
        return 0, str(error)
    turns = [
        number for number, message in enumerate(found.document.messages)
        if message.role == "assistant" and number not in found.context.no_loss
    ]  # fmt: skip
    seen = [(stages, *each) for stages in rows for each in taught(stages, vocabulary)]
    assert len(seen) == len(turns)
    for number, (stages, first, end, text) in zip(turns, seen, strict=True):
        ids = stages.layout.input_ids.tolist()
        message = found.document.messages[number]
        # The turn is what its form writes, and then comes what ends it, which carries loss.
        assert text.startswith(written(message))
        assert stages.layout.loss_mask[end - 1]
        last = vocabulary.backend.get_added_tokens_decoder()[ids[end - 1]]
        assert last.special
        assert last.content not in text[: -len(last.content)]
        assert stages.layout.loss_mask[first] or not first
        if not number:
            continue
        before = Document(messages=found.document.messages[:number])
        plan = plan_document(before, tokenizer, context=found.context)
        asked = [id for op in plan.ops if isinstance(op, Extend) for id in op.tokens]
        assert ids[:first] == asked
        if not (found.context.tools or found.context.fields):
            assert plan_for(before, tokenizer, MULTIVERSE) == plan
        assert vocabulary.decode(ids[:first]) in asked_by_transformers(tokenizer, found, number)
    return len(rows), ""


REFUSED = {
    "tools": r"writes nothing of (the tools|tool_calls)|refuses the turns user, assistant, tool",
    "system": r"refuses the turns system, [a-z, ]+: System role not supported",
    "no question": "refuses the turns assistant: ",
    "hostile": r"depends on what that says, so no prompt can be cut: '.*</think>.*' and '.*'",
}
"""What a template of trl's may say of which conversation."""


@pytest.mark.skipif(not TRL, reason="needs trl")
def test_what_trl_ships_is_trained_as_it_is_asked() -> None:
    assert len(TRL) >= 40
    outcomes: Counter[str] = Counter()
    for name, template in TRL.items():
        tokenizer = asking(template_tokenizer(template), None, freeze=True)
        for kind, row in CONVERSATIONS.items():
            if name.endswith("_training") and kind not in ("turns", "hostile"):
                continue  # what trl trains with is all but what it is named for
            try:
                rows, refusal = check(tokenizer, row)
            except AssertionError as error:
                raise AssertionError(f"{name}, {kind}: {error}") from error
            outcomes["several rows" if rows > 1 else "one row" if rows else "refused"] += 1
            if not rows:
                assert re.search(REFUSED.get(kind, "(?!)"), refusal), f"{name}, {kind}: {refusal}"
    assert outcomes["one row"] > 3 * len(TRL)
    assert outcomes["several rows"] > len(TRL)
    assert outcomes["refused"] < len(TRL), outcomes


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_template_of_each_behaviour_is_trained_as_it_is_asked_or_refused(name: str) -> None:
    template, expected = HAND_MADE[name]
    tokenizer = asking(template_tokenizer(template), None, freeze=True)
    outcomes = []
    for kind, row in CONVERSATIONS.items():
        rows, refusal = check(tokenizer, row)
        told = [each for each in (expected, REFUSED.get(kind)) if each]
        assert "\n" not in refusal
        assert rows or any(re.search(each, refusal) for each in told), f"{kind}: {refusal}"
        outcomes.append(rows)
    assert not expected or 0 in outcomes
