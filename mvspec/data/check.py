"""Verdicts on records: well-formed, cut or malformed, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mvspec.data.numbering import numbering_warnings
from mvspec.data.records import BadRecord, Reading, Record, read_text
from mvspec.errors import Diagnostic, Source
from mvspec.forms import FORMS
from mvspec.tree.ir import Parallel


@dataclass(frozen=True, slots=True)
class RecordVerdict:
    """The verdict on one record.

    Args:
        record: its name.
        ok: whether it is well-formed; warnings leave it so.
        cut: whether it is a proper prefix of a well-formed text.
        diagnostics: the first violation, or in recovery every repair; then warnings.
        texts: what the diagnostics point into, by their address, where there are any.
        blocks: parallel blocks of a well-formed record.
        left_out: why it is not among the repaired records, where these are written.
    """

    record: str
    ok: bool
    cut: bool
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    blocks: int = 0
    left_out: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the object that `mvspec check --json` prints."""
        return {
            "record": self.record,
            "ok": self.ok,
            "cut": self.cut,
            "diagnostics": [diagnostic.to_dict() for diagnostic in self.diagnostics],
        }


def check_record(record: Record, recover: bool = False) -> RecordVerdict:
    """Return the verdict on a record; never raises on what a record holds.

    >>> check_record(Record("a.txt", "<Think>\\nHm")).cut
    True
    """
    reading = record.read(recover=recover)
    diagnostics = reading.diagnostics
    ok = not diagnostics
    blocks = 0
    if ok and reading.document is not None:
        try:
            with record.guarded():
                diagnostics = warnings(record, reading)
                blocks = sum(1 for _ in reading.document.walk(Parallel))
        except BadRecord as error:
            ok, diagnostics = False, (error.diagnostic,)
    texts = reading.texts if diagnostics else {}
    return RecordVerdict(record.name, ok, reading.cut, diagnostics, texts, blocks)


def warnings(record: Record, reading: Reading) -> tuple[Diagnostic, ...]:
    """Return what is legal but unusual in a record that is well-formed."""
    if reading.document is None:
        return ()
    # Where the record is more than one text, nodes are named and not places.
    syntax = FORMS[record.form].syntax if record.kind == "text" else None
    source = Source(record.text if syntax else "", record.name)
    return numbering_warnings(reading.document, source, syntax)


def other_forms(record: Record) -> list[str]:
    """Return the forms but its own in which a record is well-formed and holds a block.

    >>> text = "P1: [S1, S2]\\n"
    >>> text = f"Parallel groups:\\n{text}Parallel execution plan:\\nP1:\\n  S1: a\\n  S2: b\\n"
    >>> other_forms(Record("a.txt", text))
    ['curator-plan']
    """
    forms = []
    for name, form in FORMS.items() if record.kind == "text" else ():
        if form.syntax.tagged and name != record.fields.form:
            document, _, _ = read_text(record.text, name)
            if document and next(document.walk(Parallel), None):
                forms.append(name)
    return forms
