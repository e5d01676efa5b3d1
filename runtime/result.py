"""Results of requests: the values of the holes, the document, and the trace."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mvspec.compiler.plan import Adaptive
from mvspec.errors import Diagnostic
from mvspec.forms import parse
from mvspec.runtime.request import PlanRequest
from mvspec.runtime.thread_state import ThreadToken
from mvspec.trace import FilledHole, Result, Trace, TracedThread
from mvspec.tree.builder import message
from mvspec.tree.ir import Document


def result_of(request: PlanRequest, model: str) -> Result:
    """Return the result of a request that has finished, or was interrupted."""
    stretches = list(request.root.stretches())
    tokens = [token for _, found in stretches for token in found]
    threads = sorted(request.root.threads(), key=lambda thread: thread.number)
    filled = request.script.holes
    order = [hole.name for hole in request.plan.holes]
    texts = {name: filled.texts[name] for name in order if name in filled.texts}
    values = {name: filled.values[name] for name in order if name in filled.values}
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
            cut=name in filled.cut,
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
            document = document.fill(texts, check=False)
    # Not validated again, and through lists, for speed: many requests may end in one step.
    trace = Trace.model_construct(
        model=model,
        vocabulary=request.lexicon.vocabulary.fingerprint,
        form=request.plan.form,
        seed=request.options.sampling.seed,
        share=request.options.share,
        threads=tuple(
            TracedThread(
                id=thread.number, label=thread.label, title=thread.title, block=thread.law.block,
                parent=None if thread.parent is None else thread.parent.number,
            )
            for thread in threads
        ),
        ids=tuple([token.id for token in tokens]),
        token_texts=tuple([token.text for token in tokens]),
        thread_ids=tuple([thread.number for thread, found in stretches for _ in found]),
        position_ids=tuple([token.position for token in tokens]),
        authors=tuple([token.author for token in tokens]),  # type: ignore[misc]
        logprobs=tuple([token.logprob for token in tokens]),
        forward_ids=tuple([token.step for token in tokens]),
        forward_seconds=tuple(request.forward_seconds),
        forward_tokens=tuple(request.forward_tokens),
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
        errors=dict(filled.errors),
    )


def _written(
    request: PlanRequest, tokens: Sequence[ThreadToken]
) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Return the plan's document with the turn that the model wrote, after the last prompt."""
    own: list[int] = []
    for token in tokens:
        if token.author == "prompt":
            own.clear()
        elif token.id not in request.lexicon.ends:
            own.append(token.id)
    text = request.lexicon.vocabulary.decode(own)
    if tokens and tokens[-1].id in request.lexicon.ends:  # the template's part of the end
        text = text.removesuffix(request.lexicon.lead)
    diagnostics: tuple[Diagnostic, ...] = ()
    if not request.lexicon.vocabulary.tagged:
        turn = message("assistant", text)
    elif request.options.structure:
        turn = parse(text, request.plan.form).messages[0]
    else:
        found, diagnostics = parse(text, request.plan.form, recover=True)
        turn = found.messages[0]
    planned = request.plan.document
    before = planned.fill(request.script.holes.texts, check=False).messages if planned else ()
    return Document(messages=(*before, turn)), diagnostics
