"""The arms of the comparison: how each is trained, and how it is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mvspec.compiler.lowerings import find_lowering
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.forms import parse
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime import Options, TorchEngine
from mvspec.runtime.engine.model import load_model
from mvspec.runtime.tasks.examination import ExamMark, examine
from mvspec.runtime.tasks.problem import PARALLEL, STEPWISE, TaskProblem

__all__ = ["ARMS", "Arm", "chosen", "find_arm", "is_canonical", "tagged", "worded"]


def is_canonical(text: str) -> bool:
    """Return whether a text with tags is well-formed as it stands."""
    try:
        parse(text)
    except MvspecError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train and to serve.

    Args:
        name: that tables show.
        lowering: of its documents.
        serving: "text" for one token after the other, tags being words like others; "law" where
            the model's tags fork and join.
        share: paths read each other after so many tokens; 0 for never.
    """

    name: str
    lowering: str
    serving: str = "law"
    share: int = 0

    @property
    def structured(self) -> bool:
        """Whether its documents have blocks."""
        return self.lowering != "autoregressive"

    @property
    def prompt(self) -> str:
        """What it is asked with."""
        return PARALLEL if self.structured else STEPWISE

    def options(self, max_tokens: int) -> Options:
        """Return how it is served: nothing holds it to the grammar."""
        return Options(structure=False, share=self.share, limits=Limits(max_tokens=max_tokens))

    def engine(self, folder: Path, **more: Any) -> TorchEngine:
        """Return an engine that serves the weights in a folder."""
        model, tokenizer = load_model(folder)
        return TorchEngine(model, tokenizer if self.serving == "law" else worded(folder), **more)

    def examine(
        self,
        engine: Any,
        problems: Sequence[TaskProblem],
        *,
        prompt: str | None = None,
        batch: int,
        max_tokens: int,
    ) -> Iterator[ExamMark]:
        """Ask problems and yield how each went."""
        options = self.options(max_tokens)
        asked = prompt or self.prompt
        for mark, text in examine(engine, problems, asked, options, batch=batch):
            if self.serving == "text" and self.structured:
                real = tagged(text)
                whole = mark.well_formed and is_canonical(real)
                mark = replace(mark, well_formed=whole, forked=Tag.PARALLEL in real)
            yield mark


ARMS = {
    "autoregressive": Arm("autoregressive", "autoregressive", "text"),
    "multiverse": Arm("multiverse", "multiverse"),
    "sequential": Arm("sequential", "sequential", "text"),
    "official": Arm("official", "official"),
}


def find_arm(name: str) -> Arm:
    """Return the arm of that name.

    Raises:
        Unsupported: there is none.
    """
    match = re.fullmatch(r"shared\(([0-9]+)\)", name)
    if match:
        find_lowering(name)
        return Arm(name, name, share=int(match[1]))
    if name not in ARMS:
        raise Unsupported(f"arms: no arm is named {name!r}: use {', '.join(ARMS)}, shared(k)")
    return ARMS[name]


def chosen(
    only: Sequence[str] | None, arms: Sequence[str], seeds: Sequence[int]
) -> set[tuple[str, int]] | None:
    """Read what `--only` names of a comparison's arms and seeds; the base is always done.

    Raises:
        VerifyError: it is no arm and seed, or none of these.
    """
    if only is None:
        return None
    found = set()
    for each in only:
        name, _, seed = each.partition(":")
        if each == "base":
            continue
        if not seed.isdecimal():
            raise VerifyError(f"--only {each}", "is not ARM:SEED, as multiverse:0, nor base")
        if find_arm(name).name not in arms or int(seed) not in seeds:
            raise VerifyError(
                f"--only {each}", f"the settings have the arms {', '.join(arms)}, "
                f"and the seeds {', '.join(map(str, seeds))}"
            )  # fmt: skip
        found.add((name, int(seed)))
    return found


def worded(folder: Path) -> Any:
    """Return the folder's tokenizer with its tags under other names, so that none forks."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in table["added_tokens"]:
        if token["content"] in set(Tag):
            token["content"] = _word(token["content"])
    for tag in set(Tag) & set(table["model"]["vocab"]):
        table["model"]["vocab"][_word(tag)] = table["model"]["vocab"].pop(tag)
    made = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), eos_token=tokenizer.eos_token
    )
    made.chat_template = tokenizer.chat_template
    return made


def _word(tag: str) -> str:
    return tag.replace("<", "[").replace(">", "]")


def tagged(text: str) -> str:
    """Return a turn's text that a worded tokenizer decoded, with the tags' own names."""
    text = re.sub(r"<\|\w+\|>\s*\Z", "", text)  # what ended the turn
    for tag in Tag:
        text = text.replace(_word(tag), tag)
    return text
