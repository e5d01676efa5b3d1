"""Sequential chains to documents, with Gemini through google-genai or a model of one's own."""

from mvspec.curation.chain import ChainFields, ReasoningChain, read_chain, split_sentences
from mvspec.curation.client import ModelClient, RateLimit, SpendingLimit, TokenPrice
from mvspec.curation.curate import CurationOutcome, curate_chain
from mvspec.curation.questions import CurationOptions
from mvspec.curation.request import (
    CurationStopped,
    ModelAnswer,
    ModelProvider,
    ModelRequest,
    RequestRefused,
    RequestUnanswered,
    TokenUsage,
)
from mvspec.curation.store import CurationStore

__all__ = [
    "ChainFields",
    "CurationOptions",
    "CurationOutcome",
    "CurationStopped",
    "CurationStore",
    "ModelAnswer",
    "ModelClient",
    "ModelProvider",
    "ModelRequest",
    "RateLimit",
    "ReasoningChain",
    "RequestRefused",
    "RequestUnanswered",
    "SpendingLimit",
    "TokenPrice",
    "TokenUsage",
    "curate_chain",
    "read_chain",
    "split_sentences",
]
