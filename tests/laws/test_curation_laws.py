"""Laws of curation: sentences add up, and no answer, however wrong, makes a wrong document."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

from curator_model import chains
from hypothesis import event, example, given
from hypothesis import strategies as st
from strategies import texts

import mvspec
from mvspec.compiler.lowerings import flatten
from mvspec.curation import (
    ChainFields,
    CurationOptions,
    ModelAnswer,
    ModelRequest,
    ReasoningChain,
    curate_chain,
    read_chain,
    split_sentences,
)
from mvspec.curation.chain import numbered
from mvspec.data.records import Record
from mvspec.tree.ir import Document, Text, Think

CODES = {
    "schema", "length", "blocked", "empty", "parse", "group", "frame", "rewrite", "content",
    "judge", "sequential", "grammar",
}  # fmt: skip


@given(texts() | st.text())
@example("")
@example(" \n ")
@example("a\n \nb. c")
@example("\\[ a. b\n c \\] d. $x. y$ z")
@example("```\na. b\n")
@example("1. One. 2. Two.")
def test_sentences_add_up(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    if text.strip():
        assert all(sentence.strip() for sentence in sentences)


def test_sentences_are_what_people_call_so() -> None:
    text = (
        "Let $x. y$ be given, e.g. 3.5 by Dr. A. Smith. Is it?\nYes!  \\(a. b\\) holds. "
        "See Eq. 3.\n\n1. First.\n2. Second."
    )
    assert [sentence.strip() for sentence in split_sentences(text)] == [
        "Let $x. y$ be given, e.g. 3.5 by Dr. A. Smith.",
        "Is it?",
        "Yes!",
        "\\(a. b\\) holds.",
        "See Eq. 3.",
        "1. First.",
        "2. Second.",
    ]


def test_hard_texts_are_cut_in_time() -> None:
    for text in (" " * 300_000, "a " * 100_000, "\\[" * 20_000, "$" * 50_000, "a.\n" * 50_000):
        start = time.monotonic()
        assert "".join(split_sentences(f"{text}x")) == f"{text}x"
        assert time.monotonic() - start < 20


NUMBERS = st.integers(-1, 14)
TEXTS = st.one_of(
    st.sampled_from(["", " ", "Similarly.", "<Path>", "<Pa", "th>", "x\ny", "\u0000", "\ud800"]),
    st.text(max_size=12),
)
LABELS = st.sampled_from(["1", "2", "3", "4", "5", "2.1", "2.2", "9", "", "x"])


def junk(schema: dict[str, Any], draw: Any) -> Any:
    """Draw a value of a schema: right in form, and otherwise anything."""
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    kind = schema["type"]
    if kind == "object":
        return {name: junk(each, draw) for name, each in schema["properties"].items()}
    if kind == "array":
        labels = schema["items"].get("type") == "string" and draw(st.booleans())
        count = draw(st.integers(0, 4))
        return [draw(LABELS) if labels else junk(schema["items"], draw) for _ in range(count)]
    return draw(NUMBERS) if kind == "integer" else draw(TEXTS)


class Junk:
    """A model that is often wrong: junk of the schema, right answers, broken ones, none."""

    def __init__(self, draw: Any, right: Any) -> None:
        self.draw = draw
        self.right = right

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        assert request.schema is not None
        how = self.draw(st.sampled_from(["right"] * 6 + ["junk"] * 3 + ["text", "none"]))
        if how == "none":
            return ModelAnswer("", self.draw(st.sampled_from(["length", "blocked", "empty"])))
        if how == "text":
            return ModelAnswer(self.draw(st.text(max_size=20)) or "{")
        if how == "right":
            answer: ModelAnswer = await self.right.ask(request)
            return answer
        return ModelAnswer(json.dumps(junk(json.loads(request.schema), self.draw)))


class Lines:
    """Right answers for any chain: three sentences a step, and all steps one group of pairs."""

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        assert request.schema is not None
        title = json.loads(request.schema)["title"]
        numbers = [int(n) for n in re.findall(r"^\[([0-9]+)\]", request.prompt, re.MULTILINE)]
        count = len(re.findall(r"^# Path ", request.prompt, re.MULTILINE))
        labels = re.findall(r"^## ([0-9]+) ", request.prompt, re.MULTILINE)
        last = max(numbers, default=0)
        starts = range(1, last + 1, 3)
        answers: dict[str, Any] = {
            "Steps": {
                "steps": [
                    {"depth": 1, "title": f"S{n}", "first": n, "last": min(n + 2, last)}
                    for n in starts
                ]
            },
            "Groups": {
                "groups": [{"reason": "", "paths": [[label] for label in labels]}]
                if len(labels) > 1
                else []
            },
            "Frame": {"goals": [f"Goal {n}." for n in range(count)], "conclusion": "Done."},
            "Edits": {"edits": [{"sentence": numbers[-1], "text": "New."}] if numbers else []},
            "Judgement": {"leans": []},
        }
        return ModelAnswer(json.dumps(answers[title]))


def accounted(document: Document, chain: ReasoningChain, rewritten: list[dict[str, Any]]) -> bool:
    """Whether every sentence stands in the document once and in order, or is named as rewritten.

    Written anew from the definition: it knows nothing of how the pipeline checks itself.
    """
    new = {each["sentence"]: each for each in rewritten}
    for number, each in new.items():
        assert each["before"] == chain.sentences[number - 1].strip()
    think = flatten(document.messages[-1]).body[0]
    assert isinstance(think, Think)
    reading = "".join("".join(t.text for t in think.body if isinstance(t, Text)).split())
    wanted = (
        new[number]["after"] if number in new else sentence
        for number, sentence in enumerate(chain.sentences, 1)
    )
    return reading == "".join("".join(wanted).split())


@given(st.data(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_no_answer_makes_a_wrong_document(
    data: st.DataObject, judge: bool, rules: bool, attempts: int
) -> None:
    text = data.draw(
        st.one_of(
            texts().filter(lambda text: bool(text.strip())),
            st.just(chains(1)[0]["reasoning"]),
            st.lists(texts().filter(lambda t: bool(t.strip())), min_size=2, max_size=8).map(
                "\n".join
            ),
        ).filter(lambda text: not re.search(r"</?(Think|Parallel|Goal|Outline|Path|Conc)", text))
    )
    chain = read_chain(Record("a:1", {"reasoning": text, "answer": "5"}, "value"), ChainFields())
    trigger = data.draw(st.sampled_from(["", "", "Let's think in parallel."]))
    options = CurationOptions(
        "m", trigger=trigger, judge=judge, independence=rules, attempts=attempts, max_distance=0.6,
        max_path_distance=1.0, sequential=data.draw(st.booleans()),
    )  # fmt: skip
    model = Junk(data.draw, Lines())
    outcome = asyncio.run(curate_chain(chain, options, model.ask))
    event("document" if outcome.document else outcome.code)
    if outcome.document is None:
        assert outcome.code in CODES
        assert outcome.reason
        return
    document = Document.from_json(outcome.document.to_json())  # every invariant, once more
    assert document == outcome.document
    turn = document.messages[-1]
    assert mvspec.parse(mvspec.render(turn)).messages == (turn,)
    if not trigger:
        assert accounted(document, chain, outcome.provenance["rewritten"])
    assert outcome.provenance["distance"] <= 0.6


@given(st.lists(texts(), min_size=1, max_size=5))
def test_prompts_show_every_sentence(parts: list[str]) -> None:
    sentences = split_sentences("\n".join(parts))
    shown = numbered(sentences)
    for number, sentence in enumerate(sentences, 1):
        assert f"[{number}] {sentence.strip()}" in shown
