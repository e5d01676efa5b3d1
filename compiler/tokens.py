"""Tokens of a document: ids, their authors, the structural tags among them, and their law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvspec.compiler.segments import Segment, TemplatedChat, document_segments
from mvspec.compiler.vocabulary import TAGS, Vocabulary
from mvspec.errors import MvspecError, Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.syntax import Syntax
from mvspec.law.automaton import TagReader
from mvspec.law.metrics import Metrics
from mvspec.law.tags import Tag
from mvspec.law.threads import SurfaceLaw
from mvspec.tree.builder import message
from mvspec.tree.ir import Document, Message

Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Tokens:
    """A document's tokens in the order of the surface form, and its structural events.

    Args:
        ids: int32 [n].
        free: bool [n]; the model chose the token (an assistant's, not forced).
        forced: bool [n]; an engine wrote it (fork and join headers, forced closings).
        tags: int8 [e]; numbers in `TAGS` of the structural tags, in order.
        ends: int64 [e]; for each tag the index of the token after it.
        unlearned: bool [n]; tokens of turns that carry no loss; None where all of them do.
        run: the law of the run that drew them; None where the tags say it.
    """

    ids: Ids
    free: Flags
    forced: Flags
    tags: NDArray[np.int8]
    ends: NDArray[np.int64]
    unlearned: Flags | None = None
    run: SurfaceLaw | None = None

    @cached_property
    def law(self) -> SurfaceLaw:
        """The law of the tokens.

        Raises:
            VerifyError: the tags do not nest as the grammar has it; the address is the token.
        """
        if self.run is not None:
            return self.run
        ends = self.ends.tolist()
        return self._read(ends, ends, len(self.ids))

    @property
    def metrics(self) -> Metrics:
        """The counts of the tokens that are free or forced: the assistant's."""
        if self.run is not None:
            return self.run.metrics
        own = np.concatenate([[0], np.cumsum(self.free | self.forced)])
        return self._read(self.ends.tolist(), own[self.ends].tolist(), int(own[-1])).metrics

    def _read(self, ends: list[int], own: list[int], all_own: int) -> SurfaceLaw:
        reader = TagReader()
        reader.read([TAGS[number] for number in self.tags.tolist()], ends, own)
        reader.law.tokens(len(self.ids) - reader.law.count, all_own - reader.law.law.own)
        return reader.law


def lower(
    document: Document | Message,
    tokenizer: Any,
    *,
    syntax: Syntax = MULTIVERSE,
    template: bool | None = None,
    forced: bool = True,
) -> Tokens:
    """Tokenise a document segment by segment.

    Args:
        document: a document without holes, or one assistant turn.
        tokenizer: a transformers fast tokenizer or a `tokenizers.Tokenizer`.
        syntax: the surface form.
        template, forced: see `document_segments`.

    Raises:
        Unsupported: the document has holes (make a plan of it), or the tokenizer is refused.
    """
    vocabulary = Vocabulary.of(tokenizer, tagged=syntax.tagged)
    parts = document_segments(
        document, vocabulary.source, syntax=syntax, template=template, forced=forced
    )
    return tokens_of_segments(parts, vocabulary)


def tokens_of_segments(parts: Sequence[Segment], vocabulary: Vocabulary) -> Tokens:
    """Tokenise segments and lay their tokens end to end."""
    for part in parts:
        if part.hole:
            raise Unsupported(
                f"hole {part.hole.name!r} has no tokens yet: plan the document, or fill it first"
            )
    inside = [part.text for part in parts if part.author != "outside" and part.text]
    encoded = iter(vocabulary.encode_batch(inside))
    ids: list[int] = []
    lengths: list[int] = []
    unwritten: list[tuple[int, int]] = []  # (number of the tag, index of the token after it)
    for part in parts:
        if not part.text:
            unwritten.append((TAGS.index(part.tag), len(ids)))
            new: list[int] = []
        elif part.author == "outside":
            new = vocabulary.encode_outside(part.text)
        else:
            new = next(encoded)
        ids += new
        lengths.append(len(new))
    authors = np.repeat(np.array([part.author for part in parts], dtype="U8"), lengths)
    array = np.array(ids, dtype=np.int32)
    tags, ends = tags_of_ids(array, vocabulary) if vocabulary.tag_ids else _events(unwritten)
    learned = [part.loss for part in parts]
    unlearned = None if all(learned) else ~np.repeat(np.array(learned), lengths)
    return Tokens(array, authors == "model", authors == "engine", tags, ends, unlearned)


class EndToken(NamedTuple):
    """Token by which a chat template ends a turn.

    Args:
        id: of the token that ends it.
        lead: what the template writes between the answer and that.
    """

    id: int
    lead: str


def turn_end(vocabulary: Vocabulary) -> EndToken | None:
    """Return how the tokenizer's chat template ends a turn; None where nothing is known of it."""
    source = vocabulary.source
    if not getattr(source, "chat_template", None):
        return None
    try:
        asked = (message("user", "x"), message("assistant", "x"))
        text = TemplatedChat(asked, source).end(1).text
    except MvspecError:
        return None
    ids = vocabulary.encode(text)
    return EndToken(ids[-1], vocabulary.decode(ids[:-1])) if ids else None


def _events(
    unwritten: list[tuple[int, int]],
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    tags = np.array([tag for tag, _ in unwritten], dtype=np.int8)
    return tags, np.array([end for _, end in unwritten], dtype=np.int64)


def tags_of_ids(ids: Ids, vocabulary: Vocabulary) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return the numbers of the tags among `ids`, and the index after each."""
    if len(ids) and int(ids.max()) >= vocabulary.size:
        vocabulary.grow()
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary.size):
        wrong = int(ids[(ids < 0) | (ids >= vocabulary.size)][0])
        raise Unsupported(f"id {wrong} is not in the vocabulary of {vocabulary.size} tokens")
    tags = vocabulary.tag_of_id[ids]
    places = np.flatnonzero(tags >= 0)
    return tags[places], places + 1


def id_array(ids: Sequence[int] | NDArray[Any]) -> Ids:
    """Return token ids as int32 [n].

    Raises:
        Unsupported: they are not one row of numbers that ids can be.
    """
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"token ids are one row of integers: {error}") from None
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise Unsupported(
            f"token ids are one row of integers, not {array.dtype} {list(array.shape)}"
        )
    if len(array) and (int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int32).max):
        wrong = int(array[(array < 0) | (array > np.iinfo(np.int32).max)][0])
        raise Unsupported(f"id {wrong} is not in the vocabulary: no tokenizer has it")
    return np.ascontiguousarray(array, dtype=np.int32)


def tokens_of_ids(
    ids: Sequence[int] | NDArray[Any],
    tokenizer: Any,
    *,
    prompt: int = 0,
    forced: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Tokens:
    """Find the structure of bare ids, as a model and its engine wrote them.

    Args:
        ids: token ids [n], the prompt included.
        tokenizer: the tokenizer that they belong to.
        prompt: how many of them are the prompt, which carries no loss.
        forced: which tokens an engine wrote [n]; by default, by rule: a path from its separator
            through its label's colon, a join from its separator through its newline.
    """
    vocabulary = Vocabulary.of(tokenizer)
    array = id_array(ids)
    if not 0 <= prompt <= len(array):
        raise Unsupported(f"prompt={prompt}, but there are {len(array)} tokens")
    tags, ends = tags_of_ids(array, vocabulary)
    if forced is None:
        written = _headers(array, tags, ends, vocabulary)
    else:
        written = np.array(forced, dtype=np.bool_)
        if written.shape != array.shape:
            raise Unsupported(f"{len(written)} forced flags for {len(array)} tokens")
    free = ~written
    free[:prompt] = written[:prompt] = False
    return Tokens(array, free, written, tags, ends)


def _headers(
    ids: Ids, tags: NDArray[np.int8], ends: NDArray[np.int64], vocabulary: Vocabulary
) -> Flags:
    """Forced tokens by rule: fork headers through the colon, join headers through the newline."""
    forced = np.zeros(len(ids), dtype=np.bool_)
    path, conclusion = TAGS.index(Tag.PATH), TAGS.index(Tag.CONCLUSION)
    n = len(ids)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if len(tags) and TAGS[tags[-1]] in (Tag.END_GOAL, Tag.END_PATH):
        forced[ends[-1] :] = True  # cut before the header's tag: the separator is the header's
    for tag, start, end in zip(tags.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if tag == path:
            at = end
            while at < n and int(ids[at]) in vocabulary.label_ids:
                at += 1
            if at < n and int(ids[at]) in vocabulary.label_end_ids:
                forced[start : at + 1] = True
            else:  # cut inside the header, or a label that was merged into the text
                forced[start : at if at == n else end] = True
        elif tag == conclusion:
            at = end
            while at < n and int(ids[at]) in vocabulary.newline_ids and at - end < 1:
                at += 1
            forced[start:at] = True
    return forced
