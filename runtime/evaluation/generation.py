"""Answers to problems: those of an engine, and the loop that gets and grades any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from mvspec.compiler.chat_template import settings_of
from mvspec.compiler.plan import Extend
from mvspec.data.records import crash
from mvspec.errors import LimitExceeded, MvspecError, RequestFailed, Unsupported, VerifyError
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime.evaluation.grader_process import Graders
from mvspec.runtime.evaluation.problem import EvaluationProblem
from mvspec.runtime.evaluation.results import EvaluationSample, Key, final_text, shape_of
from mvspec.runtime.evaluation.tasks import EvaluationTask
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Engine
from mvspec.trace import Trace
from mvspec.tree.builder import document, user
from mvspec.tree.ir import Document, Text

PROMPTS = {
    "parallel": "Think step by step and in parallel before answering.",
    "sequential": "Think step by step before answering.",
    "none": "",
}
"""What is written behind a question; the first two are the paper's."""

PATIENCE = 8
"""Requests that may be refused before any was answered."""

_TAGS = frozenset(tag.value for tag in Tag)


def prompt_of(text: str) -> str:
    """Return the prompt of a name in `PROMPTS`; any other text is its own.

    >>> prompt_of("sequential")
    'Think step by step before answering.'
    """
    return PROMPTS.get(text, text)


@dataclass(frozen=True)
class AnswerGenerator:
    """Answers from an engine: problems become documents, and results become samples.

    Args:
        engine: in this process or on a server.
        prompt: behind every question; "" for none.
        options: how the engine runs them.
    """

    engine: Engine
    prompt: str
    options: Options

    def to_dict(self) -> dict[str, Any]:
        """Return what decides an answer."""
        sampling = asdict(self.options.sampling)
        sampling.pop("logprobs")
        settings = settings_of(self.engine.tokenizer)
        arguments = dict(settings.arguments) if settings else {}
        return {
            "engine": type(self.engine).__name__,
            "model": self.engine.capabilities.model,
            "prompt": self.prompt,
            "sampling": sampling,
            "limits": self.options.limits.model_dump(exclude_unset=True),
            "structure": self.options.structure,
            **({"template": arguments} if arguments else {}),
        }

    def ask(self, problem: EvaluationProblem) -> Document:
        """Return the document that a problem is asked with."""
        question = problem.question.rstrip()
        return document(user(f"{question} {self.prompt}" if self.prompt else question))

    async def answer(
        self, problem: EvaluationProblem, number: int, cap: int | None
    ) -> EvaluationSample:
        """Return one answer, not graded yet.

        Args:
            number: of the sample; its random stream depends on it and on the problem.
            cap: positions that the assistant may take: on its critical path.

        Raises:
            MvspecError: the engine has failed. That it refuses this one is the sample's `error`.
        """
        asked = self.ask(problem)
        chat = [{"role": each.role, "content": "".join(text.text for text in each.walk(Text))}
                for each in asked.messages]  # fmt: skip
        sample = EvaluationSample(problem.id, number, cap, problem.group, prompt=chat)
        try:
            plan = self.engine.plan(asked)
            given = sum(len(op.tokens) for op in plan.ops if isinstance(op, Extend))
            options = self.options if cap is None else _capped(self.options, given + cap)
            name = f"{problem.id}/{number}"[-200:]
            result = await self.engine.run_async(plan, options, name=name)
        except (LimitExceeded, RequestFailed, Unsupported, VerifyError) as error:
            return replace(sample, error=str(error))
        trace = result.trace
        text = written_text(trace, self.engine.tokenizer)
        form = MULTIVERSE.name if trace.form == UNTAGGED.name else trace.form
        shape = shape_of(text, len, form)
        return replace(
            sample,
            output=text,
            finish=trace.finish,
            seconds=trace.forward_seconds[-1] if trace.forward_seconds else trace.seconds,
            prompt_tokens=trace.prompt,
            trace=trace,
            **asdict(shape) | {"tokens": trace.answer, "critical_path": trace.critical_path},
        )


def _capped(options: Options, end: int) -> Options:
    most = options.limits.max_position
    end = end if most is None else min(end, most)
    limits = Limits(**{**options.limits.model_dump(exclude_unset=True), "max_position": end})
    return replace(options, limits=limits)


def written_text(trace: Trace, tokenizer: Any) -> str:
    """Return the assistant's text without the token that ends its turn."""
    own = [index for index, author in enumerate(trace.authors) if author != "prompt"]
    if own:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        last = backend.get_added_tokens_decoder().get(trace.ids[own[-1]])
        if last is not None and last.special and last.content not in _TAGS:
            own.pop()
    return "".join(trace.token_texts[index] for index in own)


def graded(
    sample: EvaluationSample,
    problem: EvaluationProblem,
    task: EvaluationTask,
    graders: Graders,
    final: bool,
) -> EvaluationSample:
    """Return a sample with its verdict.

    Args:
        final: grade what stands behind the thoughts only.
    """
    text = final_text(sample.output) if final or not task.whole else sample.output
    try:
        return replace(sample, **asdict(graders.grade(task.grader, problem.payload, text)))
    except (MvspecError, OSError):
        raise
    except Exception as error:
        return replace(sample, note=crash(error).message)


AskedAnswer = tuple[EvaluationProblem, int, int | None]
"""A problem, the number of the sample, and the cap on its critical path."""

Answer = Callable[[EvaluationProblem, int, int | None], Awaitable[EvaluationSample]]
"""Gives the answer that was asked for, not graded yet."""


async def generate(
    asked: Sequence[AskedAnswer],
    answer: Answer,
    task: EvaluationTask,
    graders: Graders,
    keep: Callable[[EvaluationSample], object],
    have: Mapping[Key, EvaluationSample] | None = None,
    *,
    concurrency: int,
    final: bool = False,
) -> None:
    """Ask for answers and grade them; each is kept as soon as it is graded.

    Args:
        asked: in this order.
        answer: gives each.
        keep: takes every sample.
        have: samples with an answer that was not graded: they are graded, and not asked again.
        concurrency: requests on their way at once.
        final: as in `graded`.

    Raises:
        MvspecError: the engine has failed or refuses everything, or a sample could not be kept.
    """
    known = have or {}
    answered = refused = 0
    stream = iter(asked)
    # Not the event loop's own threads: the engine steps in those, and grading would wait for it.
    pool = ThreadPoolExecutor(concurrency, "grading")
    loop = asyncio.get_running_loop()

    async def work() -> None:
        nonlocal answered, refused
        for problem, number, cap in stream:
            sample = known.get((problem.id, number, cap))
            if sample is None or sample.error:
                try:
                    sample = await answer(problem, number, cap)
                except (MvspecError, OSError):
                    raise
                except Exception as error:
                    blank = EvaluationSample(problem.id, number, cap, problem.group)
                    sample = replace(blank, error=crash(error).message)
            sample = replace(sample, question=problem.question, gold=problem.gold)
            if sample.error:
                refused += 1
                if refused >= PATIENCE and not answered:
                    raise MvspecError(f"all of {refused} requests were refused: {sample.error}")
            else:
                answered += 1
                sample = await loop.run_in_executor(
                    pool, graded, sample, problem, task, graders, final
                )
            keep(sample)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
