"""Step iv: the source's own sentences, put back into the structure; and the document around it."""

from __future__ import annotations

from collections.abc import Mapping

from mvspec.curation.answers import Frame
from mvspec.curation.chain import Chain
from mvspec.curation.structure import Body, Run
from mvspec.tree.builder import assistant, branch, document, parallel, think, user
from mvspec.tree.ir import Document, Message, Parallel

__all__ = ["fill", "run_text"]


def fill(
    chain: Chain,
    body: Body,
    frames: Mapping[int, Frame],
    edits: Mapping[int, str],
    *,
    trigger: str = "",
    prefix: str = "",
) -> Document:
    """Return the document: sentences of the source, but for those that are edited.

    White space before a tag becomes the newline that the surface form has there.

    Args:
        chain: the source.
        body: its structure, without gaps.
        frames: goals and conclusion of each block, by number.
        edits: new text of sentences, by number.
        trigger: a line that ends the text before every block, unless it ends so already.
        prefix: how the answer begins, unless it does already.

    Raises:
        VerifyError: a goal, a conclusion or an edit holds a tag.
    """
    made = _filled(chain, body, frames, edits, trigger)
    answer = chain.answer.strip()
    if answer and not answer.startswith(prefix.strip()):
        answer = f"{prefix}{answer}"
    messages: list[Message] = [user(chain.question)] if chain.question else []
    return document(*messages, assistant(think(*made), answer))


def _filled(
    chain: Chain,
    body: Body,
    frames: Mapping[int, Frame],
    edits: Mapping[int, str],
    trigger: str,
) -> list[str | Parallel]:
    out: list[str | Parallel] = []
    for index, item in enumerate(body):
        if isinstance(item, Run):
            out.append(run_text(chain, item, edits).strip())
            continue
        before = out[-1] if index and isinstance(out[-1], str) else None
        if trigger and before is None:
            out.append(trigger)
        elif trigger and before is not None and not before.endswith(trigger):
            out[-1] = f"{before}\n{trigger}"
        frame = frames[item.number]
        branches = [
            branch(goal.strip(), *_filled(chain, path.body, frames, edits, trigger))
            for goal, path in zip(frame.goals, item.paths, strict=True)
        ]
        out.append(parallel(*branches, conclusion=frame.conclusion.strip()))
    return out


def run_text(chain: Chain, run: Run, edits: Mapping[int, str]) -> str:
    """Return the text of a run, edited; the white space around sentences is the source's."""
    parts: list[str] = []
    for number in range(run.first, run.last + 1):
        source = chain.sentences[number - 1]
        new = edits.get(number)
        if new is not None:
            bare = source.strip()
            before, _, after = source.partition(bare)
            source = f"{before}{new.strip()}{after}"
        parts.append(source)
    return "".join(parts)
