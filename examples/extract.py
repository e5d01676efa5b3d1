"""Typed extraction: four facts of a letter, each held to its type.

Run it with `mvspec run examples/extract.py`; from Python, `result["order"]` is an `Order`.
"""

from enum import StrEnum

from pydantic import BaseModel, Field

import mvspec as mv


class Kind(StrEnum):
    """What a customer wants."""

    REFUND = "refund"
    REPAIR = "repair"
    REPLACEMENT = "replacement"


class Order(BaseModel):
    """What was ordered."""

    product: str = Field(max_length=40)
    price: int = Field(ge=0, le=10_000)


LETTER = (
    "I bought a coffee machine for 249 euros on 3 May. It leaks water. "
    "Please send me a new machine, order number AB-1234. Peter Horvat"
)

document = mv.document(
    mv.user(f"Extract the facts from this letter.\n\n{LETTER}"),
    mv.assistant(
        mv.parallel(
            mv.branch("The order", "As JSON: ", mv.gen("order", 60, schema=Order)),
            mv.branch(
                "The number", "The order number is ", mv.gen("number", regex="[A-Z]{2}-[0-9]{4}")
            ),
            mv.branch(
                "The wish", "The customer wants a ", mv.gen("wish", choices=[k.value for k in Kind])
            ),
            mv.branch(
                "The name", "The letter is signed by ", mv.gen("name", 8, stop=[".", "\n", ","])
            ),
        )
    ),
)
