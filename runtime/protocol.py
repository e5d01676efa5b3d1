"""The protocol of engines: they take plans, tell events and return results."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.planning import plan_document
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.events import Event
from mvspec.forms.syntax import Syntax
from mvspec.runtime.options import Options
from mvspec.trace import Result
from mvspec.tree.ir import Document

__all__ = ["Capabilities", "Engine", "EngineRequest", "Runnable", "plan_for"]

Runnable = Document | ExecutionPlan


@dataclass(frozen=True)
class Capabilities:
    """What an engine declares that it can run; a plan that asks for more is refused by name.

    Args:
        engine: its name, for errors.
        model: what traces call its model.
        vocabulary: how many tokens its tokenizer has.
        context: how many positions its model has; None where it does not say.
        forms: the surface forms of assistants' turns that it writes and reads.
        constraints: of holes: "regex", "choices", "json_schema".
        options: those of `Options` that it honours, beside `sampling` and `limits`.
        weights: whether `set_weights` works.
    """

    engine: str
    model: str
    vocabulary: int
    context: int | None
    forms: frozenset[str]
    constraints: frozenset[str] = frozenset({"regex", "choices", "json_schema"})
    options: frozenset[str] = frozenset({"structure", "share", "threads", "decode", "logits"})
    weights: bool = False

    def check(self, plan: ExecutionPlan, options: Options) -> None:
        """Refuse a plan or options that the engine cannot run, before anything starts.

        Raises:
            Unsupported: names the engine and the capability that it lacks.
        """
        if plan.form not in self.forms:
            raise Unsupported(
                f"{self.engine}: the plan is in form {plan.form!r}, and the tokenizer has no "
                "tags: call mvspec.compiler.add_tags(tokenizer) and resize the model's "
                "embeddings, or plan the document with syntax=UNTAGGED"
            )
        for name in ("share", "threads", "decode", "logits"):
            if getattr(options, name) and name not in self.options:
                raise Unsupported(
                    f"{self.engine} has no option {name!r}: leave it out, or use TorchEngine"
                )
        for hole in plan.holes:
            for name in ("regex", "choices", "json_schema"):
                if getattr(hole, name) is not None and name not in self.constraints:
                    raise Unsupported(
                        f"{self.engine}: hole {hole.name!r} has the constraint {name!r}, which it "
                        "cannot keep: leave it out, or use TorchEngine"
                    )


class EngineRequest(Protocol):
    """A request that was submitted: an engine follows it."""

    @property
    def name(self) -> str:
        """Names the request; random streams depend on it."""

    @property
    def events(self) -> deque[Event]:
        """What has happened and was not taken yet."""

    @property
    def finish(self) -> str:
        """How it ended, as in `Trace.finish`; "" while it goes on."""

    @property
    def error(self) -> MvspecError | None:
        """Why it ended before its end."""


class Engine(Protocol):
    """Runs documents and plans; callers use nothing else of an engine."""

    @property
    def tokenizer(self) -> Any:
        """Of the engine's model."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can run."""

    def plan(self, document: Runnable) -> ExecutionPlan:
        """Return the plan that the engine runs for a document."""

    def submit(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> EngineRequest:
        """Add a request; random streams depend on its name."""

    def follow(self, request: Any) -> Iterator[Event]:
        """Yield what happens to a request that was submitted; the last event is `Finished`."""

    def stream(self, document: Runnable, options: Options | None = None) -> Iterator[Event]:
        """Run a document or a plan and yield what happens; the last event is `Finished`."""

    def stream_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> AsyncIterator[Event]:
        """Run a document or a plan and yield what happens; the event loop stays free."""

    def run(self, document: Runnable, options: Options | None = None) -> Result:
        """Run a document or a plan to its end."""

    def run_many(
        self, documents: Sequence[Runnable], options: Options | Sequence[Options] | None = None
    ) -> list[Result]:
        """Run several documents or plans at once."""

    async def run_async(
        self, document: Runnable, options: Options | None = None, *, name: str = "0"
    ) -> Result:
        """Run a document or a plan; requests of several tasks share the engine's steps."""

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Let the model go on with other weights, by their names in its state dict."""


def plan_for(document: Runnable, tokenizer: Any, syntax: Syntax) -> ExecutionPlan:
    """Return the plan that an engine runs for a document.

    Args:
        tokenizer: of the engine's model.
        syntax: the surface form in which documents run.

    Raises:
        VerifyError: there is nothing for the model to go on from.
        Unsupported: the tokenizer or its chat template cannot hold the document.
    """
    if isinstance(document, ExecutionPlan):
        return document.verify()
    if not document.messages:
        raise VerifyError("messages", "an empty document has nothing to run: add user('...')")
    template = bool(getattr(tokenizer, "chat_template", None)) or None
    return plan_document(document, tokenizer, syntax=syntax, template=template)
