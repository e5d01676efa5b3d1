"""Results of an evaluation: samples in a file that grows, taken up again after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mvspec.data.measure import Counter, measure
from mvspec.data.records import InputError, is_trace, read_text
from mvspec.data.resume import Journal, differing, whole_lines
from mvspec.data.sources import HEAD, TRACES
from mvspec.errors import MvspecError
from mvspec.forms import FORMS
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.law.metrics import Metrics
from mvspec.trace import Trace
from mvspec.tree.ir import Parallel

Form = Literal["ok", "cut", "malformed", ""]
Key = tuple[str, int, int | None]

_END_THINK = "</Think>"


@dataclass(frozen=True, slots=True)
class OutputShape:
    """The structure of an output: tokens, critical path, blocks, paths.

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
class EvaluationSample:
    """One answer to one problem.

    Args:
        id: the problem's.
        sample: which of several answers, from 0.
        cap: on the critical path, in tokens; None for none.
        group, question, gold: the problem's.
        prompt: the messages that it was asked with; () for a recorded output.
        output: the assistant's text.
        score: the verdict's; None where it was not graded.
        extracted, note, details: likewise.
        form, code, blocks, tokens, critical_path: as in `OutputShape`.
        finish: how the run ended, as in `Trace.finish`; "" for a recorded output.
        seconds: of the clock, from the first forward to the last.
        prompt_tokens: how many the prompt has.
        trace: of the run; once it is kept, the file beside the results that holds it, and the
            byte at which its line begins.
        error: why there is no output.
    """

    id: str
    sample: int = 0
    cap: int | None = None
    group: str = ""
    question: str = ""
    gold: str = ""
    prompt: Sequence[Mapping[str, Any]] = ()
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
    prompt_tokens: int | None = None
    trace: Trace | Mapping[str, Any] | None = None
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

    def to_dict(self) -> dict[str, Any]:
        """Return its line, without what says nothing."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value not in (None, "", {}, ()) or name in ("id", "score", "output")
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EvaluationSample:
        """Return the sample of a line, of this format or of format 1.

        Raises:
            ValueError: it is none.
        """
        if isinstance(record.get("prompt"), int):
            record = {**record, "prompt_tokens": record["prompt"], "prompt": ()}
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


def shape_of(output: str, count: Counter, form: str = MULTIVERSE.name) -> OutputShape:
    """Return how an output is built.

    Args:
        count: of tokens, or another unit.
        form: the surface form it is in.

    >>> shape_of("<Think>\\nHm", len).form
    'cut'
    """
    document, diagnostics, cut = read_text(output, form)
    if document is None:
        return OutputShape("cut" if cut else "malformed", diagnostics[0].code)
    try:
        metrics = measure(document, count, FORMS[form].syntax, answers=True)
    except MvspecError:
        return OutputShape("ok", blocks=sum(1 for _ in document.walk(Parallel)))
    return OutputShape("ok", "", metrics.blocks, metrics.tokens, metrics.critical_path)


FORMAT = 2
"""Version of the file's format; 1, whose samples say less, is read too."""

GROWING = ("samples", "caps", "limit", "total")
"""Settings that a run may be taken up with other values of: they say how much there is to do."""


@dataclass
class EvaluationRun:
    """The settings and samples that a file of results holds.

    Args:
        path: of the file.
        settings: under which it was made.
        samples: by problem, sample and cap; the last line counts where there are several.
        format: of the file.
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    samples: dict[Key, EvaluationSample] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def missing(self) -> int:
        """How many samples were asked for and are not there yet."""
        return max(int(self.settings.get("total", 0)) - len(self.samples), 0)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.path.stem


def read_run(path: Path) -> EvaluationRun:
    """Read a file of results; a last line that a kill has cut is left out.

    Raises:
        InputError: it cannot be read, or a line of it is none of ours.
    """
    run, _ = _read(path)
    if not run.settings:
        raise InputError(f"{path}: no results of mvspec eval: its first line has no settings")
    return run


def _read(path: Path) -> tuple[EvaluationRun, int]:
    """Return a run, and how many bytes of the file are whole lines."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    run = EvaluationRun(path)
    whole = data.rfind(b"\n") + 1
    if not whole and not data.startswith(HEAD):
        raise InputError(f"{path}: no results of mvspec eval")
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            if "settings" in row:
                if row.get("format") not in (1, FORMAT):
                    raise InputError(
                        f"{path}: results of format {row.get('format')!r}, and this mvspec reads "
                        f"1 and {FORMAT}: use the mvspec that wrote them, or name another file"
                    )
                run.settings, run.format = dict(row["settings"]), row["format"]
            else:
                sample = EvaluationSample.from_dict(row)
                run.samples[sample.key] = sample
        except (ValueError, TypeError) as error:
            if number == 1:
                raise InputError(f"{path}: no results of mvspec eval ({error})") from None
            raise InputError(f"{path}:{number}: {error}: mend the line, or delete it") from None
    return run, whole


class ResultsFile:
    """A file that samples are added to, and beside it the one of their traces.

    A trace is some tens of times as long as its text, so that results stay what one can read.
    """

    def __init__(self, run: EvaluationRun, journal: Journal, stack: ExitStack) -> None:
        self.run = run
        self._journal = journal
        self._stack = stack
        self._traces: Journal | None = None

    def add(self, sample: EvaluationSample) -> None:
        """Write a sample's line, behind that of its trace.

        Raises:
            InputError: the disk is full, or a file cannot be written; what it held stays.
        """
        trace = sample.trace
        if isinstance(trace, Trace):
            trace = json.loads(trace.model_dump_json(exclude_none=True))
        if trace is not None and is_trace(trace):
            path = traces_path(self.run.path)
            if self._traces is None:
                whole = sum(map(len, whole_lines(path)))
                self._traces = self._stack.enter_context(Journal(path, whole, durable=True))
            told = {"id": sample.id, "sample": sample.sample, "cap": sample.cap}
            offset = self._write(self._traces, {**told, "trace": trace})
            trace = {"file": path.name, "offset": offset}
        sample = replace(sample, trace=trace)
        self._write(self._journal, sample.to_dict())
        self.run.samples[sample.key] = sample

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Write the settings where they are new, ask for more, or are of an older format."""
        if self.run.settings != settings or self.run.format != FORMAT:
            self._write(self._journal, {"format": FORMAT, "settings": dict(settings)})
            self.run.settings, self.run.format = dict(settings), FORMAT

    def _write(self, journal: Journal, row: Mapping[str, Any]) -> int:
        try:
            return journal.add(row)
        except OSError as error:
            raise InputError(
                f"{journal.path}: {error.strerror or error}: {len(self.run.samples)} samples are "
                "kept; the same command goes on from there"
            ) from None


def traces_path(path: Path) -> Path:
    """Return the file of the traces of results.

    >>> traces_path(Path("runs/a.jsonl")).name
    'a.traces.jsonl'
    """
    return path.with_name(path.name.removesuffix(".jsonl") + TRACES)


@contextmanager
def open_results(path: Path, settings: Mapping[str, Any]) -> Iterator[ResultsFile]:
    """Give the file of a run, new or taken up.

    Args:
        path: of the file.
        settings: under which samples are made now.

    Raises:
        InputError: it was made under others, is none of ours, cannot be written, or another
            process is at work on it.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; name a .jsonl file")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no folder {path.parent}")
    try:
        journal = Journal(path, None, durable=True)
    except OSError as error:
        raise InputError(f"-o {path}: {error.strerror or error}") from None
    with ExitStack() as stack:
        stack.enter_context(journal)
        run, whole = _read(path) if path.stat().st_size else (EvaluationRun(path), 0)
        _compare(run, settings)
        journal.cut(whole)
        results = ResultsFile(run, journal, stack)
        results.settle(settings)
        yield results


def _compare(run: EvaluationRun, settings: Mapping[str, Any]) -> None:
    """Refuse to take a run up under other settings."""
    if not run.settings:
        if run.samples:
            raise InputError(f"-o {run.path}: its first line has no settings: name another file")
        return
    before, now = _flat(run.settings), _flat(settings)
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in differing(before, now)
        if name not in GROWING
    ]
    if changed:
        raise InputError(
            f"-o {run.path}: made under other settings ({'; '.join(changed)}): name another file"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those inside others by their own names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
