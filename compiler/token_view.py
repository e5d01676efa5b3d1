"""A document laid out in a tokenizer's tokens, as `mvspec view --tokenizer` shows it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from tokenizers.decoders import DecodeStream

from mvspec.compiler.stages import compile_stages
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.data.chat import ChatContext
from mvspec.errors import Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.tree.ir import Document, Parallel, Path, Text
from mvspec.view.record_view import (
    AUTHORS,
    RecordView,
    TokenRun,
    TreeBranch,
    TreeLeaf,
    ViewedThread,
    add_run,
    trees,
    units,
)


def lay_tokens(document: Document, vocabulary: Vocabulary) -> RecordView:
    """Lay a document out in tokens, in the form `multiverse`.

    Args:
        document: without holes.
        vocabulary: of the tokenizer.

    Raises:
        Unsupported: the tokenizer, its template or a hole stands in the way.
    """
    silent = ChatContext(no_loss=frozenset(range(len(document.messages))))
    stages = compile_stages(document, vocabulary, context=silent)  # what is shown teaches nothing
    tokens, positions = stages.tokens, stages.layout.position_ids
    view = RecordView(unit="tokens", text="".join(part.text for part in stages.segments))
    stream = DecodeStream(skip_special_tokens=False)
    texts = [stream.step(vocabulary.backend, id) or "" for id in tokens.ids.tolist()]
    if "".join(texts) != view.text:
        raise Unsupported("the tokenizer's tokens do not add up to the text")
    view.ids = tokens.ids.tolist()
    view.widths = [units(text) for text in texts]
    view.tree = tuple(_messages(document, view.text))
    law = tokens.law
    titles = {
        id(path): outline.text
        for block in document.walk(Parallel)
        for outline, path in zip(block.goal.outlines, block.paths, strict=True)
    }
    for thread, path in zip(law.threads[1:], document.walk(Path), strict=True):
        above = thread.parent.rank if thread.parent else 0
        view.threads.append(ViewedThread(path.label, titles[id(path)], above, thread.block))
    authors = np.where(tokens.free, AUTHORS.index("model"), 0)
    authors[tokens.forced] = AUTHORS.index("engine")
    changes = (np.flatnonzero(np.diff(authors)) + 1).tolist()
    owners = {run.start: run.thread for run in law.runs}
    owner = law.threads[0]
    for start, stop in pairwise(sorted({*owners, *changes, len(texts)})):
        owner = owners.get(start, owner)
        place = owner.rank, int(authors[start])
        add_run(view.runs, TokenRun(*place, stop - start, int(positions[start])))
    return view


def _messages(document: Document, text: str) -> list[TreeBranch | TreeLeaf]:
    """Return the tree, each message where the text has it, and what a template wrote between."""
    out: list[TreeBranch | TreeLeaf] = []
    at = place = 0
    for message in document.messages:
        if message.role == "assistant":
            body = "".join(piece.text for piece in MULTIVERSE.pieces(message))
        else:
            body = "".join(part.text for part in message.body if isinstance(part, Text))
        found = text.find(body, at)
        if found < 0:
            raise Unsupported(f"the text has no {message.role} message")
        place += units(text[at:found])
        at = found + len(body)
        stop = place + units(body)
        inside: tuple[TreeBranch | TreeLeaf, ...] = (TreeLeaf(place, stop),) if body else ()
        if message.role == "assistant":
            inside = trees(message, MULTIVERSE, place)
        out.append(TreeBranch("message", message.role, "", place, stop, inside))
        place = stop
    return out
