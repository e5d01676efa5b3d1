"""What `mvspec run`, `plan` and `demo` do at a terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mvspec.compiler.cost import plan_cost
from mvspec.compiler.plan import Adaptive, ExecutionPlan
from mvspec.data.records import InputError
from mvspec.errors import MvspecError
from mvspec.events import Finished
from mvspec.runtime.engine.torch_engine import Runnable, TorchEngine
from mvspec.runtime.options import Options
from mvspec.runtime.program import load_program
from mvspec.trace import Result, Trace
from mvspec.tree.ir import Document
from mvspec.view.live import LiveColumns
from mvspec.view.terminal import visible
from mvspec.view.timeline import timeline_text
from mvspec.view.timeline_image import check_timeline, write_timeline

if TYPE_CHECKING:
    from mvspec.runtime.serving.engine import SGLangEngine

__all__ = [
    "cost_line",
    "describe_plan",
    "jsonable",
    "load_engine",
    "run_file",
    "run_live",
    "show_demo",
    "show_result",
    "summary",
]


def run_file(
    path: Path,
    model: str | None,
    options: Options,
    *,
    engine: str | None = None,
    live: bool = False,
    trace: Path | None = None,
    timeline: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Run a file and print the result; what `mvspec run` does.

    Args:
        path: what `load_program` reads.
        model: folder or hub name; by default SmolLM2-135M-Instruct, fetched once.
        engine: the URL of a server of SGLang, instead of a model.
        live: show the paths side by side while they are written, on standard error.
        trace: a JSONL file that the trace is appended to, also after Ctrl-C.
        timeline: an .svg or .png file that the timeline is drawn to.
        quiet: print nothing.

    Raises:
        MvspecError: as `mvspec.run`.
    """
    if timeline is not None:
        check_timeline(timeline)
    if trace is not None:
        _check_trace(trace)
    program = load_program(path)
    errors = Console(stderr=True)
    runner: TorchEngine | SGLangEngine
    if engine is not None:
        from mvspec.runtime.serving.engine import SGLangEngine

        runner = SGLangEngine(engine, api_key=os.environ.get("MVSPEC_API_KEY"))
    else:
        runner = load_engine(model, errors)
    result = run_live(runner, program, options, errors, live=live and not quiet, trace=trace)
    if trace is not None:
        result.trace.save(trace)
    if timeline is not None:
        write_timeline(timeline, result.trace)
    if not quiet:
        show_result(result, Console())
    return result


def _check_trace(path: Path) -> None:
    """Refuse a file that a trace cannot be appended to, before there is one to lose."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a .jsonl file to append the trace to")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written")


def load_engine(model: str | None, console: Console) -> TorchEngine:
    """Load a model behind a status line, which transformers' own progress bars would break."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with console.status("loading the model"):
        return TorchEngine.load(model)


def run_live(
    engine: TorchEngine | SGLangEngine,
    program: Runnable,
    options: Options,
    console: Console,
    *,
    live: bool,
    trace: Path | None = None,
) -> Result:
    """Run a program, shown while it goes on; Ctrl-C leaves the trace so far in its file."""
    # The two have requests of their own kinds, which only they look into.
    request: Any = engine.submit(program, options)
    try:
        with LiveColumns(console) if live else console.status("running") as shown:
            for event in engine.follow(request):
                if isinstance(shown, LiveColumns):
                    shown.show(event)
                if isinstance(event, Finished):
                    return event.result
    except KeyboardInterrupt:  # wherever it came: in the model, or while the screen was drawn
        if trace is not None:
            engine.result(request).trace.save(trace)
            print(f"mvspec: interrupted; the trace so far is in {trace}", file=sys.stderr)
        raise
    raise MvspecError("the engine ended its events without a result: this is a bug of mvspec")


def jsonable(result: Result) -> dict[str, Any]:
    """Return what `mvspec run --json` prints."""
    values = {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in result.values.items()
    }
    document = None if result.document is None else json.loads(result.document.to_json())
    return {
        "values": values,
        "errors": dict(result.errors),
        "finish": result.trace.finish,
        "document": document,
    }


def show_result(result: Result, console: Console) -> None:
    """Print each hole's value, or else the text that was written; then the size of the run."""
    table = Table("hole", "value", show_lines=True)
    for name in result.texts:
        value = result.values.get(name)
        shown = value.model_dump_json() if isinstance(value, BaseModel) else result.texts[name]
        text = Text(visible(shown.strip()))
        if name in result.errors:
            text.append(f"\n{visible(result.errors[name])}", style="red")
        table.add_row(Text(name, style="bold"), text)
    if result.texts:
        console.print(table)
    else:
        console.print(Text(visible(result.text)))
    console.print(summary(result.trace), highlight=False, markup=False)


def summary(trace: Trace) -> str:
    """Return the size of a run in one line."""
    ended = {"limit": "; closed by force at a limit", "time": "; closed by force, out of time"}
    return (
        f"{trace.answer} tokens on a critical path of {trace.critical_path}: "
        f"parallelism {trace.parallelism:.2f}; {len(trace.forward_seconds)} forwards in "
        f"{trace.seconds:.1f} s{ended.get(trace.finish, '')}"
    )


def describe_plan(path: Path, model: str | None, tokenizer: Any = None) -> ExecutionPlan:
    """Return the plan of a file for a model's tokenizer; no weights are loaded.

    Raises:
        MvspecError: the file holds nothing to run, or the tokenizer cannot be loaded.
    """
    from mvspec.compiler.planning import plan_document
    from mvspec.compiler.tokenizer import load_tokenizer
    from mvspec.forms.multiverse import MULTIVERSE
    from mvspec.forms.untagged import UNTAGGED
    from mvspec.law.tags import Tag
    from mvspec.runtime.engine.default_model import default_model

    program = load_program(path)
    if isinstance(program, ExecutionPlan):
        return program
    tokenizer = tokenizer or load_tokenizer(str(model or default_model()))
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    tagged = all(backend.token_to_id(tag.value) is not None for tag in Tag)
    template = bool(getattr(tokenizer, "chat_template", None)) or None
    return plan_document(
        program, tokenizer, syntax=MULTIVERSE if tagged else UNTAGGED, template=template
    )


def cost_line(plan: ExecutionPlan) -> str:
    """Return what a plan costs, or why that is not known."""
    if any(isinstance(op, Adaptive) for op in plan.ops):
        return "cost: the model decides when to fork, so it is not known before the run"
    return str(plan_cost(plan))


def show_demo(document: Document, model: str | None, *, timeline: Path | None = None) -> Result:
    """Author a small task, show its plan, run it live, and measure it against one path at a time.

    Args:
        document: the task.
        timeline: an .svg or .png file that the timeline is drawn to.
    """
    if timeline is not None:
        check_timeline(timeline)
    console = Console()
    errors = Console(stderr=True)
    engine = load_engine(model, errors)
    console.rule("the document")
    console.print(document)
    plan = engine.plan(document)
    console.rule("its plan")
    console.print(str(plan), highlight=False, markup=False)
    console.print(cost_line(plan), highlight=False, markup=False)
    result = run_live(engine, plan, Options(), errors, live=True)
    console.rule("the results")
    show_result(result, console)
    console.rule("the timeline")
    console.print(timeline_text(result.trace, console.width))
    if timeline is not None:
        write_timeline(timeline, result.trace)
    # The same tokens twice more, in one process: all paths a step, and one path after the other.
    with errors.status("measuring the same tokens, one path after the other"):
        together = engine.run(result.trace.plan, Options(decode=True)).trace.seconds
        alone = engine.run(result.trace.plan, Options(decode=True, threads=1)).trace.seconds
    predicted = plan_cost(result.trace.plan).speedup
    console.print(
        f"the same tokens: {together:.1f} s in parallel, {alone:.1f} s one path after the other: "
        f"{alone / together:.2f} times faster (at most {predicted:.2f}, were every step as fast "
        "as one with a single path)",
        highlight=False,
    )
    return result
