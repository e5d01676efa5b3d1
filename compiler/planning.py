"""Documents and traces to plans, and plans to layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join, Op
from mvspec.compiler.segments import NO_CONTEXT, Segment, document_segments
from mvspec.compiler.tokens import id_array
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.chat import ChatContext
from mvspec.errors import Unsupported, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.law.threads import SurfaceLaw, thread_events
from mvspec.shown import as_plan
from mvspec.trace import Trace
from mvspec.tree.ir import Document, Message


def plan_document(
    document: Document | Message,
    tokenizer: Any,
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    limits: Limits | None = None,
    context: ChatContext = NO_CONTEXT,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ExecutionPlan:
    """Lower a document to a plan.

    A document without holes becomes a replay: all of it is written, nothing generated. One that
    does not end with an assistant's turn becomes an adaptive plan.

    Args:
        document: a conversation, or one assistant turn.
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`.
        syntax: the surface form; `UNTAGGED` for a model that was never taught the tags.
        template: see `mvspec.compiler.document_segments`.
        limits: of an adaptive plan.
        context: what a chat says beside the document, as its tools.
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.

    Raises:
        Unsupported: the tokenizer is refused.

    >>> import mvspec
    >>> from mvspec.forms.untagged import UNTAGGED
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.BPE(
    ...     vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    ...     merges=[]))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> document = mvspec.document(mvspec.assistant(mvspec.parallel(
    ...     mvspec.branch("Cost", mvspec.gen("cost", 8)), mvspec.branch("Speed", "Fast."))))
    >>> print(plan_document(document, tokenizer, syntax=UNTAGGED))
    %0 = start
    %1, %2 = fork %0
    extend %1 9 tokens
    generate %1 $cost max 8
    extend %2 10 tokens
    extend %2 5 tokens
    %3 = join %1, %2
    extend %3 1 tokens
    extend %3 1 tokens
    """
    if isinstance(document, Message):
        document = Document(messages=(document,))
    vocabulary = Vocabulary.of(tokenizer, tagged=syntax.tagged).asking(chat_template_kwargs)
    parts = document_segments(
        document, vocabulary.source, syntax=syntax, template=template, context=context
    )
    leads = _take_leads(parts)
    static = bool(document.holes)
    answered = bool(document.messages) and document.messages[-1].role == "assistant"
    if static and answered and parts and parts[-1].author == "template":
        parts.pop()  # what the template writes after the turn
    ops = _ops(parts, leads, vocabulary, replay=not static)
    if not answered:
        if not static:  # turns that were written before are given, like the questions
            ops = [
                op.model_copy(update={"author": "prompt"}) if isinstance(op, Extend) else op
                for op in ops
            ]
        ops.append(Adaptive(thread=_last_thread(ops), limits=limits or Limits()))
    return ExecutionPlan(ops=tuple(ops), form=syntax.name, document=document).verify()


def _take_leads(parts: list[Segment]) -> dict[int, str]:
    """Move the space before a hole into it; return the holes' leads by their index in `parts`.

    A tokenizer joins a space with the word after it, in training too: written alone, it would
    have the model go on from a token that it never saw there.
    """
    leads: dict[int, str] = {}
    for index in range(1, len(parts)):
        before = parts[index - 1]
        ours = before.author in ("model", "engine") and before.hole is None
        if parts[index].hole and ours and before.text.endswith(" "):
            parts[index - 1] = replace(before, text=before.text[:-1])
            leads[index] = " "
    return leads


@dataclass(slots=True)
class _OpenFork:
    """A fork while its paths go by."""

    at: int  # where its op goes
    thread: int
    paths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # of its paths, after the joins inside them


def _ops(
    parts: Sequence[Segment], leads: Mapping[int, str], vocabulary: Vocabulary, *, replay: bool
) -> list[Op]:
    written = [p.text for p in parts if p.text and p.author != "outside"]
    encoded = iter(vocabulary.encode_batch(written))
    ops: list[Op | None] = []
    frames: list[_OpenFork] = []
    thread, made = 0, 1
    forks = False
    for index, part in enumerate(parts):
        if part.tag is Tag.PATH:
            if forks:
                frames.append(_OpenFork(len(ops), thread))
                ops.append(None)  # the fork, once all its paths are known
            thread, made = made, made + 1
            frames[-1].paths.append(thread)
            frames[-1].ends.append(thread)
        elif part.tag is Tag.CONCLUSION:
            frame = frames.pop()
            ops[frame.at] = Fork(thread=frame.thread, paths=tuple(frame.paths))
            thread, made = made, made + 1
            ops.append(Join(paths=tuple(frame.ends), thread=thread))
            if frames:
                frames[-1].ends[-1] = thread
        if part.hole:
            ops.append(Generate(thread=thread, hole=part.hole, lead=leads.get(index, "")))
        elif part.text:
            outside = part.author == "outside"
            ids = vocabulary.encode_outside(part.text) if outside else next(encoded)
            author = "prompt" if part.author in ("outside", "template") else "engine"
            if replay and part.author == "model":
                author = "model"
            ops.append(Extend(thread=thread, tokens=tuple(ids), author=author))
        forks = part.tag is Tag.END_GOAL or part.text.endswith(Tag.END_GOAL.value)
    return [op for op in ops if op is not None]


def _last_thread(ops: Sequence[Op]) -> int:
    return ops[-1].thread if ops and not isinstance(ops[-1], Fork) else 0


def plan_layout(plan: ExecutionPlan, holes: Mapping[str, Sequence[int]] | None = None) -> Layout:
    """Return the layout of what a static plan makes, in the order of the surface form.

    Args:
        plan: without `adaptive`.
        holes: for each hole the token ids that fill it, its lead's included.

    Raises:
        Unsupported: the plan is adaptive, or a hole has no ids.
        VerifyError: its ops are not in the order of the surface form.
    """
    ids: list[int] = []
    authors: list[int] = []
    law = SurfaceLaw()
    threads = {0: law.here}

    def enter(thread: int, where: str) -> None:
        """Go to a thread, past the paths before it that have no op."""
        target = threads[thread]
        while law.here is not target:
            here = law.here
            if here.parent is None or here.parent is not target.parent or here.path > target.path:
                raise VerifyError(where, "a layout takes all of one path, then all of the next")
            law.end()

    for index, op in enumerate(plan.verify().ops):
        where = f"ops[{index}]"
        if isinstance(op, Adaptive):
            raise Unsupported("an adaptive plan has no layout before it runs")
        if isinstance(op, Join):
            enter(op.paths[-1], where)
            law.end()
            threads[op.thread] = law.here
            continue
        enter(op.thread, where)
        if isinstance(op, Fork):
            fork = law.here
            law.fork(len(op.paths))
            threads.update(zip(op.paths, fork.paths, strict=True))
            continue
        if isinstance(op, Generate):
            name = op.hole.name
            if holes is None or name not in holes:
                raise Unsupported(f"hole {name!r} has no tokens yet")
            new, author = id_array(holes[name]).tolist(), 2
        else:
            new, author = list(op.tokens), ("prompt", "engine", "model").index(op.author)
        law.tokens(len(new))
        ids += new
        authors += [author] * len(new)
    who = np.array(authors, dtype=np.int8)
    return lay_out(np.array(ids, dtype=np.int32), who == 2, who == 1, law)


@as_plan.register
def replay_plan(trace: Trace) -> ExecutionPlan:
    """Return the replay of a run: the same tokens, written instead of generated."""
    plan = ExecutionPlan(ops=tuple(_trace_ops(trace)), form=trace.form, document=trace.document)
    return plan.verify()


def _trace_ops(trace: Trace) -> Iterator[Op]:
    """Yield the ops of a trace's replay, in the order of the surface form."""
    runs = [(owner, author, len(list(group))) for (owner, author), group in
            groupby(zip(trace.thread_ids, trace.authors, strict=True))]  # fmt: skip
    following = iter(runs)
    names = {0: 0}  # thread -> the plan's number of it, which changes with every join
    made, at = 1, 0
    for event in thread_events(trace.threads, [owner for owner, _, _ in runs]):
        thread, paths = event.thread, event.paths
        if event.kind == "tokens":
            _, author, count = next(following)
            tokens = trace.ids[at : at + count]
            yield Extend(thread=names[thread], tokens=tokens, author=author)
            at += count
        elif event.kind == "fork":
            names.update(zip(paths, range(made, made + len(paths)), strict=True))
            yield Fork(thread=names[thread], paths=tuple(names[path] for path in paths))
            made += len(paths)
        elif paths:
            parent = trace.threads[thread].parent or 0
            names[parent], made = made, made + 1
            yield Join(paths=tuple(names[path] for path in paths), thread=names[parent])
