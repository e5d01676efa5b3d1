"""Report of a curation: what passed which check, what it cost, and a sample for people."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mvspec.curation.client import UNIT, dollars
from mvspec.curation.store import CurationStore
from mvspec.data.measure import count_words, measure
from mvspec.data.resume import replaced
from mvspec.law.metrics import Corpus
from mvspec.tree.ir import Document
from mvspec.view.notebook import tree_html

__all__ = ["REPORT", "CurationReport", "find", "write_report"]

REPORT = "report.html"
SUMMARY = "report.json"

SAMPLE = 20
"""Records that people are shown of each kind, unless they ask for more."""


@dataclass
class CurationReport:
    """Counts of the verdicts of a folder.

    Args:
        accepted, quarantined: records, the latter by the check that they did not pass.
        refused: answers that a check sent back, by check; of all records.
        records_refused: records with at least one such answer, by check.
        answers: by step.
        cost: of the answers that the verdicts rest on.
        corpus: how parallel the documents are, counted in words.
        sentences, rewritten: of the documents' sources.
    """

    accepted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    records_refused: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    cost: int = 0
    corpus: Corpus = field(default_factory=Corpus)
    sentences: int = 0
    rewritten: int = 0
    distance: float = 0.0

    @property
    def records(self) -> int:
        """All records with a verdict."""
        return self.accepted + self.quarantined.total()

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as report.json has them."""
        corpus = self.corpus.to_dict()
        names = ("parallelism", "parallelism_with_blocks", "coverage", "paths_per_block", "depth")
        return {
            "records": self.records,
            "accepted": self.accepted,
            "yield": self.accepted / self.records if self.records else None,
            "quarantined": dict(sorted(self.quarantined.items())),
            "answers": dict(sorted(self.answers.items())),
            "answers_refused": dict(sorted(self.refused.items())),
            "records_refused": dict(sorted(self.records_refused.items())),
            "dollars": self.cost / UNIT,
            "sentences": self.sentences,
            "sentences_rewritten": self.rewritten,
            "mean_distance": self.distance / self.accepted if self.accepted else None,
            "blocks": corpus["blocks"],
            **{name: corpus[name] for name in names},
        }


def find(outcomes: Iterable[dict[str, Any]], store: CurationStore) -> CurationReport:
    """Count verdicts."""
    found = CurationReport()
    for outcome in outcomes:
        history = outcome["history"]
        found.answers.update(event["step"] for event in history)
        checks = [event["check"] for event in history if event["check"]]
        found.refused.update(checks)
        found.records_refused.update(set(checks))
        found.cost += store.costs(sorted({event["key"] for event in history}))
        if outcome["code"]:
            found.quarantined[outcome["code"]] += 1
            continue
        found.accepted += 1
        if "document" in outcome:
            document = Document.model_validate(outcome["document"])
            found.corpus += measure(document, count_words)
            provenance = outcome["provenance"]
            found.sentences += provenance["sentences"]
            found.rewritten += len(provenance["rewritten"])
            found.distance += provenance["distance"]
    return found


def write_report(folder: Path, store: CurationStore, sample: int = SAMPLE) -> CurationReport:
    """Write report.json, and report.html with a sample of records before and after.

    The sample is drawn by the hash of the records' names: the same for the same records.

    Args:
        sample: so many documents, and so many records of the quarantine.
    """
    found = find(store.outcomes(), store)
    with replaced(folder / SUMMARY) as file:
        file.write(json.dumps(found.to_dict(), indent=2) + "\n")
    kinds = [
        heapq.nsmallest(
            sample, (each for each in store.outcomes() if bool(each["code"]) is bad), key=_hash
        )
        for bad in (False, True)
    ]
    with replaced(folder / REPORT) as file:
        file.write(_page(found, *kinds))
    return found


def _hash(outcome: dict[str, Any]) -> str:
    return hashlib.sha256(f"{outcome['record']}\0{outcome['place']}".encode()).hexdigest()


_STYLE = """
:root{color-scheme:light dark}
body{font:14px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:100em;padding:0 1.5em}
table{border-collapse:collapse;margin:.5em 0}
td,th{padding:.15em 1.2em .15em 0;text-align:left;vertical-align:top;
border-bottom:1px solid rgba(128,128,128,.25)}
td.n{text-align:right;font-variant-numeric:tabular-nums}
section{display:flex;flex-wrap:wrap;gap:0 4em;align-items:flex-start}
details{border:1px solid rgba(128,128,128,.35);border-radius:6px;margin:.8em 0;padding:.4em 1em}
summary{cursor:pointer;font-weight:600}
.two{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,3fr);gap:1.5em;margin-top:.6em}
@media(max-width:60em){.two{grid-template-columns:minmax(0,1fr)}}
.two>div{max-height:48em;overflow:auto}
h3{margin:.2em 0 .4em;font-size:1em}
.s{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .15em}
.s i{color:gray;font-style:normal;font-size:.8em;display:inline-block;min-width:2.6em}
.s.e{background:rgba(224,168,0,.16)}
del{text-decoration-color:#cc5449}ins{text-decoration:none;color:#27894e}
.judge{float:right}.judge label{margin-left:1em;font-weight:400}
.p{overflow-wrap:anywhere}
"""

_SCRIPT = """
document.getElementById('save').onclick=()=>{
const rows=[...document.querySelectorAll('input[type=radio]:checked')]
.map(i=>JSON.stringify({id:i.dataset.id,verdict:i.value}));
const a=document.createElement('a');
a.href=URL.createObjectURL(new Blob([rows.join('\\n')+'\\n']));
a.download='judged.jsonl';a.click()};
"""


def _page(found: CurationReport, shown: list[dict[str, Any]], bad: list[dict[str, Any]]) -> str:
    samples = "".join(_sample(number, outcome) for number, outcome in enumerate(shown))
    given_up = "".join(map(_given_up, bad))
    save = '<p><button id="save">Save what I have judged</button></p>' if shown else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mvspec curate</title><style>{_STYLE}</style></head><body>
<h1>mvspec curate</h1>
<section>{_tables(found)}</section>
<h2>Documents, before and after</h2>
<p>{len(shown)} of {found.accepted:,}, drawn by the hash of their names.
Highlighted sentences were written anew.</p>
{save}{samples}
<h2>Quarantine</h2>
<p>{len(bad)} of {found.quarantined.total():,}; quarantine.jsonl has all answers.</p>
{given_up}
{f"<script>{_SCRIPT}</script>" if shown else ""}
</body></html>
"""


def _tables(found: CurationReport) -> str:
    counts = found.to_dict()

    def shown(name: str, spec: str) -> str:
        return "-" if counts[name] is None else format(counts[name], spec)

    whole = [
        ("records", shown("records", ",")),
        ("documents", shown("accepted", ",")),
        ("yield", shown("yield", ".1%")),
        ("cost", dollars(found.cost)),
        ("sentences", shown("sentences", ",")),
        ("  written anew", shown("sentences_rewritten", ",")),
        ("edit distance, mean", shown("mean_distance", ".3f")),
        ("blocks", shown("blocks", ",")),
        ("paths per block", shown("paths_per_block", ".3f")),
        ("degree of parallelism, mean", shown("parallelism", ".3f")),
        ("coverage", shown("coverage", ".1%")),
    ]
    checks = [
        (check, *(f"{counted[check]:,}" for counted in
                  (found.refused, found.records_refused, found.quarantined)))
        for check in sorted({*found.refused, *found.quarantined})
    ]  # fmt: skip
    steps = [(step, f"{number:,}") for step, number in found.answers.most_common()]
    return (
        _table(("", "all"), whole)
        + _table(("check", "answers refused", "in records", "records given up"), checks)
        + _table(("step", "answers"), steps)
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr><td>{escape(first)}</td>"
        + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return f"<table><tr>{top}</tr>{lines}</table>"


def _sample(number: int, outcome: dict[str, Any]) -> str:
    provenance = outcome["provenance"]
    new = {each["sentence"]: each["after"] for each in provenance["rewritten"]}
    name = escape(outcome["record"], quote=True)
    choices = "".join(
        f'<label><input type="radio" name="j{number}" data-id="{name}" value="{value}"> '
        f"{value}</label>"
        for value in ("good", "bad")
    )
    before = "".join(
        _sentence(index, text, new.get(index)) for index, text in enumerate(outcome["sentences"], 1)
    )
    after = tree_html(Document.model_validate(outcome["document"]), None)
    blocks = provenance["blocks"]
    title = (
        f"{name}: {blocks} block{'s' * (blocks != 1)}, {len(new)} of {provenance['sentences']} "
        f"sentences written anew, distance {provenance['distance']:.3f}"
    )
    return (
        f"<details{' open' if number < 3 else ''}><summary>{title}</summary>"
        f'<div class="judge">{choices}</div>'
        f'<div class="two"><div><h3>Before</h3>{before}</div>'
        f"<div><h3>After</h3>{after}</div></div></details>\n"
    )


def _sentence(number: int, text: str, new: str | None) -> str:
    shown = escape(text.rstrip("\n"))
    if new is None:
        return f'<div class="s"><i>{number}</i>{shown}</div>'
    return (
        f'<div class="s e"><i>{number}</i><del>{escape(text.strip())}</del> '
        f"<ins>{escape(new)}</ins></div>"
    )


def _given_up(outcome: dict[str, Any]) -> str:
    rows = [
        (f"{event['step']} {event['where']}".strip(), str(event["attempt"]),
         event["check"] or "passed", event["problem"])
        for event in outcome["history"]
    ]  # fmt: skip
    title = f"{escape(outcome['record'])}: {escape(outcome['code'])}"
    history = _table(("step", "attempt", "check", "why"), rows)
    return (
        f"<details><summary>{title}</summary>"
        f'<p class="p">{escape(outcome["reason"])}</p>{history}</details>\n'
    )
