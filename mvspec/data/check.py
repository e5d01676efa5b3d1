"""The verdict on a record: well-formed, cut or malformed, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mvspec.data.numbering import numbering_warnings
from mvspec.data.records import Record
from mvspec.errors import Diagnostic, ParseError, Source, VerifyError
from mvspec.forms import FORMS, parse
from mvspec.shown import excerpt, visible
from mvspec.tree.ir import Document, Parallel

__all__ = ["Verdict", "check_record", "other_forms", "read_document", "report"]

EXCERPT_WIDTH = 70
"""Characters of a line that an excerpt shows, so that it fits 80 columns with its gutter."""

REPAIR_LIMIT = 200
"""Characters shown of what a repair leaves out or writes; `--json` has all of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `mvspec check` says of one record.

    Args:
        record: its name.
        ok: whether it is well-formed; warnings leave it so.
        cut: whether it is a proper prefix of a well-formed text.
        diagnostics: the first violation, or in recovery every repair; then warnings.
        report: the diagnostics for people, with excerpts.
        blocks: parallel blocks of a well-formed record.
        left_out: why it is not among the repaired records, where these are written.
    """

    record: str
    ok: bool
    cut: bool
    diagnostics: tuple[Diagnostic, ...]
    report: str
    blocks: int = 0
    left_out: str = ""

    def row(self) -> dict[str, object]:
        """Return the object that `mvspec check --json` prints."""
        return {
            "record": self.record,
            "ok": self.ok,
            "cut": self.cut,
            "diagnostics": [diagnostic.record() for diagnostic in self.diagnostics],
        }


def check_record(record: Record, form: str = "multiverse", recover: bool = False) -> Verdict:
    """Return the verdict on a record; never raises on what a record holds.

    >>> check_record(Record("a", "a.txt", "<Think>\\nHm")).cut
    True
    """
    source = Source(record.text, record.name)
    document, diagnostics, cut = read_document(record, form, recover=recover)
    ok = not diagnostics
    blocks = 0
    if ok and document is not None:
        syntax = FORMS[record.form or form].syntax
        diagnostics = numbering_warnings(document, source, syntax)
        blocks = sum(1 for _ in document.walk(Parallel))
    text = "\n".join(report(source, diagnostics, repairs=recover))
    return Verdict(record.name, ok, cut, diagnostics, text, blocks)


def read_document(
    record: Record, form: str = "multiverse", *, recover: bool = False
) -> tuple[Document | None, tuple[Diagnostic, ...], bool]:
    """Return a record's tree where it has one, its violations, and whether it is cut.

    Args:
        form: the surface form; a record that is a document as JSON is read as such.
        recover: return the best tree and every repair, not only the first violation.
    """
    form = record.form or form
    if record.error is not None:
        return None, (record.error,), False
    if recover:
        document, repairs = parse(record.text, form, recover=True, name=record.name)
        if repairs and repairs[0].code in ("not-a-document", "strict-only"):
            return None, repairs, False  # all of it is dropped: nobody takes that for its tree
        return document, repairs, bool(repairs) and repairs[0].code == "cut"
    try:
        return parse(record.text, form, name=record.name), (), False
    except ParseError as error:
        return None, (error.diagnostic,), error.cut
    except VerifyError as error:
        return None, (Diagnostic(0, 0, 1, 1, "not-a-document", str(error)),), False


def other_forms(record: Record, form: str) -> list[str]:
    """Return the forms but this one in which a record is well-formed and holds a block.

    >>> text = "P1: [S1, S2]\\n"
    >>> text = f"Parallel groups:\\n{text}Parallel execution plan:\\nP1:\\n  S1: a\\n  S2: b\\n"
    >>> other_forms(Record("a", "a.txt", text), "multiverse")
    ['curator-plan']
    """
    found = []
    for name, each in FORMS.items() if record.error is None and not record.form else ():
        if each.syntax.tagged and name != form:
            document, _, _ = read_document(record, name)
            if document and next(document.walk(Parallel), None):
                found.append(name)
    return found


def report(
    source: Source, diagnostics: Iterable[Diagnostic], *, repairs: bool = False
) -> Iterator[str]:
    """Yield the lines that tell people of diagnostics: place, message, excerpt with a caret.

    Args:
        repairs: say too what each repair leaves out and writes.
    """
    for each in diagnostics:
        warning = "" if each.severity == "error" else f"{each.severity}: "
        place = f"{visible(source.name)}:{each.line}:{each.column}"
        yield f"{place}: {warning}{visible(each.message)} [{each.code}]"
        # A document as JSON is one long line, of which a place is not known.
        if source.text and each.code != "not-a-document":
            yield source.excerpt(each.offset, EXCERPT_WIDTH)
        if repairs and each.dropped:
            yield f"      left out: {excerpt(repr(each.dropped), REPAIR_LIMIT)}"
        if repairs and each.inserted:
            yield f"      written:  {excerpt(repr(each.inserted), REPAIR_LIMIT)}"
