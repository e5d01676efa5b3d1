"""Runs to layouts: a trace's own tokens, which are never tokenised again.

Three outputs of a model in four would come back as other ids. A trace has one layout, that of the
run: by the law, or in rounds where its paths read each other. Other lowerings take its ids too,
as far as they neither change the text nor teach a model what a runtime wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

import numpy as np

from mvspec.compiler.chat_template import apart
from mvspec.compiler.layout import Layout
from mvspec.compiler.lowerings import UNFORCED, find_lowering, multiverse, shared
from mvspec.compiler.segments import Segment, TemplatedChat
from mvspec.compiler.stages import Stages, compile_rows, uses_template
from mvspec.compiler.tokens import Tokens, tags_of_ids
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.records import Record
from mvspec.errors import Unsupported, VerifyError
from mvspec.forms import find
from mvspec.law.threads import law_of_threads
from mvspec.shown import as_layout
from mvspec.trace import Trace
from mvspec.tree.ir import Message

_BROKEN = "\ufffd"
"""Stands for part of a character in a token's text."""

_SEGMENTS = {"prompt": "template", "engine": "engine", "model": "model"}
"""What a segment calls the authors of a trace."""


@as_layout.register
def trace_layout(trace: Trace) -> Layout:
    """Return a run's tokens laid out as in training: by the law, or in rounds where paths shared.

    Rounds have another order than the trace's `ids`.
    """
    lowering = shared(trace.share) if trace.share else multiverse
    return lowering(trace_tokens(trace))


def trace_tokens(trace: Trace, vocabulary: Vocabulary | None = None) -> Tokens:
    """Return the tokens of a run with the law of its threads.

    Args:
        vocabulary: finds the tags among them, which only some lowerings read.

    Raises:
        VerifyError: they are not in the order of the surface form.
    """
    ids = np.array(trace.ids, dtype=np.int32)
    authors = np.array(trace.authors, dtype="U6")
    own = authors != "prompt"
    runs = [(trace.thread_ids[start], stop - start, bool(own[start]))
            for start, stop in pairwise(_bounds(np.array(trace.thread_ids), own))]  # fmt: skip
    law, _ = law_of_threads(trace.threads, runs)
    none = np.zeros(0, dtype=np.int8), np.zeros(0, dtype=np.int64)
    tags, ends = tags_of_ids(ids, vocabulary) if vocabulary and vocabulary.tag_ids else none
    return Tokens(ids, authors == "model", authors == "engine", tags, ends, run=law)


def _bounds(*columns: Any) -> list[int]:
    """Return where a stretch of equal values begins in any column, and the end."""
    n = len(columns[0])
    changes = [np.flatnonzero(column[1:] != column[:-1]) + 1 for column in columns]
    return [int(place) for place in np.unique(np.concatenate([[0, n], *changes]))]


def record_rows(
    record: Record, vocabulary: Vocabulary, lowering: str, *, forced_loss: bool = False
) -> list[Stages]:
    """Compile a record to its rows: a run by its own tokens, everything else by its document.

    Raises:
        BadRecord: it has no document, or is no trace.
        MvspecError: it cannot be compiled so; the message says why.
    """
    if record.kind != "trace":
        refused = (record.row or {}).get("error")
        if record.kind == "text" and not record.text and isinstance(refused, str) and refused:
            raise record.bad("no-answer", f"the sample was refused: {refused}")
        document, context = record.needed()
        return compile_rows(
            document, vocabulary, lowering, template=uses_template(vocabulary),
            forced_loss=forced_loss, context=context, ended=True,
        )  # fmt: skip
    return [trace_stages(record_trace(record, vocabulary), vocabulary, lowering, forced_loss)]


def record_trace(record: Record, vocabulary: Vocabulary) -> Trace:
    """Return the run that a record holds.

    Raises:
        BadRecord: it is no trace, holds no ids or those of another tokenizer, or was asked
            otherwise than the tokenizer's chat template asks.
        Unsupported: its prompt shall be another than it was.
    """
    for option, given in (("--prompt-field", record.fields.prompt_field),
                          ("--instruction", record.fields.instruction)):  # fmt: skip
        if given is not None:
            raise Unsupported(
                f"a trace holds the prompt that was asked, and {option} would change it: leave it "
                "out, or name the column of the text with --field"
            )
    if not record.value.get("ids"):
        raise record.bad("no-ids", "the trace holds no ids of tokens: it cannot be compiled")
    try:
        own = {key: each for key, each in record.value.items() if key != "document"}
        trace = Trace.from_dict(own)
    except VerifyError as error:
        raise record.bad("not-a-trace", str(error)) from None
    if why := _other_tokenizer(trace, vocabulary):
        raise record.bad("other-tokenizer", why)
    told = record.value.get("document") and uses_template(vocabulary)
    if told and (why := _other_prompt(trace, record.document.messages, vocabulary)):
        raise record.bad("other-prompt", why)
    return trace


def _other_prompt(trace: Trace, messages: Sequence[Message], vocabulary: Vocabulary) -> str:
    """Return how a run was asked otherwise than the chat template asks; "" where it was not."""
    prompt = next((i for i, each in enumerate(trace.authors) if each != "prompt"), len(trace.ids))
    turns = [n for n, each in enumerate(messages) if n and each.role == "assistant"]
    if not prompt or not turns:
        return ""
    chat = TemplatedChat(messages, vocabulary.source, find(trace.form).syntax)
    was, texts = vocabulary.decode(trace.ids[:prompt]), []
    for number in turns:
        parts = [part for _, part in chat.asked(number)]
        ids: list[int] = []
        for part in parts:
            outside = part.author == "outside"
            ids += (vocabulary.encode_outside if outside else vocabulary.encode)(part.text)
        texts.append("".join(part.text for part in parts))
        if ids == list(trace.ids[:prompt]) or chat.at_another_time(texts[-1], was):
            return ""
    near = max(
        texts,
        key=lambda text: len([*takewhile(lambda p: p[0] == p[1], zip(text, was, strict=False))]),
    )
    return (
        f"the run was asked otherwise than the chat template asks: {apart(was, near)}: use "
        f"the tokenizer of {trace.model or 'the model that drew it'}, and the run's --template-arg"
    )


def _other_tokenizer(trace: Trace, vocabulary: Vocabulary) -> str:
    """Return how the tokenizer that drew a trace is another than this one; "" where it is not."""
    use = f"use the tokenizer of {trace.model or 'the model that drew it'}"
    if trace.vocabulary:
        if vocabulary.holds(trace.vocabulary):
            return ""
        return (
            f"the trace is of another tokenizer (vocabulary {trace.vocabulary}; this one's is "
            f"{vocabulary.fingerprint}): {use}"
        )
    n, ids, texts = vocabulary.size, trace.ids, trace.token_texts
    if (wrong := next((id for id in ids if not 0 <= id < n), None)) is not None:
        return f"the trace is of another tokenizer (id {wrong}; this one has {n} tokens): {use}"
    distinct = sorted(set(ids))
    decoded = vocabulary.backend.decode_batch([[id] for id in distinct], skip_special_tokens=False)
    table = dict(zip(distinct, decoded, strict=True))
    differ = [i for i, (id, text) in enumerate(zip(ids, texts, strict=True)) if table[id] != text]
    if not differ:
        return ""
    # Tokens that are part of a character: the last of them has its text.
    for start, stop in pairwise(_bounds(np.array(trace.thread_ids))):
        here = [i for i in differ if start <= i < stop]
        said = "".join(texts[start:stop]).replace(_BROKEN, "")
        if here and said != vocabulary.decode(ids[start:stop]).replace(_BROKEN, ""):
            at = next((i for i in here if texts[i] and _BROKEN not in table[ids[i]]), here[0])
            return (
                f"the trace is of another tokenizer (id {ids[at]} is {texts[at]!r} there and "
                f"{table[ids[at]]!r} here): {use}"
            )
    return ""


def trace_stages(
    trace: Trace, vocabulary: Vocabulary, lowering: str, forced_loss: bool = False
) -> Stages:
    """Lay the tokens of a run out; under its own lowering this is `trace.layout`.

    Raises:
        Unsupported: the lowering cannot take the ids of this run.
        VerifyError: its threads or positions are not those of the law.
    """
    function = find_lowering(lowering)
    own = f"shared({trace.share})" if trace.share else "multiverse"
    if lowering == "autoregressive":
        raise Unsupported(
            "lowering 'autoregressive' changes the text, and a trace holds the ids that were "
            "drawn: use sequential, or compile its text with --field"
        )
    if trace.share and lowering != own:
        raise Unsupported(f"the run's paths read each other: it is laid out by --lowering '{own}'")
    if forced_loss and lowering != "multiverse":
        raise Unsupported(f"lowering {lowering!r} has no loss on forced tokens")
    if forced_loss or lowering in UNFORCED:
        taught = "--forced-loss" if forced_loss else f"lowering {lowering!r}"
        if trace.finish in ("limit", "time"):
            raise Unsupported(
                f"the run was closed by force, and {taught} would teach the model to stop there: "
                "leave it out with --where finish=end"
            )
        if trace.holes:
            raise Unsupported(
                f"the text around the run's holes was written, and {taught} would teach it: "
                "use lowering multiverse"
            )
    tokens = trace_tokens(trace, vocabulary)
    if lowering == "official":  # which is told by tags alone
        if trace.form == "untagged":
            raise Unsupported("lowering 'official' needs the tags, and the run is untagged")
        tokens = replace(tokens, run=None)
    by_law = multiverse(tokens).position_ids
    if not np.array_equal(by_law, np.array(trace.position_ids)):
        at = int(np.flatnonzero(by_law != np.array(trace.position_ids))[0])
        raise VerifyError(
            f"position_ids[{at}]", f"is {trace.position_ids[at]}, and the law has {by_law[at]}"
        )
    layout = multiverse(tokens, forced_loss=True) if forced_loss else function(tokens)
    columns = np.array(trace.thread_ids), np.array(trace.authors)
    segments = [
        Segment("".join(trace.token_texts[start:stop]), _SEGMENTS[trace.authors[start]])
        for start, stop in pairwise(_bounds(*columns))
    ]
    return Stages(lowering, segments, tokens, layout)
