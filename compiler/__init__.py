"""Documents to layouts, masks, packed batches and plans."""

from mvspec.compiler.layout import Layout, concatenate
from mvspec.compiler.lower import Tokens, lower
from mvspec.compiler.lowerings import LOWERINGS, compile_document, layout_from_ids
from mvspec.compiler.segments import Segment, segments
from mvspec.compiler.sequential import flatten
from mvspec.compiler.vocabulary import Vocabulary, add_tags

__all__ = [
    "LOWERINGS",
    "Layout",
    "Segment",
    "Tokens",
    "Vocabulary",
    "add_tags",
    "compile_document",
    "concatenate",
    "flatten",
    "layout_from_ids",
    "lower",
    "segments",
]
