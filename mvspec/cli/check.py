"""`mvspec check`: the verdict on each record, and its repair."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvspec.cli.console import plain_table, print_table, reading_bar, tell
from mvspec.cli.options import Field, Form, Inputs, Json, Workers, apart, needs
from mvspec.data.check import RecordVerdict, check_record, other_forms
from mvspec.data.fix import FixPolicy, fix_records, log_path
from mvspec.data.parallel_map import ordered_map
from mvspec.data.records import Fields, InputError, Record
from mvspec.data.sources import open_records
from mvspec.errors import Diagnostic, Source
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.shown import excerpt, visible

if TYPE_CHECKING:
    from rich.table import Table


def check(
    inputs: Inputs,
    field: Field = None,
    form: Form = MULTIVERSE.name,
    recover: Annotated[
        bool, typer.Option("--recover", help="List every repair, not only the first violation.")
    ] = False,
    fix: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Write the repaired records to this file, a log beside it."
        ),
    ] = None,
    max_repairs: Annotated[
        int | None, typer.Option(min=0, help="Leave records with more repairs out of --fix.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Leave records with such a repair out; repeatable."),
    ] = None,
    as_json: Json = False,
    workers: Workers = 1,
) -> None:
    """Say of each record whether it is well-formed, and where it is not."""
    summary = VerdictCounts()
    for output in (fix, log_path(fix)) if fix else ():
        apart(output, inputs, "--fix")
    policy = FixPolicy.of(fix, recover, max_repairs, drop)
    compiled = [name for name in inputs if any(Path(name).glob("shard-*.arrow"))]
    if compiled:
        if len(compiled) < len(inputs):
            raise InputError(f"{compiled[0]}: a compiled data set: check it by itself")
        if fix:
            raise InputError(f"--fix {fix}: a compiled data set is made again, not repaired")
        raise typer.Exit(check_compiled(inputs, as_json))
    function = partial(check_record, recover=recover)
    several = partial(
        ordered_map, function, workers=workers, size=record_size, mended=Record.deadly
    )
    source = open_records(inputs, Fields(form, field), again=fix is not None)
    with reading_bar(source) as read:
        first = next(read, None)
        records = chain([first] if first else [], read)
        for verdict in fix_records(records, several, policy, source, summary.resume):
            summary.add(verdict)
            if as_json:
                print(json.dumps(verdict.to_dict()), flush=True)
            elif verdict.diagnostics:
                lines = report(verdict.record, verdict.texts, verdict.diagnostics, repairs=recover)
                print("\n".join(lines), flush=True)
    if not as_json:
        print_table(summary)
        if first is not None and not (summary.ok or summary.cut) and (others := other_forms(first)):
            tell(f"{first.name} is well-formed with --form {' or '.join(others)}")
    wrong = summary.left_out if fix else summary.records - summary.ok
    raise typer.Exit(1 if wrong else 0)


def check_compiled(folders: Iterable[str], as_json: bool) -> int:
    """Say of each file of compiled data sets whether it is what was written; return the status."""
    with needs("compile", "check of a compiled data set"):
        from mvspec.compiler.dataset import verified_files
    bad = 0
    for folder in folders:
        for name, wrong in verified_files(Path(folder)):
            bad += bool(wrong)
            place = f"{folder}/{name}"
            if as_json:
                found = [Diagnostic(0, 0, 1, 1, "damaged", wrong)] if wrong else []
                print(json.dumps(RecordVerdict(place, not wrong, False, (*found,), {}).to_dict()))
            else:
                print(visible(f"{place}: {wrong} [damaged]" if wrong else f"{place}: ok"))
    return int(bad > 0)


class VerdictCounts:
    """Verdicts by kind and code; prints as a table."""

    def __init__(self) -> None:
        self.records = self.ok = self.cut = self.with_blocks = self.left_out = self.done = 0
        self.malformed: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()

    def add(self, verdict: RecordVerdict) -> None:
        """Count one verdict; a malformed record by the code of its first violation."""
        self.records += 1
        self.ok += verdict.ok
        self.cut += verdict.cut
        self.with_blocks += verdict.blocks > 0
        self.left_out += bool(verdict.left_out)
        if verdict.ok:
            self.warnings.update({each.code for each in verdict.diagnostics})
        elif not verdict.cut:
            self.malformed[verdict.diagnostics[0].code] += 1

    def resume(self, done: int, kept: int) -> None:
        """Count what an earlier run has done, and has left out."""
        self.done = done
        self.left_out += done - kept

    def __rich__(self) -> Table:
        table = plain_table("", "records")
        table.add_row("ok", f"{self.ok:,}", style="green" if self.ok else "")
        # Any text without a tag is well-formed, so a wrong file could pass as ok.
        table.add_row("  without a block", f"{self.ok - self.with_blocks:,}", style="dim")
        for code, number in sorted(self.warnings.items()):
            table.add_row(f"  with warning {code}", f"{number:,}", style="yellow")
        table.add_row("cut", f"{self.cut:,}", style="yellow" if self.cut else "")
        number = self.malformed.total()
        table.add_row("malformed", f"{number:,}", style="red" if number else "")
        for code, number in self.malformed.most_common():
            table.add_row(f"  {code}", f"{number:,}", style="dim")
        table.add_section()
        table.add_row("all", f"{self.records:,}")
        if self.done:
            table.add_row("done by an earlier run", f"{self.done:,}", style="dim")
        if self.left_out:
            table.add_row("left out of --fix", f"{self.left_out:,}", style="yellow")
        return table


EXCERPT_WIDTH = 70
"""Characters of a line that an excerpt shows, so that it fits 80 columns with its gutter."""

REPAIR_LIMIT = 200
"""Characters shown of what a repair leaves out or writes; `--json` has all of it."""


def report(
    name: str,
    texts: Mapping[str, str],
    diagnostics: Iterable[Diagnostic],
    *,
    repairs: bool = False,
) -> Iterator[str]:
    """Yield the lines that tell people of diagnostics: place, message, excerpt with a caret.

    Args:
        name: of the record.
        texts: what the diagnostics point into, by address.
        repairs: say too what each repair leaves out and writes.
    """
    for each in diagnostics:
        source = Source(texts.get(each.address, ""))
        warning = "" if each.severity == "error" else f"{each.severity}: "
        where = f" {each.address}" if source.text and each.address else ""
        place = f"{visible(name)}{where}:{each.line}:{each.column}"
        yield f"{place}: {warning}{visible(each.message)} [{each.code}]"
        # A document as JSON is one long line, of which a place is not known.
        if source.text and each.code != "not-a-document":
            yield source.excerpt(each.offset, EXCERPT_WIDTH)
        if repairs and each.dropped:
            yield f"      left out: {excerpt(repr(each.dropped), REPAIR_LIMIT)}"
        if repairs and each.inserted:
            yield f"      written:  {excerpt(repr(each.inserted), REPAIR_LIMIT)}"


def record_size(record: Record) -> int:
    """Return the bytes of a record, the cost of checking it."""
    return int(record.size)
