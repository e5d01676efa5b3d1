"""What training says of a server's answer, and random documents to ask it with."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import mvspec as mv
from mvspec.compiler import additive_mask
from mvspec.trace import Trace

__all__ = ["Reference", "random_document"]


class Reference:
    """What training says of an answer: one forward of the same weights over its layout."""

    def __init__(self, folder: str) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = model.eval()

    def worst(self, trace: Trace) -> tuple[int, float]:
        """Return how many logprobs a trace has, and the largest difference to training's."""
        layout = trace.layout
        if tuple(layout.position_ids.tolist()) != trace.position_ids:
            return 1, float("inf")
        with torch.inference_mode():
            logits = self.model(
                input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64),
                position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64),
                attention_mask=additive_mask(layout, dtype=torch.float32),
            ).logits[0]
        found = torch.log_softmax(logits, -1)
        wrong = [
            abs(float(found[layout.parent[index], trace.ids[index]]) - logprob)
            for index, logprob in enumerate(trace.logprobs)
            if logprob is not None
        ]
        return len(wrong), max(wrong, default=0.0)

    def worst_plain(self, prompt: list[int], ids: list[int], logprobs: list[float]) -> float:
        """Return the largest difference for plain text."""
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0]
        found = torch.log_softmax(logits, -1)
        first = len(prompt) - 1
        return max(abs(float(found[first + i, id]) - logprobs[i]) for i, id in enumerate(ids))


def random_document(draw: random.Random, depth: int = 2) -> mv.Document:
    """Return a question and a turn with blocks and holes of random shapes."""
    names = iter(range(1000))

    def body(depth: int) -> list[Any]:
        parts: list[Any] = [draw.choice(["It is ", "So ", "Well, the one is "])]
        for _ in range(draw.randint(0, 2)):
            name = f"h{next(names)}"
            kind = draw.random()
            if kind < 0.2:
                parts.append(mv.gen(name, choices=["yes", "no", "it is one"]))
            elif kind < 0.4:
                parts.append(mv.gen(name, draw.randint(1, 12), regex="[0-9]{1,6}"))
            elif kind < 0.5:
                parts.append(mv.gen(name, draw.randint(1, 20), stop=["A", "one"]))
            else:
                parts.append(mv.gen(name, draw.randint(1, 25)))
            parts.append(draw.choice([" and ", ". The ", "\n", " x "]))
        if depth and draw.random() < 0.6:
            if not str(parts[-1]).endswith("\n"):
                parts.append("\n")
            parts.append(
                mv.parallel(
                    *(
                        mv.branch(draw.choice(["One", "Both of it", "The sum"]), *body(depth - 1))
                        for _ in range(draw.randint(1, 4))
                    ),
                    conclusion=["Then ", mv.gen(f"h{next(names)}", draw.randint(1, 9))],
                )
            )
        return parts

    return mv.document(mv.user("Well? " * draw.randint(1, 30)), mv.assistant(*body(depth)))
