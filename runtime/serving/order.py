"""What a client asks of the plugin, beside SGLang's own fields of a request.

It travels as JSON text in `sampling_params.custom_params["mvspec"]`; the prompt travels as
SGLang's own `input_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Op
from mvspec.compiler.vocabulary import Vocabulary
from mvspec.errors import LimitExceeded, Unsupported, VerifyError
from mvspec.forms.untagged import UNTAGGED
from mvspec.runtime.options import Options
from mvspec.tree.ir import Document, Outline
from mvspec.tree.node import verify_error

__all__ = ["KEY", "Order", "check_options"]

KEY = "mvspec"
"""Of `custom_params`, and of what comes back."""

_MOST_BYTES = 4 << 20
_MOST_PATHS = 4096
_LONGEST_LABEL = 200


class Order(BaseModel):
    """How a request forks and joins.

    Args:
        ops: of its plan, behind the prompt; empty where the model decides from there on.
        form: the surface form of the assistant's turn.
        document: what was planned, for titles and for filling.
        options: as for the in-process engine.
        name: of the run; random streams depend on it.
        live: whether tokens are sent as they are written, each with what it is; without, they
            come in the order of the surface form.
        native: whether nobody asked: the server lets its model fork by itself.

    >>> Order.from_json('{"ops": [], "live": true}').live
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[Op, ...] = ()
    form: str = "multiverse"
    document: Document | None = None
    options: Options = Options()
    name: str = Field(default="0", max_length=200)
    live: bool = False
    native: bool = False

    @classmethod
    def from_json(cls, text: Any) -> Order:
        """Read what a client sent.

        Raises:
            VerifyError: it is malformed; the address says where.
            LimitExceeded: it is too large.
        """
        if not isinstance(text, str):
            raise Unsupported(f"custom_params[{KEY!r}] is JSON text, not {type(text).__name__}")
        if len(text) > _MOST_BYTES:
            raise LimitExceeded(
                f"custom_params[{KEY!r}] has {len(text):,} characters; at most {_MOST_BYTES:,}"
            )
        try:
            order = cls.model_validate_json(text)
        except ValidationError as error:
            raise verify_error(error) from None
        paths = sum(len(op.paths) for op in order.ops if isinstance(op, Fork))
        if paths > _MOST_PATHS:
            raise LimitExceeded(f"the plan has {paths:,} paths; at most {_MOST_PATHS:,}")
        for outline in order.document.walk(Outline) if order.document else ():
            if len(outline.label) > _LONGEST_LABEL:
                raise LimitExceeded(
                    f"label {outline.label[:20]}… has {len(outline.label):,} characters; at most "
                    f"{_LONGEST_LABEL}"
                )
        return order

    @classmethod
    def of(
        cls, plan: ExecutionPlan, options: Options, *, live: bool, name: str = "0"
    ) -> tuple[list[int], Order]:
        """Split a plan into the prompt that SGLang is given and what the plugin is."""
        ids: list[int] = []
        ops = list(plan.ops)
        while ops and isinstance(ops[0], Extend) and ops[0].author == "prompt":
            ids += ops.pop(0).tokens  # type: ignore[union-attr]
        if not ids:
            raise Unsupported("the plan begins without a prompt: begin the document with user(...)")
        return ids, cls(
            ops=tuple(ops),
            form=plan.form,
            document=plan.document,
            options=options,
            name=name,
            live=live,
        )

    def plan(self, prompt: Sequence[int], vocabulary: Vocabulary) -> ExecutionPlan:
        """Return the whole plan.

        Args:
            prompt: ids of what stands before its ops.
            vocabulary: of the server.

        Raises:
            VerifyError: its ops do not fit together, or an id of the prompt is negative.
            Unsupported: the vocabulary lacks the tags of its form, or one of its ids.
        """
        if min(prompt, default=0) < 0:
            raise VerifyError("input_ids", f"{min(prompt)} is negative: send the ids of tokens")
        first = Extend(thread=0, tokens=tuple(prompt), author="prompt")
        ops = self.ops or (Adaptive(thread=0),)
        plan = ExecutionPlan(ops=(first, *ops), form=self.form, document=self.document).verify()
        if plan.form != UNTAGGED.name and not vocabulary.tagged:
            raise Unsupported(
                f"the plan is in form {plan.form!r}, and the server's tokenizer has no tags: plan "
                "the document with syntax=UNTAGGED, or serve a model that was taught the tags"
            )
        for index, op in enumerate(plan.ops):
            if isinstance(op, Extend) and max(op.tokens, default=0) >= vocabulary.size:
                raise Unsupported(
                    f"ops[{index}] has id {max(op.tokens)}, which is not in the server's "
                    f"vocabulary of {vocabulary.size} tokens: plan with the server's tokenizer"
                )
        return plan

    @staticmethod
    def bound(plan: ExecutionPlan, options: Options) -> int:
        """Return how many tokens a plan writes at most, its prompts left out."""
        most = options.limits.max_tokens or 0
        total = 0
        for op in plan.ops[1:]:
            if isinstance(op, Extend):
                total += len(op.tokens) if op.author != "prompt" else 0
            elif isinstance(op, Generate):
                total += op.hole.max_tokens + bool(op.lead)
            elif isinstance(op, Adaptive):
                asked = op.limits.max_tokens
                total += most if asked is None else min(most, asked)
        return total

    def options_within(self, most: int) -> Options:
        """Return the options, with no more tokens than the server has room for.

        Raises:
            Unsupported: an option is one that this engine lacks.
        """
        check_options(self.options)
        asked = self.options.limits.max_tokens
        limits = self.options.limits.model_copy(
            update={"max_tokens": most if asked is None else min(asked, most)}
        )
        return replace(self.options, limits=limits)


def check_options(options: Options) -> None:
    """Refuse options that an engine on SGLang lacks.

    Raises:
        Unsupported: by the option's name.
    """
    lacking = [name for name in ("share", "threads", "logits") if getattr(options, name)]
    if lacking:
        raise Unsupported(f"SGLang has no option {lacking[0]!r}: leave it out, or use TorchEngine")
