"""A chain to a document: steps, checks, and the way from a check back to its step."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from curator_model import Scripted, TreeModel, chains, reply

import mvspec
from mvspec.compiler.lowerings import flatten
from mvspec.curation import (
    ChainFields,
    CurationOptions,
    CurationOutcome,
    CurationStopped,
    ModelAnswer,
    ModelRequest,
    ReasoningChain,
    curate_chain,
    read_chain,
)
from mvspec.curation.answers import (
    BranchesReply,
    EditsReply,
    FrameReply,
    GroupsReply,
    JudgementReply,
    StepsReply,
    schema_text,
)
from mvspec.curation.checks import leaning_words
from mvspec.curation.run import outcome_key
from mvspec.curation.structure import PathPlan, SentenceRun
from mvspec.curation.tasks import BranchTask, CurationTask, PromptingTask
from mvspec.data.records import BadRecord, Record
from mvspec.tree.ir import Conclusion, Document, Outline, Parallel, Text, Think
from mvspec.tree.node import Node

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
OPTIONS = CurationOptions("m")


def chain_of(row: dict[str, str]) -> ReasoningChain:
    return read_chain(Record("chains.jsonl:1", row, "value"), ChainFields())


CHAIN = chain_of(chains(1)[0])


def curated(
    ask: Any, options: CurationOptions = OPTIONS, chain: ReasoningChain = CHAIN
) -> CurationOutcome:
    return asyncio.run(curate_chain(chain, options, ask))


class Changed(Scripted):
    """The scripted model, with some answers replaced: by step, one after the other."""

    def __init__(self, **answers: list[Any]) -> None:
        super().__init__()
        self.answers = answers

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        good = await super().ask(request)
        queue = self.answers.get(request.step)
        if not queue:
            return good
        made = queue.pop(0)
        if callable(made):
            made = made(json.loads(good.text))
        if isinstance(made, ModelAnswer):
            return made
        return ModelAnswer(made if isinstance(made, str) else json.dumps(made))


def test_good_answers_give_the_document() -> None:
    model = Scripted()
    outcome = curated(model.ask)
    assert outcome.code == ""
    assert outcome.document is not None
    (block,) = outcome.document.walk(Parallel)
    assert [len(path.body) for path in block.paths] == [1, 1, 1]
    assert Counter(request.step for request in model.requests) == {
        "parse": 1, "group": 1, "frame": 1, "rewrite": 3,
    }  # fmt: skip
    assert [each["sentence"] for each in outcome.provenance["rewritten"]] == [6, 9]
    turn = outcome.document.messages[-1]
    assert mvspec.parse(mvspec.render(turn)).messages == (turn,)
    text = turn.body[0].body[0].text  # type: ignore[union-attr]
    assert text.endswith("\nLet's think in parallel.")
    assert turn.body[1] == Text(text=f"Answer: {CHAIN.answer}")


def test_texts_of_paths_are_the_source() -> None:
    outcome = curated(Scripted().ask)
    assert outcome.document is not None
    (block,) = outcome.document.walk(Parallel)
    first = block.paths[0].body[0]
    assert isinstance(first, Text)
    assert first.text == CHAIN.text(3, 5).strip()


@pytest.mark.parametrize(
    ("step", "wrong", "said"),
    [
        ("parse", lambda good: {"steps": []}, "no steps"),
        ("parse", lambda good: {"steps": good["steps"][1:]}, "sentence that no step"),
        ("parse", lambda good: {"steps": good["steps"][:-1]}, "the steps end at sentence"),
        ("parse", lambda good: {"steps": [good["steps"][0] | {"depth": 2}]}, "depth 2"),
        ("parse", lambda good: {"steps": [good["steps"][0] | {"title": " "}]}, "title"),
        ("group", lambda good: {"groups": [{"reason": "", "paths": [["9"], ["2"]]}]}, "'9'"),
        ("group", lambda good: {"groups": [{"reason": "", "paths": [["2"]]}]}, "two paths"),
        ("group", lambda good: {"groups": [{"reason": "", "paths": [["2"], []]}]}, "two paths"),
        ("group", lambda good: {"groups": [{"reason": "", "paths": [["2"], ["4"]]}]}, "neighb"),
        ("group", lambda good: {"groups": [{"reason": "", "paths": [["3"], ["2"]]}]}, "neighb"),
        ("group", lambda good: {"groups": good["groups"] * 2}, "another group"),
        ("frame", lambda good: good | {"goals": good["goals"][:2]}, "2 goals for 3 paths"),
        ("frame", lambda good: good | {"goals": ["a\nb", "c", "d"]}, "one line"),
        ("frame", lambda good: good | {"goals": ["<Path>", "c", "d"]}, "the tag <Path>"),
        ("frame", lambda good: good | {"conclusion": "\n"}, "conclusion is empty"),
        ("rewrite", lambda good: {"edits": [{"sentence": 1, "text": "x"}]}, "not one of"),
        ("rewrite", lambda good: {"edits": [{"sentence": 3, "text": " "}]}, "left out"),
        (
            "rewrite",
            lambda good: {"edits": [{"sentence": 3, "text": "a"}, {"sentence": 3, "text": "b"}]},
            "twice",
        ),
        ("rewrite", lambda good: {"edits": [{"sentence": 3, "text": "</Goal>"}]}, "the tag"),
        ("rewrite", lambda good: {"edits": [{"sentence": 3, "text": "x" * 500}]}, "differs"),
        ("parse", lambda good: "{", "not JSON"),
        ("parse", lambda good: {"steps": [{"depth": "deep"}]}, "schema"),
    ],
)
def test_a_wrong_answer_goes_back_with_the_reason(
    step: str, wrong: Callable[[Any], Any], said: str
) -> None:
    model = Changed(**{step: [wrong]})
    outcome = curated(model.ask)
    assert outcome.code == ""
    refused = [event for event in outcome.history if event["check"]]
    assert len(refused) == 1
    assert refused[0]["step"] == step
    assert said in refused[0]["problem"]
    again = [request for request in model.requests if request.attempt == 1]
    assert len(again) == 1
    assert "earlier answers were refused" in again[0].prompt
    assert said in again[0].prompt
    assert outcome.document == curated(Scripted().ask).document


def test_a_record_is_given_up_after_bounded_attempts() -> None:
    model = Changed(parse=["{"] * 10)
    outcome = curated(model.ask, CurationOptions("m", attempts=2))
    assert outcome.code == "schema"
    assert outcome.document is None
    assert len(outcome.history) == 3
    assert len({event["key"] for event in outcome.history}) == 3


def test_words_that_lean_go_back_and_in_the_end_are_given_up() -> None:
    none: dict[str, Any] = {"edits": []}
    model = Changed(rewrite=[none, none, none])
    outcome = curated(model.ask)
    assert outcome.code == ""
    problems = [event["problem"] for event in outcome.history if event["check"]]
    assert len(problems) == 2
    assert "leans on another path with 'Similarly'" in problems[0]
    assert curated(Changed(rewrite=[none] * 20).ask).code == "rewrite"
    assert (
        curated(Changed(rewrite=[none] * 3).ask, CurationOptions("m", independence=False)).code
        == ""
    )


def test_content_sends_the_path_back_that_changed_most() -> None:
    def longer(good: Any) -> Any:
        return {"edits": [{"sentence": 5, "text": "So part 1 gives a lot more than we thought."}]}

    options = CurationOptions("m", max_distance=0.08)
    outcome = curated(Changed(rewrite=[longer]).ask, options)
    assert outcome.code == ""
    refused = [event for event in outcome.history if event["check"]]
    where = [(event["check"], event["where"]) for event in refused]
    assert where == [("content", "block 1, path 1")]
    assert curated(
        Changed(rewrite=[longer] * 1).ask, CurationOptions("m", max_distance=0.0)
    ).code == ("content")


def test_a_judge_can_ask_for_other_words_and_for_other_groups() -> None:
    word = {"path": 2, "on": 1, "quote": "9801", "remedy": "rewrite"}
    model = Changed(judge=[{"leans": [word]}])
    outcome = curated(model.ask, CurationOptions("m", judge=True))
    assert outcome.code == ""
    assert ("judge", "block 1, path 2") in [(e["check"], e["where"]) for e in outcome.history]

    model = Changed(judge=[{"leans": [word | {"remedy": "regroup"}]}])
    outcome = curated(model.ask, CurationOptions("m", judge=True))
    assert outcome.code == ""
    assert [e["check"] for e in outcome.history if e["step"] == "group"] == ["judge", ""]
    again = next(r for r in model.requests if r.step == "group" and r.attempt == 1)
    assert "cannot run side by side" in again.prompt

    wrong = {"leans": [word | {"path": 7}]}
    outcome = curated(Changed(judge=[wrong]).ask, CurationOptions("m", judge=True))
    assert outcome.code == ""
    forever = Changed(judge=[{"leans": [word | {"remedy": "regroup"}]}] * 50)
    assert curated(forever.ask, CurationOptions("m", judge=True)).code == "judge"


@pytest.mark.parametrize(
    ("finish", "code"), [("length", "length"), ("blocked", "blocked"), ("empty", "empty")]
)
def test_answers_that_are_none_are_told_apart(finish: str, code: str) -> None:
    bad = ModelAnswer("", finish, "SAFETY")
    model = Changed(group=[bad])
    assert curated(model.ask).code == ""
    outcome = curated(Changed(group=[bad] * 9).ask)
    assert outcome.code == code
    tokens = [r.max_tokens for r in model.requests if r.step == "group"]
    assert tokens == ([32_768, 65_536] if finish == "length" else [32_768, 32_768])


def test_a_longer_answer_is_never_asked_for_with_fewer_tokens() -> None:
    model = Changed(group=[ModelAnswer("", "length", "MAX_TOKENS")])
    assert curated(model.ask, CurationOptions("m", max_tokens=100_000)).code == ""
    assert [r.max_tokens for r in model.requests if r.step == "group"] == [100_000, 100_000]


def test_limits() -> None:
    outcome = curated(Scripted().ask, CurationOptions("m", max_paths=2, attempts=1))
    assert outcome.code == "group"
    assert "3 paths, and 2 are allowed" in outcome.reason


def nested(depth: int) -> tuple[ReasoningChain, Think]:
    """A chain of blocks inside of each other, and the tree that it was flattened from."""
    block = mvspec.parallel(mvspec.branch("A", "One a."), mvspec.branch("B", "One b."))
    for level in range(depth - 1):
        block = mvspec.parallel(
            mvspec.branch("A", f"Before {level}.", block, f"After {level}."),
            mvspec.branch("B", f"Other {level}."),
            conclusion="c",
        )
    think = mvspec.think("Start.", block, "End.")
    flat = flatten(mvspec.assistant(think)).body[0]
    assert isinstance(flat, Think)
    text = flat.body[0]
    assert isinstance(text, Text)
    return ReasoningChain("n", "n", "", text.text, ""), think


def test_depth_limit() -> None:
    chain, think = nested(3)

    def run(max_depth: int) -> CurationOutcome:
        options = CurationOptions("m", max_depth=max_depth, attempts=0, trigger="")
        return curated(TreeModel(chain, think).ask, options, chain)

    assert run(2).code == "group"
    # The conclusion of the innermost block is empty, which a model may not answer.
    assert run(3).code == "frame"


def test_nothing_parallel_is_a_verdict_or_a_document() -> None:
    model = Changed(group=[{"groups": []}] * 2)
    assert curated(model.ask).code == "sequential"
    outcome = curated(Changed(group=[{"groups": []}]).ask, CurationOptions("m", sequential=True))
    assert outcome.code == ""
    assert outcome.document is not None
    assert not list(outcome.document.walk(Parallel))


def test_a_stopped_record_is_not_decided() -> None:
    class Stops(Scripted):
        async def ask(self, request: ModelRequest) -> ModelAnswer:
            if request.step == "rewrite":
                raise CurationStopped("enough")
            return await super().ask(request)

    with pytest.raises(CurationStopped, match="enough"):
        curated(Stops().ask)


def test_history_does_not_depend_on_speed() -> None:
    class Slow(Changed):
        def __init__(self, order: int) -> None:
            none: dict[str, Any] = {"edits": []}
            super().__init__(rewrite=[none, none, none])
            self.order = order

        async def ask(self, request: ModelRequest) -> ModelAnswer:
            answer = await super().ask(request)
            _, path, number = request.prompt.rpartition("# Path ")
            place = int(number[0]) if path else 0
            await asyncio.sleep(0.01 * (place if self.order else 4 - place))
            return answer

    one, two = curated(Slow(0).ask), curated(Slow(1).ask)
    assert one.history == two.history
    assert one.document == two.document


def test_unreadable_rows_are_named() -> None:
    fields = ChainFields()
    with pytest.raises(BadRecord, match="no field 'reasoning'"):
        read_chain(Record("a:1", {"question": "q"}, "value"), fields)
    with pytest.raises(BadRecord, match="holds the tag <Path>"):
        read_chain(Record("a:1", {"reasoning": "A <Path> here."}, "value"), fields)
    with pytest.raises(BadRecord, match="has no text"):
        read_chain(Record("a:1", {"reasoning": " \n"}, "value"), fields)
    with pytest.raises(BadRecord, match="not a string"):
        read_chain(Record("a:1", {"reasoning": 3}, "value"), fields)
    with pytest.raises(BadRecord, match="half a character"):
        read_chain(Record("a:1", {"reasoning": "a\ud800"}, "value"), fields)
    chain = read_chain(Record("a:1", {"reasoning": "A.", "question": "<Path>?"}, "value"), fields)
    assert chain.question == "<Path>?"


def test_known_columns() -> None:
    row = {
        "question": "q",
        "deepseek_thinking_trajectory": "D.",
        "deepseek_attempt": "d",
        "gemini_thinking_trajectory": "G.",
        "gemini_attempt": "g",
    }
    chain = read_chain(Record("a:1", row, "value"), ChainFields())
    assert (chain.question, chain.reasoning, chain.answer) == ("q", "D.", "d")
    fields = ChainFields("gemini_thinking_trajectory", None, "gemini_attempt")
    assert read_chain(Record("a:1", row, "value"), fields).answer == "g"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Similarly, it is 6.", "Similarly"),
        ("The other case gives 6.", "The other case"),
        ("It is 6, as before.", "as before"),
        ("By the formula found above, it is 6.", "found above"),
        ("Case 1 was easier.", "Case 1"),
        ("It is 6.", None),
        ("The second derivative is 6.", None),
        ("In the case x > 0, it is 6.", None),
        ("Case 2 is that of x > 0.", None),
    ],
)
def test_words_that_lean(text: str, words: str | None) -> None:
    chain = ReasoningChain("a", "a", "", f"First. {text}", "")
    found = leaning_words(chain, PathPlan(("Case 2",), (SentenceRun(2, 2),)), {})
    assert (found and found[1]) == words


def bare(document: Node) -> Document:
    """Return a document without the text of Goal and Conclusion."""

    def blank(node: Node) -> Node:
        if isinstance(node, Outline):
            return Outline(label=node.label)
        return Conclusion() if isinstance(node, Conclusion) else node

    assert isinstance(document, Document)
    return document.map(blank)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the real traces")
def test_real_documents_come_back_from_their_sequential_readings() -> None:
    classes = json.loads((CORPUS / "dev-class.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (CORPUS / "multiverse-dev.jsonl").open(encoding="utf-8")]
    count = blocks = 0
    options = CurationOptions("m", sequential=True, trigger="", prefix="", max_paths=20, attempts=0)
    for row in rows:
        if classes[row["id"]] != "ok":
            continue
        original = mvspec.parse(row["output"])
        think, answer = original.messages[0].body
        assert isinstance(think, Think)
        assert isinstance(answer, Text)
        flat = flatten(original.messages[0]).body[0]
        assert isinstance(flat, Think)
        reading = flat.body[0]
        assert isinstance(reading, Text)
        chain = ReasoningChain(row["id"], row["id"], row["question"], reading.text, answer.text)
        assert "".join(chain.sentences) == reading.text
        outcome = curated(TreeModel(chain, think).ask, options, chain)
        assert outcome.code == "", (row["id"], outcome.reason)
        assert outcome.document is not None
        made = Document(messages=outcome.document.messages[1:])
        assert bare(made) == bare(original)
        assert outcome.provenance["distance"] == 0
        count += 1
        blocks += outcome.provenance["blocks"]
    assert (count, blocks) == (53, 109)


def test_answers_that_older_versions_have_paid_are_found_again() -> None:
    """A schema is part of a request's key, and the options of a verdict's: neither may change."""
    replies = {
        StepsReply: "e0b5cb138740db9a",
        GroupsReply: "79e6e2a5da4316be",
        FrameReply: "c9b5eba2cc7009ba",
        EditsReply: "4ac9d96b7eccd064",
        JudgementReply: "fbfcac299d774f35",
        BranchesReply: "e5909ad801e9534a",
    }
    for model, digest in replies.items():
        assert hashlib.sha256(schema_text(model).encode()).hexdigest()[:16] == digest
    request = ModelRequest("parse", "m", "s", "p", schema_text(StepsReply))
    assert request.key.startswith("baf5eb607c73")
    chain = ReasoningChain("r1", "chains.jsonl:1", "What?", "One. Two.", "3")
    keys = {CurationTask: "ea44c374b4fa", BranchTask: "acb3e9aa9948", PromptingTask: "5ce1d94c1aea"}
    for task, key in keys.items():
        assert outcome_key(task(OPTIONS), chain).startswith(key)


def test_reply_knows_its_own_chains() -> None:
    assert json.loads(reply({"title": "Judgement"}, "")) == {"leans": []}


def test_the_room_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "import mvspec.curation.run, mvspec.cli.curate"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
