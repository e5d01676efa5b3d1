"""A run on record: every token with its thread, position, author, logprob and step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mvspec.compiler.layout import Layout
from mvspec.compiler.plan import ExecutionPlan, Extend, Fork, Join, Op
from mvspec.compiler.planning import plan_layout
from mvspec.html.notebook import panel_html, text_html, tree_html
from mvspec.ir import Document
from mvspec.node import verify_error
from mvspec.step import Chain

__all__ = ["FilledHole", "Trace", "TracedThread"]

Author = Literal["prompt", "engine", "model"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TracedThread(_Record):
    """The root thread (number 0) or one path.

    Args:
        id: its number: threads are listed by it, and a path comes after its parent.
        label: of the path, as `1` or `2.1`; "" at the root.
        title: of the path: its outline; "" where there is none.
        parent: the thread that forked it; None at the root.
        block: number of the block that it is a path of; -1 at the root.
    """

    id: int
    label: str = ""
    title: str = ""
    parent: int | None = None
    block: int = -1


class FilledHole(_Record):
    """The tokens of one hole: those at [start, stop) in surface order.

    Args:
        text: its value as text.
        cut: whether max_tokens ended it inside its constraint.
    """

    name: str
    start: int
    stop: int
    text: str
    cut: bool = False


class Trace(_Record):
    """What a run did. All of `ids` ... `steps` are [tokens], in the order of the surface form.

    Args:
        model: of the engine.
        form: the surface form of the assistant's turn.
        seed: of its random streams.
        share: paths read each other after every so many tokens; 0 for never.
        threads: the root first.
        ids, texts: the tokens, and what each adds to its thread's text.
        owners: each token's thread.
        position_ids: each token's position id.
        authors: who wrote each: "prompt", "engine" (forced) or "model".
        logprobs: of tokens that were drawn, before temperature; None for the others.
        steps: the forward after which each token was chosen, from 0; the prompt has -1.
        ends: [forwards]: seconds from the start of the run to the end of each forward.
        rows: [forwards]: how many of the run's tokens each forward read.
        holes: those that were filled.
        document: the result, where there is one.
        finish: "end" (the plan or the turn ended), "limit" (closed by force: tokens, positions
            or depth), "time" (closed by force at max_seconds) or "interrupted" (cut off).
        seconds: of the whole run.
    """

    model: str = ""
    form: str = "multiverse"
    seed: int = 0
    share: int = Field(default=0, ge=0)
    threads: tuple[TracedThread, ...] = (TracedThread(id=0),)
    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    owners: tuple[int, ...] = ()
    position_ids: tuple[int, ...] = ()
    authors: tuple[Author, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    steps: tuple[int, ...] = ()
    ends: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    holes: tuple[FilledHole, ...] = ()
    document: Document | None = None
    finish: Literal["end", "limit", "time", "interrupted"] = "end"
    seconds: float = Field(default=0.0, ge=0)

    def __len__(self) -> int:
        return len(self.ids)

    @model_validator(mode="after")
    def _check(self) -> Trace:
        columns = ("texts", "owners", "position_ids", "authors", "logprobs", "steps")
        for name in columns:
            if len(getattr(self, name)) != len(self.ids):
                raise ValueError(f"{name} has {len(getattr(self, name))} of {len(self.ids)} tokens")
        for index, thread in enumerate(self.threads):
            parent = -1 if thread.parent is None else thread.parent
            if thread.id != index or parent >= index or (parent < 0) != (index == 0):
                raise ValueError(f"threads[{index}] is not in order")
        if any(not 0 <= owner < len(self.threads) for owner in self.owners):
            raise ValueError("a token's thread is not listed")
        if any(step >= len(self.ends) for step in self.steps) or len(self.rows) != len(self.ends):
            raise ValueError("a token's step is not listed")
        return self

    # Reading

    @cached_property
    def prompt(self) -> int:
        """How many tokens the run was given before its first own one."""
        own = (i for i, author in enumerate(self.authors) if author != "prompt")
        return next(own, len(self.ids))

    @property
    def answer(self) -> int:
        """How many tokens are the assistant's."""
        return sum(author != "prompt" for author in self.authors)

    @property
    def critical_path(self) -> int:
        """Positions from the assistant's first token to its last, without prompts in between."""
        own = [p for p, a in zip(self.position_ids, self.authors, strict=True) if a != "prompt"]
        if not own:
            return 0
        given = [p for p, a in zip(self.position_ids, self.authors, strict=True) if a == "prompt"]
        between = sum(min(own) < position < max(own) for position in given)
        return max(own) - min(own) + 1 - between

    @property
    def parallelism(self) -> float:
        """The assistant's tokens over their critical path; 1 for a plain turn."""
        return self.answer / self.critical_path if self.answer else 1.0

    @property
    def text(self) -> str:
        """The assistant's text, in the order of the surface form."""
        pairs = zip(self.texts, self.authors, strict=True)
        return "".join(text for text, author in pairs if author != "prompt")

    def chain(self, thread: int) -> Chain:
        """Return what decides whom a thread's tokens see, with `mvspec.step.sees`."""
        links: list[tuple[int, int]] = []
        at: TracedThread | None = self.threads[thread]
        while at is not None and at.parent is not None:
            links.append((at.block, at.id))
            at = self.threads[at.parent]
        return tuple(reversed(links))

    def _repr_html_(self) -> str:
        from mvspec.runtime.drawing import timeline_svg

        bodies = [f'<div style="overflow-x:auto">{timeline_svg(self)}</div>']
        bodies += [tree_html(self.document)] if self.document else [text_html(self.text)]
        return panel_html("trace", self._facts(), bodies)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("model", self.model)] if self.model else []
        facts += [("tokens", f"{self.answer:,}"), ("critical path", f"{self.critical_path:,}")]
        facts += [("parallelism", f"{self.parallelism:.2f}"), ("finish", self.finish)]
        return [*facts, ("share", str(self.share))] if self.share else facts

    # As plans and layouts

    @cached_property
    def plan(self) -> ExecutionPlan:
        """The replay of the run: the same tokens, written instead of generated."""
        return ExecutionPlan(ops=tuple(_ops(self)), form=self.form, document=self.document).verify()

    @property
    def layout(self) -> Layout:
        """The run's tokens laid out as in training: by the law, or in rounds where paths shared.

        Rounds have another order than `ids`.
        """
        return plan_layout(self.plan, share=self.share)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Append the trace to a JSONL file, a line each."""
        with open(path, "a", encoding="utf-8") as file:
            file.write(self.model_dump_json(exclude_none=True) + "\n")

    @classmethod
    def from_json(cls, text: str | bytes) -> Trace:
        """Read one line of a file that `save` wrote.

        Raises:
            VerifyError: it is no trace; the address says where.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise verify_error(error) from None


def _ops(trace: Trace) -> Iterator[Op]:
    """Yield the ops of a trace's replay, in the order of the surface form."""
    blocks: dict[int, list[int]] = {}
    for thread in trace.threads[1:]:
        blocks.setdefault(thread.block, []).append(thread.id)
    name = {0: 0}  # thread -> the plan's number of it, which changes with every join
    made = 1
    opened: list[list[int]] = []
    index, n = 0, len(trace)

    def fork(block: int, thread: int) -> Fork:
        nonlocal made
        paths = tuple(range(made, made + len(blocks[block])))
        made += len(paths)
        name.update(zip(blocks[block], paths, strict=True))
        opened.append([block, thread])
        return Fork(thread=name[thread], paths=paths)

    def join() -> Join:
        nonlocal made
        block, thread = opened.pop()
        ends = tuple(name[path] for path in blocks[block])
        name[thread], made = made, made + 1
        return Join(paths=ends, thread=name[thread])

    while index < n:
        owner = trace.owners[index]
        chain = trace.chain(owner)
        inside = [block for block, _ in chain]
        while [block for block, _ in opened] != inside[: len(opened)]:
            yield join()
        for block in inside[len(opened) :]:
            parent = trace.threads[blocks[block][0]].parent
            yield fork(block, parent or 0)
        stop = index
        author = trace.authors[index]
        while stop < n and (trace.owners[stop], trace.authors[stop]) == (owner, author):
            stop += 1
        yield Extend(thread=name[owner], tokens=trace.ids[index:stop], author=author)
        index = stop
    while opened:
        yield join()
