"""Programs: files that hold what an engine runs."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvspec.compiler.chat_template import asking, settings_of
from mvspec.compiler.plan import ExecutionPlan
from mvspec.compiler.planning import replay_plan
from mvspec.errors import MvspecError, VerifyError
from mvspec.forms import parse
from mvspec.law.limits import Limits
from mvspec.runtime.engine.torch_engine import TorchEngine
from mvspec.runtime.options import Options
from mvspec.runtime.protocol import Engine, Runnable
from mvspec.runtime.sampling import Sampling
from mvspec.trace import Result, Trace
from mvspec.tree.ir import Document


def run(
    document: Runnable | str | os.PathLike[str],
    engine: Engine | str | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    options: Options | None = None,
    limits: Limits | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Result:
    """Run a document or a plan, paths in parallel.

    Its holes are filled; where it does not end with an assistant's turn, that turn is written.

    Args:
        document: a document, a plan, or a file that `load_program` reads.
        engine: what runs it, or the URL of a server of SGLang (`mvspec serve`); by default one
            made for this call.
        model: the folder or hub name of the engine's model, where no engine is given; by
            default SmolLM2-135M-Instruct, fetched once.
        options: how it is run; instead of them, `limits` and the fields of `Sampling`:
            `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`, `stop`, `seed`.
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`; an engine
            that is given has them itself.

    Returns:
        The values by hole name (`result["name"]`), the `.document` and the `.trace`.

    Raises:
        MvspecError: the file holds nothing to run, the engine cannot run it, or the model cannot
            be loaded; the message says what to do.
    """
    if engine is not None and model is not None:
        raise VerifyError("run", "takes an engine or a model, not both")
    if options is not None and (sampling or limits):
        raise VerifyError("run", "takes options, or limits and sampling by name, not both")
    if options is None:
        known = Sampling.__dataclass_fields__
        for name in sampling:
            if name not in known:
                raise VerifyError("run", f"no option is named {name!r}: use {', '.join(known)}")
        options = Options(Sampling(**sampling), limits or Limits())
    if isinstance(document, str | os.PathLike):
        document = load_program(document)
    runner = engine_of(engine, model, chat_template_kwargs=chat_template_kwargs)
    return runner.run(document, options)


def engine_of(
    engine: Engine | str | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    requests: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **load: Any,
) -> Engine:
    """Return an engine: as given, at a URL, or in this process with a model.

    Args:
        engine: an engine, or the URL of a server; `MVSPEC_API_KEY` is its key.
        model: folder or hub name, where there is no engine; None for the default one.
        requests: how many there are at once; by default the engine's own number.
        chat_template_kwargs: the chat template's own arguments, as `enable_thinking`.
        load: of `TorchEngine.load`.

    Raises:
        MvspecError: the server cannot be reached, or the model cannot be loaded.
    """
    if isinstance(engine, str):
        from mvspec.runtime.serving.engine import SGLangEngine

        key = os.environ.get("MVSPEC_API_KEY")
        return SGLangEngine(
            engine, api_key=key, max_requests=max(requests or 0, 256),
            chat_template_kwargs=chat_template_kwargs,
        )  # fmt: skip
    if engine is not None:
        asking(engine.tokenizer, chat_template_kwargs)  # checked
        if chat_template_kwargs and settings_of(engine.tokenizer) is None:
            raise VerifyError("chat_template_kwargs", "give them to the engine when it is made")
        return engine
    if requests is not None:
        load["max_concurrent_requests"] = requests
    if chat_template_kwargs:
        load["chat_template_kwargs"] = chat_template_kwargs
    return TorchEngine.load(model, **load)


def load_program(path: str | os.PathLike[str]) -> Runnable:
    """Read what an engine can run.

    Args:
        path: a .py file that binds `document` (a document or a plan); a .json file of a
            document or a plan; a .jsonl file of traces, whose last one is replayed; or a text in
            the multiverse form, which is replayed.

    Raises:
        MvspecError: the file cannot be read, fails, or holds nothing to run.
    """
    file = Path(path)
    if not file.is_file():
        raise MvspecError(f"{file}: there is no such file")
    if file.suffix == ".py":
        return _program(file)
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            lines = text.splitlines()
            if not lines:
                raise VerifyError("", "the file is empty: expected a trace on each line")
            return replay_plan(Trace.from_json(lines[-1]))
        if file.suffix == ".json":
            plan = '"ops"' in text[:4096] and '"messages"' not in text[:20]
            return ExecutionPlan.from_json(text) if plan else Document.from_json(text)
        return parse(text, name=str(file))
    except (MvspecError, OSError, UnicodeDecodeError) as error:
        raise MvspecError(f"{file}: {error}") from error


def _program(file: Path) -> Runnable:
    sys.path.insert(0, str(file.parent.absolute()))  # as `python file` does
    try:
        names = runpy.run_path(str(file))
    except MvspecError as error:
        raise MvspecError(f"{_where(error, file)}: {error}") from error
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise MvspecError(f"{_where(error, file)}: {kind}: {error}") from error
    finally:
        sys.path.pop(0)
    document = names.get("document")
    if not isinstance(document, Document | ExecutionPlan):
        found = "no `document`" if document is None else f"a {type(document).__name__}"
        raise MvspecError(f"{file}: binds {found}, expected `document = mvspec.document(...)`")
    return document


def _where(error: BaseException, file: Path) -> str:
    """Return `file:line` for the last line of `file` that an error came through."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)
