"""Sequential chains to documents, with Gemini through google-genai or a model of one's own."""

from mvspec.curation.budget import Budget, Price
from mvspec.curation.caller import Caller
from mvspec.curation.chain import Chain, ChainFields, read_chain
from mvspec.curation.curate import Outcome, curate_chain
from mvspec.curation.options import Curation
from mvspec.curation.pace import Pace
from mvspec.curation.request import (
    Answer,
    Provider,
    Refused,
    Request,
    Stopped,
    Unanswered,
    Usage,
)
from mvspec.curation.sentences import split_sentences
from mvspec.curation.store import Store

__all__ = [
    "Answer",
    "Budget",
    "Caller",
    "Chain",
    "ChainFields",
    "Curation",
    "Outcome",
    "Pace",
    "Price",
    "Provider",
    "Refused",
    "Request",
    "Stopped",
    "Store",
    "Unanswered",
    "Usage",
    "curate_chain",
    "read_chain",
    "split_sentences",
]
