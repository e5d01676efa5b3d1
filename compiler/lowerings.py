"""Lowerings of a document: the layout of the law, and those of other systems to compare with.

Each lowering is a pure function from tokens to a `Layout`. Only `multiverse` and `shared` are
served by this project's engines; the others are what other trainers and engines see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.layout import Layout, lay_out
from mvspec.compiler.tokens import Tokens, tokens_of_ids
from mvspec.compiler.vocabulary import TAGS
from mvspec.errors import Unsupported
from mvspec.law.tags import Tag
from mvspec.law.threads import SurfaceLaw
from mvspec.tree.ir import Document, Gen, Message, Parallel, Text, Think
from mvspec.tree.node import Node


def multiverse(tokens: Tokens, *, forced_loss: bool = False) -> Layout:
    """Lay tokens out by the structural law."""
    return lay_out(tokens.ids, tokens.free, tokens.forced, tokens.law, forced_loss=forced_loss)


def sequential(tokens: Tokens) -> Layout:
    """Lay the structured text out as plain causal text, all of it the model's own.

    Source: the rebuttal's question whether plain fine-tuning on such text would suffice.
    """
    written = tokens.free | tokens.forced
    return lay_out(tokens.ids, written, np.zeros_like(written), SurfaceLaw())


@overload
def flatten(document: Document) -> Document: ...
@overload
def flatten(document: Message) -> Message: ...
@overload
def flatten(document: Document | Message) -> Document | Message: ...
def flatten(document: Document | Message) -> Document | Message:
    """Return a document without blocks: the paths' text in order, one after the other.

    Tags, labels and the text of Goal and Conclusion go; `Think` stays.
    Source: the paper's autoregressive baseline.

    Raises:
        Unsupported: the document has holes.
    """
    if isinstance(document, Document):
        messages = tuple(flatten(message) for message in document.messages)
        return Document.build(messages=messages)
    body: list[Node] = []
    rest: tuple[Node, ...] = document.body
    if rest and isinstance(rest[0], Think):
        body.append(Think.build(body=_as_text(rest[0].body)))
        rest = rest[1:]
    return Message.build(role=document.role, body=(*body, *_as_text(rest)))


def _as_text(body: tuple[Any, ...]) -> tuple[Text, ...]:
    text = "\n".join(_lines(body))
    return (Text.build(text=text),) if text else ()


def _lines(body: tuple[Any, ...]) -> list[str]:
    lines: list[str] = []
    for item in body:
        if isinstance(item, Gen):
            raise Unsupported(f"hole {item.name!r} has no text yet: fill it first")
        if isinstance(item, Parallel):
            for path in item.paths:
                lines += _lines(path.body)
        else:
            lines.append(item.text)
    return lines


def shared(k: int) -> Callable[[Tokens], Layout]:
    """Return the lowering in which paths read each other after every `k` tokens.

    Tokens of a block are laid out in rounds of `k` positions from its outermost fork on: a
    token sees the rounds before its own, and of its own round what the law shows it.

    Source: the rebuttal's ablation (Table R1), Group Think, Hogwild.
    """
    if k < 1:
        raise Unsupported(f"shared({k}): paths read each other after at least one token")
    k = min(k, np.iinfo(np.int32).max)

    return lambda tokens: in_rounds(
        lay_out(tokens.ids, tokens.free, tokens.forced, tokens.law), tokens.law, k
    )


def in_rounds(layout: Layout, law: SurfaceLaw, k: int) -> Layout:
    """Lay the tokens of a layout of the law out in rounds of `k` positions."""
    n = len(layout)
    depth = layout.depth
    starts, positions, _, threads = zip(*law.runs, strict=True)
    lengths = np.diff([*starts, n])
    # Rounds are counted from the outermost fork: the runs up to its join are one group.
    inside = np.array([bool(thread.chain) for thread in threads])
    first = ~inside
    first[1:] |= ~inside[:-1]
    group = np.cumsum(first) - 1
    base = np.array(positions, dtype=np.int32)[first][group]
    numbers = np.full((2, depth, len(threads)), -1, dtype=np.int32)  # of block and path
    for run, thread in enumerate(threads):
        for level, pair in enumerate(thread.chain):
            numbers[:, level, run] = pair
    rounds = (layout.position_ids - np.repeat(base, lengths)) // k
    rounds[~np.repeat(inside, lengths)] = 0
    order = np.lexsort((np.arange(n), rounds, np.repeat(group, lengths)))
    place = np.empty(n, dtype=np.int32)
    place[order] = np.arange(n, dtype=np.int32)
    hide = np.zeros((2, depth, n), dtype=np.int32)
    round_ = rounds[order]
    index = np.arange(n, dtype=np.int32)
    of_tokens = np.repeat(numbers, lengths, axis=2)[..., order]
    for level, (blocks, paths) in enumerate(zip(*of_tokens, strict=True)):
        # Within one round, the tokens of a block stand together, path after path.
        new_block = index == 0
        new_block[1:] = (blocks[1:] != blocks[:-1]) | (round_[1:] != round_[:-1])
        new_path = new_block.copy()
        new_path[1:] |= paths[1:] != paths[:-1]
        lo = np.maximum.accumulate(np.where(new_block, index, 0))
        hi = np.maximum.accumulate(np.where(new_path, index, 0))
        hidden = (blocks >= 0) & (lo < hi)
        hide[0, level] = np.where(hidden, lo, 0)
        hide[1, level] = np.where(hidden, hi, 0)
    parent = np.where(layout.parent >= 0, place[layout.parent], -1).astype(np.int32)
    return Layout(
        layout.input_ids[order], layout.position_ids[order], parent[order], layout.loss_mask[order],
        layout.document_ids[order], hide[0], hide[1],
    )  # fmt: skip


def tree(tokens: Tokens) -> Layout:
    """Lay out what a stock engine sees that re-reads all paths as plain text at the join.

    The surviving chain comes first: the whole text, plain causal. A path after the first was
    generated from the prefix alone, so it follows as a branch of its own off that prefix, and
    carries its loss there; its copy in the chain carries none. Parents follow the tree.

    Source: ThreadWeaver's prefix trie; here no token carries loss twice.
    """
    n = len(tokens.ids)
    # A path's home is the sequence that generates it: its own branch, or, for the first of its
    # siblings, the one that it continues.
    home_of = [0]
    home = np.zeros(n, dtype=np.int32)
    branches = [_Branch(0, n, 0, 0, 0, ())]
    for path in tokens.law.threads[1:]:
        end = n if path.stop < 0 else path.stop
        outer = home_of[path.parent.rank] if path.parent else 0
        if path.path == 0:
            home_of.append(outer)
            continue
        host = branches[outer]
        fork = host.place + path.fork + 1 - host.start
        place = branches[-1].place + branches[-1].end - branches[-1].start
        hidden = (*host.hidden, (fork, place))
        position = host.position + path.fork + 1 - host.start
        home_of.append(len(branches))
        home[path.start : end] = len(branches)
        branches.append(_Branch(path.start, end, place, fork, position, hidden))
    source = np.concatenate([np.arange(b.start, b.end, dtype=np.int32) for b in branches])
    index = np.arange(len(source), dtype=np.int32)
    parent = index - 1
    position_ids = np.empty_like(index)
    loss = np.zeros(len(source), dtype=np.bool_)
    hide = np.zeros((2, max(len(b.hidden) for b in branches), len(source)), dtype=np.int32)
    for number, b in enumerate(branches):
        rows = slice(b.place, b.place + b.end - b.start)
        position_ids[rows] = b.position + np.arange(b.end - b.start, dtype=np.int32)
        parent[b.place : b.place + 1] = b.fork - 1
        loss[rows] = tokens.free[b.start : b.end] & (home[b.start : b.end] == number)
        for level, interval in enumerate(b.hidden):
            hide[:, level, rows] = np.array(interval, dtype=np.int32)[:, None]
    loss &= parent >= 0
    zeros = np.zeros(len(source), dtype=np.int32)
    return Layout(tokens.ids[source], position_ids, parent, loss, zeros, hide[0], hide[1])


@dataclass(frozen=True)
class _Branch:
    """Tokens [start, end), laid out from `place` on; it sees what comes before `fork` of its
    host, and of itself; `hidden` says so."""

    start: int
    end: int
    place: int
    fork: int
    position: int
    hidden: tuple[tuple[int, int], ...]


def published(tokens: Tokens) -> Layout:
    """Reproduce the published training tensors, for comparison and published checkpoints.

    There, a path spans `<Path>` to `</Path>`; separators belong to no path, so later paths see
    them; `<Path>` sits on the position of the separator after `</Goal>`; `<Conclusion>` right
    after the longest `</Path>`; labels are shifted by one in flat order.
    """
    paths = iter(tokens.law.threads[1:])
    n = len(tokens.ids)
    starts, positions = [0], [0]
    blocks: list[list[int]] = []  # of the open blocks: [where paths start, longest path's end]
    siblings: dict[int, list[tuple[int, int]]] = {}
    levels: list[NDArray[np.int32]] = []
    for number, end in zip(tokens.tags.tolist(), tokens.ends.tolist(), strict=True):
        at = positions[-1] + end - 1 - starts[-1]
        if TAGS[number] is Tag.END_GOAL:
            blocks.append([at + 1, at])
        elif TAGS[number] is Tag.PATH:
            starts.append(end - 1)
            positions.append(blocks[-1][0])
            path = next(paths)
            here = (end - 1, path.stop if path.stop >= 0 else n)
            rows = slice(*here)
            for earlier in siblings.setdefault(path.block, []):
                # On the first level that is free there.
                level = next((level for level in levels if not level[1, rows].any()), None)
                if level is None:
                    levels.append(level := np.zeros((2, n), dtype=np.int32))
                level[:, rows] = np.array(earlier, dtype=np.int32)[:, None]
            siblings[path.block].append(here)
        elif TAGS[number] is Tag.END_PATH:
            blocks[-1][1] = max(blocks[-1][1], at)
        elif TAGS[number] is Tag.CONCLUSION:
            starts.append(end - 1)
            positions.append(blocks.pop()[1] + 1)
    shift = np.array(starts, dtype=np.int32) - np.array(positions, dtype=np.int32)
    index = np.arange(n, dtype=np.int32)
    hide = np.stack(levels, axis=1) if levels else np.zeros((2, 0, n), dtype=np.int32)
    return replace(
        sequential(tokens),
        position_ids=index - np.repeat(shift, np.diff([*starts, n])),
        hide_lo=hide[0],
        hide_hi=hide[1],
    )


LOWERINGS: dict[str, Callable[[Tokens], Layout]] = {
    "multiverse": multiverse,
    "autoregressive": sequential,
    "sequential": sequential,
    "tree": tree,
    "official": published,
}
"""By name; "shared(k)" as well, for any k. All but `autoregressive` keep the document's text."""

UNFORCED = ("autoregressive", "sequential", "official")
"""Those in which a model writes the whole text by itself: nothing is forced."""


def layout_from_ids(
    ids: Sequence[int] | NDArray[Any],
    tokenizer: Any,
    lowering: str = "multiverse",
    prompt: int = 0,
    forced: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Layout:
    """Lay out token ids that a model produced, tags and all.

    Args:
        ids: [n], the prompt included; any prefix of a well-formed output will do.
        tokenizer: the tokenizer that they belong to.
        lowering: a name in `LOWERINGS` but "autoregressive", or "shared(k)".
        prompt: how many of the ids are the prompt, which carries no loss.
        forced: which tokens an engine wrote [n]; found by rule where not given.

    Raises:
        VerifyError: the tags do not nest; the address is the token's index.
        Unsupported: an id is not in the vocabulary, or the lowering changes the text.
    """
    if lowering == "autoregressive":
        raise Unsupported(
            "lowering 'autoregressive' changes the text: parse it and use compile_document"
        )
    return find_lowering(lowering)(tokens_of_ids(ids, tokenizer, prompt=prompt, forced=forced))


def find_lowering(name: str) -> Callable[[Tokens], Layout]:
    """Return the lowering of that name.

    Raises:
        Unsupported: there is none.
    """
    match = re.fullmatch(r"shared\(([0-9]+)\)", name)
    if match:
        return shared(int(match.group(1)))
    if name not in LOWERINGS:
        raise Unsupported(f"no lowering is named {name!r}: use {', '.join(LOWERINGS)}, shared(k)")
    return LOWERINGS[name]
