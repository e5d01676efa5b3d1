"""One answer to one problem, as a run keeps it: text, verdict, shape and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mvspec.data.measure import Counter, measure
from mvspec.data.records import read_text
from mvspec.errors import MvspecError
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.law.metrics import Metrics
from mvspec.tree.ir import Parallel

__all__ = ["Key", "Sample", "Shape", "final_text", "shape_of"]

Form = Literal["ok", "cut", "malformed", ""]
Key = tuple[str, int, int | None]

_END_THINK = "</Think>"


@dataclass(frozen=True, slots=True)
class Shape:
    """How an output is built.

    Args:
        form: whether it is well-formed: "ok", "cut" (the beginning of a well-formed text) or
            "malformed".
        code: of its first violation.
        blocks: parallel blocks of a well-formed one.
        tokens, critical_path: of a well-formed one, in the unit that is counted in.
    """

    form: Form
    code: str = ""
    blocks: int = 0
    tokens: int | None = None
    critical_path: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one problem.

    Args:
        id: the problem's.
        sample: which of several answers, from 0.
        cap: on the critical path, in tokens; None for none.
        group: the problem's.
        output: the assistant's text.
        score: the verdict's; None where it was not graded.
        extracted, note, details: likewise.
        form, code, blocks, tokens, critical_path: as in `Shape`.
        finish: how the run ended, as in `Trace.finish`; "" for a recorded output.
        seconds: of the clock, from the first forward to the last.
        prompt: tokens of it.
        error: why there is no output.
    """

    id: str
    sample: int = 0
    cap: int | None = None
    group: str = ""
    output: str = ""
    score: float | None = None
    extracted: str = ""
    note: str = ""
    form: Form = ""
    code: str = ""
    blocks: int = 0
    tokens: int | None = None
    critical_path: int | None = None
    finish: str = ""
    seconds: float | None = None
    prompt: int | None = None
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What it is an answer to."""
        return self.id, self.sample, self.cap

    @property
    def metrics(self) -> Metrics | None:
        """Its tokens and critical path, where they are known."""
        if self.tokens is None or self.critical_path is None:
            return None
        return Metrics(self.tokens, self.critical_path, blocks=self.blocks)

    def record(self) -> dict[str, Any]:
        """Return its line, without what says nothing."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in (None, "", {}) or name in ("id", "score", "output")
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sample:
        """Return the sample of a line.

        Raises:
            ValueError: it is none.
        """
        names = {each.name for each in fields(cls)}
        strange = set(record) - names
        if strange or not isinstance(record.get("id"), str):
            raise ValueError(f"no sample: {', '.join(sorted(strange)) or 'it has no id'}")
        return cls(**record)


def final_text(output: str) -> str:
    """Return what stands behind the thoughts, "" where they do not end.

    >>> final_text("<Think>\\nHm.\\n</Think>\\n\\nIt is 4.")
    'It is 4.'
    >>> final_text("It is 4.")
    'It is 4.'
    """
    _, tag, after = output.rpartition(_END_THINK)
    if tag:
        return after.strip()
    return "" if "<Think>" in output else output


def shape_of(output: str, count: Counter, form: str = MULTIVERSE.name) -> Shape:
    """Return how an output is built.

    Args:
        count: of tokens, or another unit.
        form: the surface form it is in.

    >>> shape_of("<Think>\\nHm", len).form
    'cut'
    """
    document, diagnostics, cut = read_text(output, form)
    if document is None:
        return Shape("cut" if cut else "malformed", diagnostics[0].code)
    try:
        metrics = measure(document, count, FORMS[form].syntax)
    except MvspecError:
        return Shape("ok", blocks=sum(1 for _ in document.walk(Parallel)))
    return Shape("ok", "", metrics.blocks, metrics.tokens, metrics.critical_path)
