"""What a run returns: the values of the holes, the document, and the trace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mvspec.builder import message
from mvspec.compiler.plan import Adaptive
from mvspec.errors import Diagnostic, LimitExceeded, VerifyError
from mvspec.forms import parse
from mvspec.html.notebook import panel_html, text_html
from mvspec.ir import Document
from mvspec.runtime.thread import Token
from mvspec.runtime.trace import FilledHole, Trace, TracedThread

if TYPE_CHECKING:
    from mvspec.runtime.request import Request

__all__ = ["Result", "result_of"]


@dataclass(frozen=True)
class Result:
    """A document that a model has filled or written.

    Args:
        document: with all holes filled, or with the turn that the model wrote; None where a
            plan came without a document and its form cannot be read back.
        values: by hole name: the text, or for a hole with a schema what its JSON says, as an
            instance where the schema was a Pydantic class. A hole that was cut inside its
            constraint is missing; `result["name"]` says why.
        texts: by hole name, as text.
        trace: every token with its thread, position, logprob and step.
        diagnostics: what is malformed, where structure was not enforced.
        top_logprobs: for each token the likeliest ones, where they were asked for.
        logits: those that follow each token, [tokens, vocabulary], where they were asked for.
    """

    document: Document | None
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    trace: Trace
    diagnostics: tuple[Diagnostic, ...] = ()
    top_logprobs: Sequence[tuple[tuple[int, float], ...]] = ()
    logits: Sequence[Tensor | None] | None = None
    errors: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, hole: str) -> Any:
        if hole in self.errors:
            if any(each.name == hole and each.cut for each in self.trace.holes):
                raise LimitExceeded(f"hole {hole!r}: {self.errors[hole]}")
            raise VerifyError(f"hole {hole!r}", self.errors[hole])
        if hole not in self.values:
            known = ", ".join(self.values) or "none"
            raise VerifyError(f"hole {hole!r}", f"the document has no such hole: it has {known}")
        return self.values[hole]

    def _repr_html_(self) -> str:
        filled = [text_html(text, name) for name, text in self.texts.items()]
        failed = [text_html(why, f"{name}: no value") for name, why in self.errors.items()]
        return panel_html("result", [], [*filled, *failed, self.trace._repr_html_()])

    @property
    def text(self) -> str:
        """The assistant's text as the model read and wrote it, in surface order."""
        return self.trace.text


def result_of(request: Request, model: str) -> Result:
    """Return the result of a request that has finished, or was interrupted."""
    stretches = list(request.root.stretches())
    tokens = [token for _, found in stretches for token in found]
    threads = sorted(request.root.threads(), key=lambda live: live.number)
    filling = request.filling
    order = [hole.name for hole in request.plan.holes]
    texts = {name: filling.texts[name] for name in order if name in filling.texts}
    values = {name: filling.values[name] for name in order if name in filling.values}
    spans: dict[str, list[int]] = {}
    for index, token in enumerate(tokens if texts else ()):
        if token.hole:
            spans.setdefault(token.hole, []).append(index)
    holes = tuple(
        FilledHole(
            name=name,
            start=spans[name][0] if name in spans else 0,
            stop=spans[name][-1] + 1 if name in spans else 0,
            text=text,
            cut=name in filling.cut,
        )
        for name, text in texts.items()
    )
    adaptive = any(isinstance(op, Adaptive) for op in request.plan.ops)
    interrupted = not request.finish
    document: Document | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    if adaptive:
        if not interrupted:
            document, diagnostics = _written(request, tokens)
    elif request.plan.document is not None:
        document = request.plan.document
        if not interrupted:
            document = document.fill(texts)
    # Not validated again, and through lists, for speed: many requests may end in one step.
    trace = Trace.model_construct(
        model=model,
        form=request.plan.form,
        seed=request.options.sampling.seed,
        share=request.options.share,
        threads=tuple(
            TracedThread(
                id=live.number, label=live.label, title=live.title, block=live.block,
                parent=None if live.parent is None else live.parent.number,
            )
            for live in threads
        ),
        ids=tuple([token.id for token in tokens]),
        texts=tuple([token.text for token in tokens]),
        owners=tuple([live.number for live, found in stretches for _ in found]),
        position_ids=tuple([token.position for token in tokens]),
        authors=tuple([token.author for token in tokens]),  # type: ignore[misc]
        logprobs=tuple([token.logprob for token in tokens]),
        steps=tuple([token.step for token in tokens]),
        ends=tuple(request.ends),
        rows=tuple(request.rows),
        holes=holes,
        document=document,
        finish="interrupted" if interrupted else request.finish,  # type: ignore[arg-type]
        seconds=time.perf_counter() - request.started,
    )  # fmt: skip
    return Result(
        document=document,
        values=values,
        texts=texts,
        trace=trace,
        diagnostics=diagnostics,
        top_logprobs=([token.top for token in tokens] if request.options.sampling.logprobs else ()),
        logits=[token.logits for token in tokens] if request.options.logits else None,
        errors=dict(filling.errors),
    )


def _written(
    request: Request, tokens: Sequence[Token]
) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Return the plan's document with the turn that the model wrote, after the last prompt."""
    own: list[int] = []
    for token in tokens:
        if token.author == "prompt":
            own.clear()
        elif token.id not in request.lexicon.ends:
            own.append(token.id)
    text = request.lexicon.vocabulary.decode(own)
    diagnostics: tuple[Diagnostic, ...] = ()
    if not request.lexicon.vocabulary.tagged:
        turn = message("assistant", text)
    elif request.options.structure:
        turn = parse(text, request.plan.form).messages[0]
    else:
        found, diagnostics = parse(text, request.plan.form, recover=True)
        turn = found.messages[0]
    planned = request.plan.document
    before = planned.fill(request.filling.texts).messages if planned else ()
    return Document(messages=(*before, turn)), diagnostics
