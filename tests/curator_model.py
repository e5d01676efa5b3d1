"""Scripted models for the tests of curation: they read prompts and answer by rule."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from mvspec.curation import ModelAnswer, ModelRequest, ReasoningChain, TokenUsage
from mvspec.tree.ir import Parallel, Text, Think

__all__ = ["Scripted", "TreeModel", "chains", "reply"]

_SENTENCE = re.compile(r"^\[([0-9]+)\] (.*)$", re.MULTILINE)
_STEP = re.compile(r"^## ([0-9.]+) (.*)$", re.MULTILINE)
_PATH = re.compile(r"^# Path ([0-9]+)", re.MULTILINE)
_JOINING = re.compile(r"^(?:Similarly|Next|Alternatively), ")

PARTS = ("left", "middle", "right")


def chains(count: int, seed: int = 0, *, parts: int = 3, length: int = 3) -> list[dict[str, str]]:
    """Return rows of chains that work out three parts one after the other, then add them."""
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    for number in range(count):
        values = [draw.randint(2, 99) for _ in range(parts)]
        text = (
            f"Record {number} asks for the sum of {parts} squares. Let me compute each of them.\n\n"
        )
        for index, value in enumerate(values):
            join = ("", "Similarly, ", "Next, ")[min(index, 2)]
            text += f"{join}the square number {index + 1} is that of {value}. "
            text += f"We have \\({value}^2 = {value * value}\\). " * (length - 2)
            text += f"So part {index + 1} gives {value * value}.\n\n"
        total = sum(value * value for value in values)
        text += f"Adding all of them gives {total}."
        rows.append({
            "id": f"r{number}",
            "question": f"What is the sum of the squares of {values}?",
            "reasoning": text,
            "answer": str(total),
        })  # fmt: skip
    return rows


def reply(schema: dict[str, Any] | None, prompt: str) -> str:
    """Return the answer of the scripted model, which knows how `chains` are made."""
    title = schema["title"] if schema else ""
    if title == "Steps":
        return json.dumps({"steps": _steps(prompt)})
    if title == "Groups":
        named = [label for label, name in _STEP.findall(prompt) if name.startswith("Part")]
        pairs = [[label] for label in named]
        return json.dumps({"groups": [{"reason": "Squares.", "paths": pairs}] if pairs else []})
    if title == "Frame":
        count = len(_PATH.findall(prompt))
        goals = [f"Work out the square of part {index + 1}." for index in range(count)]
        return json.dumps({"goals": goals, "conclusion": f"All {count} squares are known."})
    if title == "Edits":
        return json.dumps({"edits": _edits(prompt)})
    if title == "Judgement":
        return json.dumps({"leans": []})
    if title == "Branches":
        steps = [step for step in _steps(prompt) if step["title"].startswith("Part")]
        spans = [{key: step[key] for key in ("title", "first", "last")} for step in steps]
        each = {"kind": "collective", "reason": "All are added.", "branches": spans}
        return json.dumps({"branchings": [each] if len(spans) > 1 else []})
    outlines = "".join(f"<Goal {n}>\nSquare {n}.\n</Goal {n}>\n" for n in (1, 2))
    paths = "".join(f"<Path {n}>\nIt is {n}.\n</Path {n}>\n" for n in (1, 2))
    block = f"<Parallel>\n{outlines}{paths}<Conclusion>\nBoth.\n</Conclusion>\n</Parallel>\n"
    return f"<Think>\nTwo squares.\n{block}</Think>\n\nAnswer: 3"


def _steps(prompt: str) -> list[dict[str, Any]]:
    sentences = [(int(number), text) for number, text in _SENTENCE.findall(prompt)]
    starts = [number for number, text in sentences if "the square number" in text]
    last = sentences[-1][0]
    if len(starts) < 2:
        return [{"depth": 1, "title": "All of it", "first": 1, "last": last}]
    ends = [*(start - 1 for start in starts[1:]), last - 1]
    steps = [{"depth": 1, "title": "Read", "first": 1, "last": starts[0] - 1}]
    for index, (first, end) in enumerate(zip(starts, ends, strict=True)):
        steps.append({"depth": 1, "title": f"Part {index + 1}", "first": first, "last": end})
    return [*steps, {"depth": 1, "title": "Add", "first": last, "last": last}]


def _edits(prompt: str) -> list[dict[str, Any]]:
    path = prompt[prompt.rindex("# Path ") :]
    return [
        {"sentence": int(number), "text": _JOINING.sub("", text).capitalize()}
        for number, text in _SENTENCE.findall(path)
        if _JOINING.match(text)
    ]


class Scripted:
    """A provider that answers by rule, in this process."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return what `reply` says."""
        self.requests.append(request)
        schema = None if request.schema is None else json.loads(request.schema)
        text = reply(schema, request.prompt)
        return ModelAnswer(text, usage=TokenUsage(request.size // 4, len(text) // 4))


class TreeModel:
    """A provider that knows the tree which a chain was flattened from, and edits nothing."""

    def __init__(self, chain: ReasoningChain, think: Think) -> None:
        self.chain = chain
        self.steps: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self._next = 1
        self._add(think.body, 1, "")

    def _add(self, body: Sequence[Any], depth: int, prefix: str, offset: int = 0) -> int:
        """Add the steps of a body at one level; return how many there are."""
        count = offset
        for item in body:
            if isinstance(item, Text):
                count += 1
                self._leaf(item.text, depth)
            elif isinstance(item, Parallel):
                group: dict[str, Any] = {"reason": "", "paths": []}
                self.groups.append(group)
                goals = [outline.text for outline in item.goal.outlines]
                conclusion = "".join(each.text for each in item.conclusion.body)  # type: ignore[union-attr]
                self.frames.append({"goals": goals, "conclusion": conclusion})
                for path in item.paths:
                    count += 1
                    label = f"{prefix}{count}"
                    group["paths"].append([label])
                    if len(path.body) == 1 and isinstance(path.body[0], Text):
                        self._leaf(path.body[0].text, depth)
                    else:
                        self.steps.append({"depth": depth, "title": label, "first": 0, "last": 0})
                        self._add(path.body, depth + 1, f"{label}.")
        return count

    def _leaf(self, text: str, depth: int) -> None:
        first = self._next
        wanted = len("".join(text.split()))
        found = 0
        while found < wanted:
            found += len("".join(self.chain.sentences[self._next - 1].split()))
            self._next += 1
        assert found == wanted, "a sentence crosses the end of a text"
        self.steps.append(
            {"depth": depth, "title": f"Step {first}", "first": first, "last": self._next - 1}
        )

    async def ask(self, request: ModelRequest) -> ModelAnswer:
        """Return the tree's own steps, groups and frames."""
        assert request.schema is not None
        title = json.loads(request.schema)["title"]
        if title == "Frame":
            first = int(_SENTENCE.findall(request.prompt[request.prompt.index("# Path 1") :])[0][0])
            answer: dict[str, Any] = next(
                frame for start, frame in self._starts() if start == first
            )
        else:
            answers: dict[str, dict[str, Any]] = {
                "Steps": {"steps": self.steps},
                "Groups": {"groups": self.groups},
                "Edits": {"edits": []},
            }
            answer = answers[title]
        return ModelAnswer(json.dumps(answer))

    def _starts(self) -> list[tuple[int, dict[str, Any]]]:
        starts: list[tuple[int, dict[str, Any]]] = []
        leaves = {step["title"]: step["first"] for step in self.steps}
        labels = self._labels()
        for group, frame in zip(self.groups, self.frames, strict=True):
            label = group["paths"][0][0]
            inside = [t for name, t in labels if name == label or name.startswith(f"{label}.")]
            starts.append((next(leaves[t] for t in inside if leaves[t]), frame))
        return starts

    def _labels(self) -> list[tuple[str, str]]:
        counts: list[int] = []
        labels: list[tuple[str, str]] = []
        for step in self.steps:
            del counts[step["depth"] :]
            counts += [0] * (step["depth"] - len(counts))
            counts[-1] += 1
            labels.append((".".join(map(str, counts)), step["title"]))
        return labels
