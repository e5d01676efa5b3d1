"""Many letters at one server: each is judged in parallel paths, and all of them at once.

Start a server with `mvspec serve MODEL -- --port 30000`. One letter is judged with
`mvspec run --live --engine http://127.0.0.1:30000 examples/triage.py`, all of them with
`python examples/triage.py http://127.0.0.1:30000`.
"""

import sys
from typing import Literal

from pydantic import BaseModel

import mvspec as mv

LETTERS = (
    "My order of last week has not come, and nobody answers the telephone.",
    "The lamp is lovely, thank you. Do you have it in green as well?",
    "I was charged twice for one pair of shoes. Please give me my money back today.",
)


class Verdict(BaseModel):
    """What the shop does."""

    team: Literal["delivery", "sales", "billing"]
    today: bool


def triage(letter: str) -> mv.Document:
    """Return the questions that are asked of one letter."""
    return mv.document(
        mv.user(f"Judge this letter to a shop.\n\n{letter}"),
        mv.assistant(
            mv.parallel(
                mv.branch("Subject", "It is about ", mv.gen("subject", 12, stop=[".", "\n"])),
                mv.branch("Mood", "The writer is ", mv.gen("mood", choices=["angry", "glad"])),
                mv.branch("Wish", "The writer wants ", mv.gen("wish", 16, stop=[".", "\n"])),
                conclusion=["As JSON: ", mv.gen("verdict", 40, schema=Verdict)],
            )
        ),
    )


document = triage(LETTERS[0])

if __name__ == "__main__":
    from mvspec.runtime import SGLangEngine

    engine = SGLangEngine(sys.argv[1])
    for letter, result in zip(LETTERS, engine.run_many(list(map(triage, LETTERS))), strict=True):
        print(letter)
        for name, value in {**result.values, **result.errors}.items():
            print(f"  {name}: {value}")
