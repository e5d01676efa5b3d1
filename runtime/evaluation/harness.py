"""lm-evaluation-harness's model `mvspec`: its tasks on our engines.

Importing this module registers the model; `mvspec eval harness ARGS` is the harness's own command
with it. Texts are generated with an engine, plain or with the model deciding when to fork;
likelihoods come from one forward of the model over the compiler's layout.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property, partial
from multiprocessing import get_context
from typing import Any

import torch
from lm_eval.api.filter import FilterEnsemble
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Generate
from mvspec.errors import Unsupported
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime.evaluation.generation import written_text
from mvspec.runtime.options import Options
from mvspec.runtime.program import engine_of
from mvspec.runtime.sampling import Sampling
from mvspec.tree.builder import gen

NAME = "mvspec"
"""What the harness calls the model."""

HOLE = "answer"

GRADING = 30.0
"""Seconds that the harness's grading of an answer may take: sympy, or a regex, may never end."""

Pair = tuple[Any, list[int], list[int]]


@register_model(NAME)
class MvspecLM(TemplateLM):  # type: ignore[misc]
    """A model of lm-evaluation-harness that runs on an engine.

    Args:
        pretrained: folder or hub name; by default SmolLM2-135M-Instruct, fetched once.
        engine: the URL of a server, or an engine, instead of a model. Likelihoods need an engine
            in this process.
        adaptive: let the model decide when to fork; else plain text is generated, without tags.
        max_gen_toks: tokens of an answer, where the task does not say.
        max_depth: blocks inside blocks.
        add_bos_token: begin every text with the tokenizer's first token, or never; by default as
            the tokenizer itself does, like the harness's own model.
        batch_size: texts of one forward for likelihoods, and requests at once.
        device, dtype: as `TorchEngine.load`.
        seed: of the random streams.

    Raises:
        MvspecError: the model cannot be loaded, or the server not be reached.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        engine: Any = None,
        adaptive: bool = True,
        max_gen_toks: int = 1024,
        max_depth: int | None = None,
        add_bos_token: bool | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str | None = None,
        seed: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 8
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness's own default
        self.engine = engine_of(
            engine, pretrained, requests=max(self.batch_size, 1), device=device, dtype=dtype
        )
        self.tokenizer = self.engine.tokenizer
        self.vocabulary = self.engine.vocabulary
        self.adaptive = adaptive
        self.max_gen_toks = max_gen_toks
        self.max_depth = max_depth
        self.add_bos_token = add_bos_token
        self.seed = seed

    # Tokens

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id that an empty context is replaced by."""
        first = getattr(self.tokenizer, "bos_token_id", None)
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """How many positions the model has."""
        return self.engine.capabilities.context or 4096

    @property
    def tokenizer_name(self) -> str:
        """What the harness's caches call the tokenizer."""
        return self.vocabulary.name.replace("/", "__")

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = self.vocabulary.backend.get_added_tokens_decoder().values()
        tags = {tag.value for tag in Tag}
        special = [re.escape(t.content) for t in added if t.special and t.content not in tags]
        return re.compile("|".join(sorted(special, key=len, reverse=True)) or r"(?!)")

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and behind a text, such as BOS."""
        text, encode = "a", self.vocabulary.backend.encode
        bare = encode(text, add_special_tokens=False).ids
        whole = encode(text, add_special_tokens=True).ids
        if self.add_bos_token is not None:
            return [self.prefix_token_id] * self.add_bos_token, []
        starts = (n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
        at = next(starts, 0)
        return whole[:at], whole[at + len(bare) :]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text: a template's control tokens are live, our tags never.

        Args:
            add_special_tokens: put the tokenizer's own tokens, such as BOS, around it; by default
                where the text does not begin with them, as the harness's own model does.
        """
        first = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token is not False and not string.startswith(first)
        before, behind = self._around if add_special_tokens else ([], [])
        ids = list(before)
        at = 0
        for found in self._control.finditer(string):
            ids += self.vocabulary.encode_outside(string[at : found.start()])
            ids.append(self.vocabulary.backend.token_to_id(found.group()))
            at = found.end()
        return ids + self.vocabulary.encode_outside(string[at:]) + behind

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as the tokenizer's template renders it."""
        rendered: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered

    # Likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        if "logits" not in self.engine.capabilities.options:
            raise Unsupported(
                "likelihoods need the model in this process: pretrained=FOLDER instead of engine="
            )
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i][1:])))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            scored = self._score([requests[index][1:] for index in some])
            for index, answer in zip(some, scored, strict=True):
                found[index] = answer
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return [found[index] for index in range(len(requests))]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return logprob and greediness of each continuation, in one forward."""
        plans, first = [], []
        for context, continuation in pairs:
            cut = max(len(context) + len(continuation) - self.max_length, 0)
            context = context[min(cut, len(context) - 1) :]
            ops = (
                Extend(thread=0, tokens=tuple(context), author="prompt"),
                Extend(thread=0, tokens=tuple(continuation), author="model"),
            )
            plans.append(ExecutionPlan(ops=ops, form="untagged"))
            first.append(len(context))
        answers = []
        results = self.engine.run_many(plans, Options(logits=True))
        for result, start in zip(results, first, strict=True):
            ids = torch.tensor(result.trace.ids[start:])
            logits = torch.stack(list(result.logits or ())[start - 1 : -1])
            logprobs = logits.float().log_softmax(-1).cpu()
            total = float(logprobs.gather(1, ids[:, None]).double().sum())
            answers.append((total, bool((logprobs.argmax(-1) == ids).all())))
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the logprob of each whole text, in windows of the model's length."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    # Generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each context; stop strings count outside blocks."""
        made = [self._request(*request.args) for request in requests]
        results = self.engine.run_many([plan for plan, _ in made], [how for _, how in made])
        answers = []
        for request, result in zip(requests, results, strict=True):
            if self.adaptive:
                text = written_text(result.trace, self.tokenizer)
            else:
                text = result.texts[HOLE]
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers

    def _request(self, context: str, how: Mapping[str, Any]) -> tuple[ExecutionPlan, Options]:
        until = how.get("until") or ()
        stop = tuple(each for each in ([until] if isinstance(until, str) else until) if each)
        most = int(how.get("max_gen_toks") or self.max_gen_toks)
        ids = self.tok_encode(context)[-max(self.max_length - most, 1) :]
        temperature = how.get("temperature")
        if not how.get("do_sample", temperature):
            temperature = 0.0
        sampling = Sampling(
            temperature=1.0 if temperature is None else float(temperature),
            top_p=float(how.get("top_p") or 1.0),
            top_k=int(how.get("top_k") or 0),
            seed=self.seed,
            stop=stop if self.adaptive else (),
        )
        ask = Extend(thread=0, tokens=tuple(ids), author="prompt")
        if not self.adaptive:
            hole = Generate(thread=0, hole=gen(HOLE, most, stop=stop))
            return ExecutionPlan(ops=(ask, hole), form="untagged").verify(), Options(sampling)
        given = {"max_tokens": most, "max_depth": self.max_depth}
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        plan = ExecutionPlan(ops=(ask, Adaptive(thread=0)), form=self.engine.syntax.name)
        return plan.verify(), Options(sampling, limits)


class GradingTimeout(Exception):
    """Grading of an answer took too long, and was killed."""


def killable(work: Callable[[], Any], seconds: float) -> Any:
    """Return what `work` does, in a child that is killed when it takes too long.

    A fork, since a task's graders are functions that cannot be sent to a process.

    Raises:
        GradingTimeout: it took too long, or died.
        Exception: what `work` raises.
    """
    context = get_context("fork")
    mine, other = context.Pipe(duplex=False)

    def child() -> None:
        try:
            found: tuple[bool, Any] = True, work()
        except Exception as error:
            found = False, error
        other.send(found)

    process = context.Process(target=child, daemon=True)
    process.start()
    other.close()
    try:
        answer: tuple[bool, Any] | None = mine.recv() if mine.poll(seconds) else None
    except EOFError:
        answer = None
    finally:
        process.kill()
        process.join()
        mine.close()
    if answer is None:
        raise GradingTimeout
    well, found = answer
    if not well:
        raise found
    return found


@contextmanager
def killed_graders(seconds: float = GRADING) -> Iterator[None]:
    """Let the harness's graders and filters of written answers be killed when they hang.

    An answer whose grading was killed counts as wrong, and is told of on standard error.
    """
    grade, filter_all = ConfigurableTask.process_results, FilterEnsemble.apply

    def told(what: str, name: Any) -> None:
        print(
            f"mvspec: {what} of {name} took more than {seconds:g} s: it counts as wrong",
            file=sys.stderr,
        )

    def process_results(task: Any, doc: Any, results: Any) -> Any:
        if task.OUTPUT_TYPE != "generate_until":
            return grade(task, doc, results)
        try:
            return killable(lambda: grade(task, doc, results), seconds)
        except GradingTimeout:
            told("grading an answer", task.config.task)
            return dict.fromkeys(task._metric_fn_list, 0.0)

    def apply(ensemble: Any, instances: Any) -> None:
        def filtered(some: Sequence[Any]) -> list[Any]:
            filter_all(ensemble, some)
            return [each.filtered_resps[ensemble.name] for each in some]

        written = [each for each in instances if each.request_type == "generate_until"]
        if not written:
            filter_all(ensemble, instances)
            return
        try:
            found = killable(lambda: filtered(instances), seconds + len(instances) / 100)
        except GradingTimeout:
            found = []
            for each in instances:
                try:
                    found += killable(partial(filtered, [each]), seconds)
                except GradingTimeout:
                    told(f"the filter {ensemble.name}", each.task_name)
                    nothing = copy(each)
                    nothing.resps = [""] * len(each.resps)
                    found += filtered([nothing])
        for each, answers in zip(instances, found, strict=True):
            each.filtered_resps[ensemble.name] = answers

    ConfigurableTask.process_results, FilterEnsemble.apply = process_results, apply
    try:
        yield
    finally:
        ConfigurableTask.process_results, FilterEnsemble.apply = grade, filter_all
