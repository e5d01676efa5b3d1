"""Documents to layouts, masks, packed batches and plans."""

from typing import TYPE_CHECKING, Any

from mvspec.compiler.layout import Layout, concatenate, pack
from mvspec.compiler.lowerings import LOWERINGS, flatten, layout_from_ids
from mvspec.compiler.models import check_model
from mvspec.compiler.plan import ExecutionPlan, PlanCost, plan_cost
from mvspec.compiler.planning import plan_document, plan_layout, replay_plan
from mvspec.compiler.segments import Segment, document_segments
from mvspec.compiler.stages import Stages, compile_document, compile_rows, compile_stages
from mvspec.compiler.tokens import Tokens, lower
from mvspec.compiler.traced import trace_layout
from mvspec.compiler.vocabulary import Vocabulary, add_tags

if TYPE_CHECKING:
    from mvspec.compiler.masks import additive_mask, block_mask, dense_mask, pad_batch

__all__ = [
    "LOWERINGS",
    "ExecutionPlan",
    "Layout",
    "PlanCost",
    "Segment",
    "Stages",
    "Tokens",
    "Vocabulary",
    "add_tags",
    "additive_mask",
    "block_mask",
    "check_model",
    "compile_document",
    "compile_rows",
    "compile_stages",
    "concatenate",
    "dense_mask",
    "document_segments",
    "flatten",
    "layout_from_ids",
    "lower",
    "pack",
    "pad_batch",
    "plan_cost",
    "plan_document",
    "plan_layout",
    "replay_plan",
    "trace_layout",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `mvspec compile` needs it in none of its processes.
    if name in ("additive_mask", "block_mask", "dense_mask", "pad_batch"):
        from mvspec.compiler import masks

        return getattr(masks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
