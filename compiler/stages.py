"""One document through every stage of the compiler, each stage's result kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mvspec.compiler.layout import Layout
from mvspec.compiler.lowerings import UNFORCED, find_lowering, flatten, multiverse
from mvspec.compiler.segments import NO_CONTEXT, Segment, rewriting, row_segments
from mvspec.compiler.tokens import Tokens, tokens_of_segments
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.chat import ChatContext
from mvspec.errors import Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.metrics import Metrics
from mvspec.tree.ir import Document, Message

REORDERED = ("tree", "shared")
"""Lowerings whose tokens stand in another order than the text's."""


@dataclass(frozen=True)
class Stages:
    """A document in every stage of the compiler.

    Args:
        lowering: the name of the lowering.
        segments: what was tokenised on its own.
        tokens: in the order of the surface form.
        layout: equal to what `compile_document` returns.
    """

    lowering: str
    segments: list[Segment]
    tokens: Tokens
    layout: Layout

    @property
    def reordered(self) -> bool:
        """Whether the layout has the tokens in another order than `tokens`."""
        return self.lowering.startswith(REORDERED)

    @property
    def metrics(self) -> Metrics:
        """The counts of the assistant's tokens; the law's degree of parallelism, whatever the
        lowering, but that of plain text where the layout is plain."""
        law = self.tokens.metrics
        return Metrics(law.tokens, law.tokens) if self.lowering == "sequential" else law

    def threads(self) -> list[str]:
        """Return for each token of `tokens` its path, as "2.1" (first path inside the second)."""
        runs = self.tokens.law.runs
        lengths = np.diff([*(run.start for run in runs), len(self.tokens.ids)])
        return [
            ".".join(str(path + 1) for _, path in run.thread.chain)
            for run, length in zip(runs, lengths.tolist(), strict=True)
            for _ in range(length)
        ]


def segments_of(
    document: Document | Message,
    vocabulary: Vocabulary,
    lowering: str,
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    context: ChatContext = NO_CONTEXT,
    ended: bool = False,
) -> list[list[Segment]]:
    """Cut a document into the segments that a lowering tokenises, row by row."""
    find_lowering(lowering)
    if lowering == "autoregressive":
        document = flatten(document)
    return row_segments(
        document, vocabulary.source, syntax=syntax, template=template,
        forced=lowering not in UNFORCED, context=context, ended=ended,
    )  # fmt: skip


def uses_template(vocabulary: Vocabulary) -> bool | None:
    """Return whether records are rendered with a chat template, as engines render requests."""
    return bool(getattr(vocabulary.source, "chat_template", None)) or None


def compile_rows(
    document: Document | Message,
    tokenizer: Any,
    lowering: str = "multiverse",
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced_loss: bool = False,
    context: ChatContext = NO_CONTEXT,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    ended: bool = False,
) -> list[Stages]:
    """Compile a document to the rows that teach it, and keep what lies on the way.

    It is one row but where the chat template writes earlier turns anew (it drops their thoughts,
    for example): then it is one for each turn with loss, as a run asks for it.

    Args:
        document, tokenizer, lowering, syntax: as of `compile_document`.
        template, forced_loss, context, chat_template_kwargs: as of `compile_document`.
        ended: whether turns that no template is around end with the tokenizer's end-of-text token.

    Raises:
        Unsupported: as `compile_document`; or nothing would teach the model to stop.
    """
    function = find_lowering(lowering)
    if forced_loss and lowering != "multiverse":
        raise Unsupported(f"lowering {lowering!r} has no loss on forced tokens")
    vocabulary = Vocabulary.of(tokenizer, tagged=syntax.tagged).asking(chat_template_kwargs)
    made = []
    rows = segments_of(
        document, vocabulary, lowering, syntax=syntax, template=template, context=context,
        ended=ended,
    )  # fmt: skip
    for parts in rows:
        tokens = tokens_of_segments(parts, vocabulary)
        given = tokens
        if tokens.unlearned is not None:
            learned = ~tokens.unlearned
            given = replace(tokens, free=tokens.free & learned, forced=tokens.forced & learned)
        layout = multiverse(given, forced_loss=True) if forced_loss else function(given)
        made.append(Stages(lowering, parts, tokens, layout))
    return made


def compile_stages(document: Document | Message, tokenizer: Any, *args: Any, **how: Any) -> Stages:
    """Compile a document to its one row, and keep what lies on the way; as `compile_rows`.

    Raises:
        Unsupported: as `compile_document`.
    """
    rows = compile_rows(document, tokenizer, *args, **how)
    if len(rows) > 1:
        raise Unsupported(
            f"the chat template writes earlier turns anew, so the conversation is {len(rows)} rows "
            f"and not one ({rewriting(rows[0].segments, rows[-1].segments)}): use compile_rows, or "
            "let only its last turn carry loss: context=ChatContext(no_loss=...)"
        )
    return rows[0]


def compile_document(
    document: Document | Message,
    tokenizer: Any,
    lowering: str = "multiverse",
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced_loss: bool = False,
    context: ChatContext = NO_CONTEXT,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Layout:
    """Compile a document to its layout.

    Args:
        document: without holes; or one assistant turn.
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`, with the tags.
        lowering: a name in `LOWERINGS`, or "shared(k)".
        syntax: the surface form.
        template: whether to render the chat template; by default where the document has a
            message that is not the assistant's.
        forced_loss: let forced tokens carry loss where their flat predecessor is their parent
            (`multiverse` only).
        context: what a chat says beside the document: tools, and turns without loss.
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.

    Raises:
        Unsupported: the tokenizer, the template or a hole stands in the way; or the conversation
            is several rows (`compile_rows`).

    >>> import mvspec
    >>> from mvspec.compiler import add_tags
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.BPE(
    ...     vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    ...     merges=[]))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> _ = add_tags(tokenizer)
    >>> block = mvspec.parallel(mvspec.branch("a", "x"), mvspec.branch("b", "yy"))
    >>> layout = compile_document(mvspec.assistant(block), tokenizer)
    >>> len(layout), int(layout.position_ids.max()) + 1
    (50, 41)
    """
    return compile_stages(
        document, tokenizer, lowering, syntax=syntax, template=template,
        forced_loss=forced_loss, context=context, chat_template_kwargs=chat_template_kwargs,
    ).layout  # fmt: skip
