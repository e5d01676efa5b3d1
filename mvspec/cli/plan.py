"""`mvspec plan`: what a runtime would do, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvspec.cli.options import Json, Model, as_given, needs
from mvspec.data.records import InputError

if TYPE_CHECKING:
    from mvspec.compiler.plan import ExecutionPlan


def plan(
    program: Annotated[Path, typer.Argument(help="As for run.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print what a runtime would do, and what it costs; no weights are loaded."""
    if not program.is_file():
        raise InputError(f"{program}: there is no such file")
    with needs("engine", "plan"), as_given():
        found = describe_plan(program, model)
        print(found.to_json() if as_json else f"{found}\n{cost_line(found)}")


def describe_plan(path: Path, model: str | None, tokenizer: Any = None) -> ExecutionPlan:
    """Return the plan of a file for a model's tokenizer; no weights are loaded.

    Raises:
        MvspecError: the file holds nothing to run, or the tokenizer cannot be loaded.
    """
    from mvspec.compiler.plan import ExecutionPlan
    from mvspec.compiler.planning import plan_document
    from mvspec.compiler.vocabulary import has_tags, load_tokenizer
    from mvspec.forms.multiverse import MULTIVERSE
    from mvspec.forms.untagged import UNTAGGED
    from mvspec.runtime.engine.default_model import default_model
    from mvspec.runtime.program import load_program

    program = load_program(path)
    if isinstance(program, ExecutionPlan):
        return program
    tokenizer = tokenizer or load_tokenizer(str(model or default_model()))
    template = bool(getattr(tokenizer, "chat_template", None)) or None
    return plan_document(
        program,
        tokenizer,
        syntax=MULTIVERSE if has_tags(tokenizer) else UNTAGGED,
        template=template,
    )


def cost_line(plan: ExecutionPlan) -> str:
    """Return what a plan costs, or why that is not known."""
    from mvspec.compiler.plan import Adaptive, plan_cost

    if any(isinstance(op, Adaptive) for op in plan.ops):
        return "cost: the model decides when to fork, so it is not known before the run"
    return str(plan_cost(plan))
