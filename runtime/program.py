"""Programs: a file that holds a document, run and shown."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mvspec.compiler.plan import ExecutionPlan
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.ir import Document
from mvspec.runtime.engine import TorchEngine
from mvspec.runtime.hole import Sampling
from mvspec.runtime.trace import Result
from mvspec.syntax import UNTAGGED
from mvspec.views import visible

__all__ = ["load_document", "print_result", "run", "run_program"]


def run(
    document: Document | ExecutionPlan | str | os.PathLike[str],
    engine: TorchEngine | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Result:
    """Fill the holes of a document, paths in parallel.

    Args:
        document: a document, its untagged plan, or a file that `load_document` reads.
        engine: what runs it; by default one made for this call.
        model: the folder or hub name of the engine's model, where no engine is given; by
            default SmolLM2-135M-Instruct, fetched once.
        temperature: 0 takes the likeliest token.
        seed: of the random streams, where the temperature is above 0.

    Returns:
        The values by hole name (`result["name"]`), the filled `.document` and the `.trace`.

    Raises:
        MvspecError: the file holds no document, the engine cannot run it, or the model cannot
            be loaded; the message says what to do.
    """
    if isinstance(document, ExecutionPlan):
        document = planned(document)
    elif not isinstance(document, Document):
        document = load_document(document)
    if engine is not None and model is not None:
        raise VerifyError("", "run takes an engine or a model, not both")
    sampling = Sampling(temperature, seed)
    return (engine or TorchEngine.load(model)).run(document, sampling)


def planned(plan: ExecutionPlan) -> Document:
    """Return the document of a plan that this engine can run.

    Raises:
        Unsupported: the plan writes tags, or does not hold its document.
    """
    if plan.verify().form != UNTAGGED.name:
        raise Unsupported(
            f"this engine runs untagged plans, and this one is {plan.form}: plan the document "
            "with syntax=UNTAGGED"
        )
    if plan.document is None:
        raise Unsupported("this engine runs plans that hold their document: set plan.document")
    return plan.document


def load_document(path: str | os.PathLike[str]) -> Document:
    """Read a document out of a Python program or a JSON file.

    Args:
        path: a .py file that binds `document`, or a file of a document's JSON text.

    Raises:
        MvspecError: the file cannot be read, fails, or holds no document.
    """
    file = Path(path)
    if not file.is_file():
        raise MvspecError(f"{file}: there is no such file")
    if file.suffix != ".py":
        try:
            return Document.from_json(file.read_bytes())
        except (VerifyError, OSError) as error:
            raise MvspecError(f"{file}: {error}") from error
    sys.path.insert(0, str(file.parent.absolute()))  # as `python file` does
    try:
        names = runpy.run_path(str(file))
    except MvspecError as error:
        raise MvspecError(f"{where(error, file)}: {error}") from error
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise MvspecError(f"{where(error, file)}: {kind}: {error}") from error
    finally:
        sys.path.pop(0)
    document = names.get("document")
    if not isinstance(document, Document):
        found = "no `document`" if document is None else f"a {type(document).__name__}"
        raise MvspecError(f"{file}: binds {found}, expected `document = mvspec.document(...)`")
    return document


def where(error: BaseException, file: Path) -> str:
    """Return `file:line` for the last line of `file` that an error came through."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)


def run_program(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    console: Console | None = None,
) -> Result:
    """Run a file's document and print the results; what `mvspec run` does.

    Args:
        path: a file that `load_document` reads.
        model, temperature, seed: as in `run`.
        console: where results go; by default standard output.

    Raises:
        MvspecError: as `run`.
    """
    document = load_document(path)
    # A spinner shows on terminals only; standard output is for results.
    with Console(stderr=True).status("loading the model") as status:
        engine = TorchEngine.load(model)
        status.update(f"filling {len(document.holes)} holes")
        result = engine.run(document, Sampling(temperature, seed))
    print_result(result, console or Console())
    return result


def print_result(result: Result, console: Console) -> None:
    """Print each hole's value, then the size of the run."""
    table = Table("hole", "value", show_lines=True)
    for name, value in result.values.items():
        table.add_row(Text(name, style="bold"), Text(visible(value.strip())))
    if result.values:
        console.print(table)
    console.print(
        f"{len(result.answer)} tokens on a critical path of {result.critical_path}: "
        f"parallelism {result.parallelism:.2f}; {result.seconds:.1f} s",
        highlight=False,
    )
