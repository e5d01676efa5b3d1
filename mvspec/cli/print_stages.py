"""Stages of the compiler printed for people: what each made of a record, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from mvspec.compiler.layout import Layout
from mvspec.compiler.plan import Adaptive, ExecutionPlan, plan_cost
from mvspec.compiler.planning import plan_document, replay_plan
from mvspec.compiler.segments import NO_CONTEXT, Segment
from mvspec.compiler.stages import Stages, compile_rows, segments_of, uses_template
from mvspec.compiler.traced import record_trace, trace_stages
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.chat import ChatContext
from mvspec.data.records import BadRecord, InputError, Record
from mvspec.data.sources import Records
from mvspec.data.where import RowCondition, check_conditions
from mvspec.errors import MvspecError
from mvspec.shown import visible
from mvspec.tree.ir import Document
from mvspec.view.terminal import tree_rich

STAGES = ("ir", "segments", "layout", "plan")

_AUTHORS = {"model": "green", "engine": "yellow", "outside": "cyan", "template": "blue"}
_TEXT = 60
"""Characters of a segment that are shown."""


def emit(
    stage: str,
    document: Document,
    tokenizer: Any,
    lowering: str = "multiverse",
    *,
    forced_loss: bool = False,
    context: ChatContext = NO_CONTEXT,
) -> Iterator[RenderableType]:
    """Yield what a stage made of a document, line by line.

    Args:
        stage: a name in `STAGES`. "ir" is the tree; "segments" what is tokenised on its own;
            "layout" the tokens with position, thread and what they may not see; "plan" what an
            engine would run.

    Raises:
        MvspecError: the document cannot be compiled that far.
    """
    vocabulary = Vocabulary.of(tokenizer)
    how: dict[str, Any] = {"template": uses_template(vocabulary), "context": context}
    if stage == "ir":
        yield tree_rich(document, None)
    elif stage == "segments":
        for row in segments_of(document, vocabulary, lowering, ended=True, **how):
            yield from segment_lines(row)
    elif stage == "plan":
        yield from plan_lines(plan_document(document, tokenizer, **how))
    else:
        rows = compile_rows(
            document, tokenizer, lowering, forced_loss=forced_loss, ended=True, **how
        )
        for stages in rows:
            yield from layout_lines(stages, tokenizer)


def emit_record(
    stage: str,
    record: Record,
    vocabulary: Vocabulary,
    lowering: str = "multiverse",
    *,
    forced_loss: bool = False,
) -> Iterator[RenderableType]:
    """Yield what a stage made of a record: of a run, what its own tokens make.

    Raises:
        MvspecError: as `emit`; BadRecord where it has no document.
    """
    if record.kind != "trace" or stage == "ir":
        document, context = record.needed()
        yield from emit(
            stage, document, vocabulary, lowering, forced_loss=forced_loss, context=context
        )
        return
    trace = record_trace(record, vocabulary)
    if stage == "plan":
        yield from plan_lines(replay_plan(trace))
        return
    stages = trace_stages(trace, vocabulary, lowering, forced_loss)
    yield from (
        segment_lines(stages.segments) if stage == "segments" else layout_lines(stages, vocabulary)
    )


def plan_lines(plan: ExecutionPlan) -> Iterator[Text]:
    """Yield a plan, and its cost where the model decides nothing."""
    yield Text(str(plan))
    if not any(isinstance(op, Adaptive) for op in plan.ops):
        yield Text(str(plan_cost(plan)))


def print_stage(
    stage: str,
    records: Records,
    vocabulary: Vocabulary,
    lowering: str = "multiverse",
    where: Sequence[str] = (),
    *,
    forced_loss: bool = False,
) -> int:
    """Print what a stage makes of every record; return of how many it makes nothing.

    Colours and folding are for terminals only.

    Args:
        where: conditions that a row has to meet.
    """
    console = Console()
    bad = printed = left = 0
    conditions = [RowCondition.parse(text) for text in where]
    check_conditions(records, conditions)
    for record in records:
        try:
            with record.guarded():
                if not all(condition.holds(record) for condition in conditions):
                    left += 1
                    continue
                lines = list(
                    emit_record(stage, record, vocabulary, lowering, forced_loss=forced_loss)
                )
        except BadRecord as error:
            bad += 1
            print(_where(error), file=sys.stderr)
            continue
        except MvspecError as error:
            bad += 1
            print(visible(f"{record.place}: {error}"), file=sys.stderr)
            continue
        title = Text(visible(record.name), "bold underline")
        for line in ([Text("")] if printed else []) + [title, *lines]:
            if isinstance(line, Text) and not console.is_terminal:
                # Rich takes its time with every line, and a layout has thousands.
                print(line.plain)
            else:
                console.print(line, soft_wrap=isinstance(line, Text))
        printed += 1
    if not printed and not bad and not left:
        raise InputError("there is no record in the input")
    if left:
        print(f"left out by --where: {left:,} of {left + printed + bad:,}", file=sys.stderr)
    return bad


def _where(error: BadRecord) -> str:
    entry = error.entry
    place = ":".join(str(entry[key]) for key in ("place", "line", "column") if key in entry)
    return visible(f"{place}: {entry['reason']} [{entry['code']}]")


def segment_lines(parts: list[Segment]) -> Iterator[Text]:
    """Yield a line for each segment: its author and its text."""
    yield Text("author    text", "bold")
    for part in parts:
        if part.hole:
            text = f"hole {part.hole.name}, at most {part.hole.max_tokens} tokens"
        elif part.tag and not part.text:
            text = f"{part.tag}, not written"
        else:
            text = quoted(part.text, _TEXT)
        yield Text.assemble((f"{part.author:<10}", _AUTHORS[part.author]), text)


def layout_lines(stages: Stages, tokenizer: Any) -> Iterator[Text]:
    """Yield a line for each token of a layout, below a line of totals.

    Columns: index, id, position, parent (-1: none), whether it carries loss, its author and path
    (where the layout keeps the text's order), the keys that are hidden from it, its text.
    """
    layout = stages.layout
    yield Text(totals(stages), "bold")
    author, thread = _origins(stages)
    texts = token_texts(layout.input_ids, tokenizer)
    hides = [hidden(layout, index) for index in range(len(layout))]
    rows = [
        (
            str(index),
            str(layout.input_ids[index]),
            str(layout.position_ids[index]),
            str(layout.parent[index]),
            "loss" if layout.loss_mask[index] else "",
            author[index],
            thread[index],
            hides[index],
        )
        for index in range(len(layout))
    ]
    names = ("index", "id", "position", "parent", "loss", "author", "path", "hidden")
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    yield Text("  ".join([*map(_pad, names, widths, range(8)), "text"]), "bold")
    depth = {"": ""}
    for row, text in zip(rows, texts, strict=True):
        style = depth.setdefault(row[6], _STYLES[len(depth) % len(_STYLES)])
        line = "  ".join(map(_pad, row, widths, range(8)))
        yield Text.assemble((line, "dim" if not row[4] else ""), "  ", (quoted(text), style))


_STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red")


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column < 4 else cell.ljust(width)


def totals(stages: Stages) -> str:
    """Return the length, the degree of parallelism and the loss of a layout in a line."""
    layout = stages.layout
    loss = int(layout.loss_mask.sum())
    last = int(layout.position_ids.max(initial=-1))
    return (
        f"{len(layout):,} tokens, positions 0 to {last:,}, "
        f"degree of parallelism {stages.metrics.parallelism:.3f}, {loss:,} with loss, "
        f"depth {layout.depth} ({stages.lowering})"
    )


def _origins(stages: Stages) -> tuple[list[str], list[str]]:
    tokens = stages.tokens
    if stages.reordered:
        blank = [""] * len(stages.layout)
        return blank, blank
    authors = np.where(tokens.free, "model", np.where(tokens.forced, "engine", "prompt"))
    return authors.tolist(), stages.threads()


def hidden(layout: Layout, index: int) -> str:
    """Return the intervals of keys that a token may not see, as "12-40, 50-60" (ends included)."""
    pairs = zip(layout.hide_lo[:, index].tolist(), layout.hide_hi[:, index].tolist(), strict=True)
    return ", ".join(f"{lo}-{hi - 1}" for lo, hi in pairs if lo < hi)


def token_texts(ids: Any, tokenizer: Any) -> list[str]:
    """Return the text of each token; a token that is part of a character shows as �."""
    backend = Vocabulary.of(tokenizer).backend
    texts: list[str] = backend.decode_batch([[int(i)] for i in ids], skip_special_tokens=False)
    return texts


def quoted(text: str, limit: int | None = None) -> str:
    """Return `text` on one line: newlines as ⏎, other invisible characters as pictures."""
    shown = text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"
    return "'" + visible(shown).replace("\n", "⏎") + "'"
