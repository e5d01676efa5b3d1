"""What the limits of a run leave to the holes of a static plan."""

from __future__ import annotations

from mvspec.compiler.plan import Adaptive, ExecutionPlan, Extend, Fork, Generate, Join
from mvspec.errors import LimitExceeded, VerifyError
from mvspec.law.limits import Limits

__all__ = ["Budget"]


class Budget:
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
        least: dict[int, int] = {}
        most: dict[int, int] = {}
        for op in reversed(plan.ops):
            if isinstance(op, Join):
                for path in op.paths:
                    least[path] = least.get(op.thread, 0)
                    most[path] = most.get(op.thread, 0)
            elif isinstance(op, Fork):
                least[op.thread] = max(least.get(path, 0) for path in op.paths)
                most[op.thread] = max(most.get(path, 0) for path in op.paths)
            elif isinstance(op, Extend):
                least[op.thread] = least.get(op.thread, 0) + len(op.tokens)
                most[op.thread] = most.get(op.thread, 0) + len(op.tokens)
                self.fixed += len(op.tokens) if op.author != "prompt" else 0
            elif isinstance(op, Generate):
                self.left[op.hole.name] = least.get(op.thread, 0)
                least[op.thread] = least.get(op.thread, 0) + bool(op.lead)
                most[op.thread] = most.get(op.thread, 0) + max(op.hole.max_tokens, bool(op.lead))
                self.fixed += bool(op.lead)
        self.positions = least.get(0, 0)
        if context is not None and most.get(0, 0) > context:
            raise LimitExceeded(
                f"the plan takes up to {most[0]} positions, its holes' max_tokens included, and "
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
    predicted = {0: False}
    for index, op in enumerate(plan.ops):
        if isinstance(op, Fork):
            predicted.update((path, predicted[op.thread]) for path in op.paths)
        elif isinstance(op, Join):
            predicted[op.thread] = False
        elif isinstance(op, Extend):
            predicted[op.thread] |= bool(op.tokens)
        elif isinstance(op, Generate | Adaptive):
            if not predicted[op.thread]:
                what = "a hole" if isinstance(op, Generate) else "the model's turn"
                raise VerifyError(
                    f"ops[{index}] ({op})",
                    f"{what} is the first token there and nothing predicts it: write a text "
                    "before it",
                )
            predicted[op.thread] = True
