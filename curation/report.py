"""Report of a curation: what passed which check, what it cost, and a sample for people."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mvspec.curation.client import UNIT
from mvspec.curation.store import CurationStore
from mvspec.data.measure import count_words, measure
from mvspec.data.resume import replaced, write_json
from mvspec.law.metrics import Corpus
from mvspec.tree.ir import Document
from mvspec.view.notebook import tree_html

REPORT = "report.html"
SUMMARY = "report.json"

MEASURED = ("blocks", "parallelism", "parallelism_with_blocks", "coverage", "paths_per_block",
            "depth")  # fmt: skip

SAMPLE = 20
"""Records that people are shown of each kind, unless they ask for more."""


def curation_report(store: CurationStore) -> dict[str, Any]:
    """Count the verdicts of a folder, as report.json has them.

    Returns:
        records, of these accepted and quarantined (by the check that they did not pass); answers by
        step; answers and records that a check has refused; the cost of the answers that the
        verdicts rest on; how parallel the documents are, counted in words.
    """
    quarantined, answers, refused, records_refused = (Counter[str]() for _ in range(4))
    corpus = Corpus()
    accepted = cost = sentences = rewritten = 0
    distance = 0.0
    for outcome in store.outcomes():
        history = outcome["history"]
        answers.update(event["step"] for event in history)
        checks = [event["check"] for event in history if event["check"]]
        refused.update(checks)
        records_refused.update(set(checks))
        cost += store.costs(sorted({event["key"] for event in history}))
        if outcome["code"]:
            quarantined[outcome["code"]] += 1
            continue
        accepted += 1
        corpus += measure(Document.model_validate(outcome["document"]), count_words)
        provenance = outcome["provenance"]
        sentences += provenance["sentences"]
        rewritten += len(provenance["rewritten"])
        distance += provenance["distance"]
    records = accepted + quarantined.total()
    measured = corpus.to_dict()
    return {
        "records": records,
        "accepted": accepted,
        "yield": accepted / records if records else None,
        "quarantined": dict(sorted(quarantined.items())),
        "answers": dict(sorted(answers.items())),
        "answers_refused": dict(sorted(refused.items())),
        "records_refused": dict(sorted(records_refused.items())),
        "dollars": cost / UNIT,
        "sentences": sentences,
        "sentences_rewritten": rewritten,
        "mean_distance": distance / accepted if accepted else None,
        **{name: measured[name] for name in MEASURED},
    }


def write_report(folder: Path, store: CurationStore, sample: int = SAMPLE) -> dict[str, Any]:
    """Write report.json, and report.html with a sample of records before and after.

    The sample is drawn by the hash of the records' names: the same for the same records.

    Args:
        sample: so many documents, and so many records of the quarantine.
    """
    found = curation_report(store)
    write_json(folder / SUMMARY, found)
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


def _page(found: dict[str, Any], shown: list[dict[str, Any]], bad: list[dict[str, Any]]) -> str:
    samples = "".join(_sample(number, outcome) for number, outcome in enumerate(shown))
    given_up = "".join(map(_given_up, bad))
    save = '<p><button id="save">Save what I have judged</button></p>' if shown else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mvspec curate</title><style>{_STYLE}</style></head><body>
<h1>mvspec curate</h1>
<section>{_tables(found)}</section>
<h2>Documents, before and after</h2>
<p>{len(shown)} of {found["accepted"]:,}, drawn by the hash of their names.
Highlighted sentences were written anew.</p>
{save}{samples}
<h2>Quarantine</h2>
<p>{len(bad)} of {sum(found["quarantined"].values()):,}; quarantine.jsonl has all answers.</p>
{given_up}
{f"<script>{_SCRIPT}</script>" if shown else ""}
</body></html>
"""


def _tables(found: dict[str, Any]) -> str:
    def shown(name: str, spec: str) -> str:
        return "-" if found[name] is None else format(found[name], spec)

    whole = [
        ("records", shown("records", ",")),
        ("documents", shown("accepted", ",")),
        ("yield", shown("yield", ".1%")),
        ("cost", f"${found['dollars']:,.4f}"),
        ("sentences", shown("sentences", ",")),
        ("  written anew", shown("sentences_rewritten", ",")),
        ("edit distance, mean", shown("mean_distance", ".3f")),
        ("blocks", shown("blocks", ",")),
        ("paths per block", shown("paths_per_block", ".3f")),
        ("degree of parallelism, mean", shown("parallelism", ".3f")),
        ("coverage", shown("coverage", ".1%")),
    ]
    refused, records, given_up = (
        Counter(found[name]) for name in ("answers_refused", "records_refused", "quarantined")
    )
    checks = [
        (check, f"{refused[check]:,}", f"{records[check]:,}", f"{given_up[check]:,}")
        for check in sorted({*refused, *given_up})
    ]
    steps = [(step, f"{number:,}") for step, number in Counter(found["answers"]).most_common()]
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
