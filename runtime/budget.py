"""Budget of the holes of a static plan: tokens and positions that a run's limits leave them."""

from __future__ import annotations

from mvspec.compiler.plan import ExecutionPlan, Extend, Generate
from mvspec.errors import LimitExceeded, VerifyError
from mvspec.law.limits import Limits
from mvspec.law.threads import StructuralLaw


class HoleBudget:
    """Tokens and positions that a static plan has to spend.

    Args:
        plan: verified; its last op may be adaptive.
        limits: of the run. `max_tokens` counts what the run writes, the prompt left out.
        context: how many positions the model has; None where it does not say.

    Raises:
        LimitExceeded: what the plan writes anyway does not fit, or the holes may outgrow the
            model.
        VerifyError: nothing predicts the first token of a hole.
    """

    def __init__(self, plan: ExecutionPlan, limits: Limits, context: int | None = None) -> None:
        self.limits = limits
        self.left: dict[str, int] = {}
        """For each hole the positions that its thread needs after it, to the end of the plan."""
        self.fixed = 0
        """Tokens that are written in any case."""
        least, most = StructuralLaw(), StructuralLaw()  # from the end of the plan on
        both = zip(plan.fold(least, backwards=True), plan.fold(most, backwards=True), strict=True)
        for (op, thread), (_, longest) in both:
            if isinstance(op, Generate):
                self.left[op.hole.name] = thread.position
                lead = bool(op.lead)
                least.tokens(thread, lead)
                most.tokens(longest, max(op.hole.max_tokens, lead))
                self.fixed += lead
            elif isinstance(op, Extend):
                least.tokens(thread, len(op.tokens))
                most.tokens(longest, len(op.tokens))
                self.fixed += len(op.tokens) if op.author != "prompt" else 0
        self.positions, positions = least.root.position, most.root.position
        if context is not None and positions > context:
            raise LimitExceeded(
                f"the plan takes up to {positions} positions, its holes' max_tokens included, and "
                f"the model has {context}: shorten the text or lower max_tokens"
            )
        if limits.max_position is not None and self.positions > limits.max_position:
            raise LimitExceeded(
                f"the plan takes at least {self.positions} positions, and max_position is "
                f"{limits.max_position}: raise it or shorten the text"
            )
        if limits.max_tokens is not None and self.fixed > limits.max_tokens:
            raise LimitExceeded(
                f"the plan writes at least {self.fixed} tokens, and max_tokens is "
                f"{limits.max_tokens}: raise it or shorten the text"
            )
        _check_predicted(plan)

    def room(self, hole: str, position: int, drawn: int) -> int:
        """Return how many tokens more a hole may take.

        Args:
            position: of its next token.
            drawn: how many tokens all holes have taken so far, the leads left out.
        """
        limits = self.limits
        room = 1 << 62
        if limits.max_tokens is not None:
            room = limits.max_tokens - self.fixed - drawn
        if limits.max_position is not None:
            room = min(room, limits.max_position - self.left[hole] - position)
        return room


def _check_predicted(plan: ExecutionPlan) -> None:
    """Refuse holes whose first token has no parent: at the very start, and after a join."""
    law = StructuralLaw()
    for op, thread in plan.fold(law):
        if isinstance(op, Extend):
            law.tokens(thread, len(op.tokens))
        elif thread.last >= 0:
            law.tokens(thread, 1)
        else:
            what = "a hole" if isinstance(op, Generate) else "the model's turn"
            raise VerifyError(
                f"ops[{plan.ops.index(op)}] ({op})",
                f"{what} is the first token there and nothing predicts it: write a text before it",
            )
