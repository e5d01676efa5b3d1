"""Curate: a chain of reasoning becomes a document, and a model reads it with its paths in parallel.

A provider is one method, `ask`. The one here knows this chain, so that no key is needed; with
`mvspec.curation.gemini.GeminiProvider().ask` in its place, Gemini finds the steps by itself.
Run it with `mvspec run examples/curate.py`.
"""

import asyncio
import json

from mvspec.curation import CurationOptions, ModelAnswer, ModelRequest, ReasoningChain, curate_chain

CHAIN = ReasoningChain(
    name="sums",
    place="examples/curate.py",
    question="Which is larger, 17 + 25 or 6 * 7?",
    reasoning=(
        "I compute both. 17 + 25 is 17 + 20 + 5. That is 42. "
        "Similarly, 6 * 7 is 6 * 5 + 6 * 2. That is 30 + 12, which is 42 too. "
        "So they are equal."
    ),
    answer="They are equal.",
)

ANSWERS = {
    "parse": {
        "steps": [
            {"depth": 1, "title": "Plan", "first": 1, "last": 1},
            {"depth": 1, "title": "The sum", "first": 2, "last": 3},
            {"depth": 1, "title": "The product", "first": 4, "last": 5},
            {"depth": 1, "title": "Compare", "first": 6, "last": 6},
        ]
    },
    "group": {"groups": [{"reason": "Neither needs the other.", "paths": [["2"], ["3"]]}]},
    "frame": {
        "goals": ["Compute 17 + 25.", "Compute 6 * 7."],
        "conclusion": "17 + 25 = 42 and 6 * 7 = 42.",
    },
    "rewrite, path 1": {"edits": []},
    "rewrite, path 2": {"edits": [{"sentence": 4, "text": "6 * 7 is 6 * 5 + 6 * 2."}]},
}


async def ask(request: ModelRequest) -> ModelAnswer:
    """Answer a request, as a provider does."""
    step = request.step
    if step == "rewrite":
        step += ", path 1" if "# Path 1" in request.prompt else ", path 2"
    return ModelAnswer(json.dumps(ANSWERS[step]))


outcome = asyncio.run(curate_chain(CHAIN, CurationOptions(model="by hand"), ask))
assert outcome.document is not None, outcome.reason
document = outcome.document

if __name__ == "__main__":
    print(document)
    print(outcome.provenance)
