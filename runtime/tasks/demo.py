"""The task of `mvspec demo`: eight questions about one letter, and a verdict."""

from __future__ import annotations

import mvspec

LETTER = """Dear Ms Novak,

I write about the espresso machine that I bought in your shop in Ljubljana on 3 May for 249 euros.
It worked for six weeks. Since last Monday it leaks water from the left side, and the milk steamer
makes no steam at all. I cleaned it twice, as the manual says, and nothing changed. My sister has
the same machine and hers is fine. I would like a new machine, not a repair, before my birthday
party on 12 July. I have the receipt and the box.

Kind regards, Peter Horvat"""

# A label, how the answer begins, and its hole. A small model keeps to a question that the
# sentence itself asks.
_QUESTIONS = (
    ("Who writes", "The letter was written by", mvspec.gen("writer", 12, stop=[".", "\n"])),
    ("What was bought", "The customer bought", mvspec.gen("product", 16, stop=[".", "\n"])),
    ("What it cost", "In euros, the price was ", mvspec.gen("price", 8, regex="[0-9]{1,4}")),
    ("What is wrong", "The problem is that", mvspec.gen("problem", 32, stop=[".", "\n"])),
    ("What was tried", "To fix it, the customer", mvspec.gen("tried", 24, stop=[".", "\n"])),
    ("What is wanted", "The customer would like", mvspec.gen("wish", 24, stop=[".", "\n"])),
    ("By when", "It is needed before", mvspec.gen("date", 16, stop=[".", "\n"])),
    (
        "The tone",
        "The tone of the letter is ",
        mvspec.gen("tone", 6, choices=["polite", "angry", "neutral"]),
    ),
)

document = mvspec.document(
    mvspec.user(f"Read this letter and answer the questions about it.\n\n{LETTER}"),
    mvspec.assistant(
        mvspec.parallel(
            *(mvspec.branch(label, begin, hole) for label, begin, hole in _QUESTIONS),
            conclusion=[
                "The shop should now",
                mvspec.gen("verdict", 40, stop=[".", "\n"]),
                ". Urgency: ",
                mvspec.gen("urgency", 6, choices=["low", "medium", "high"]),
            ],
        )
    ),
)
