"""Programs that a model wrote, run against tests in a process that has little.

Limits, no network, one folder to write to. Linux only where it matters: limits are `setrlimit`'s,
the network is cut off by namespaces (`unshare`), and writing elsewhere by Landlock. A kernel
without one of the two last runs without it, which `missing` tells. Reading is not cut off: what a
process reads, it cannot send.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

from mvspec.runtime.evaluation import confined
from mvspec.runtime.evaluation.grader_process import GraderVerdict

_UNSHARE = ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL")


@dataclass(frozen=True, slots=True)
class CodeOutcome:
    """The outcome of a run of code.

    Args:
        status: "ok", "failed" (it raised, or ended with a status) or "time".
        out: its standard output.
        value: what the function returned, where one was called.
        reason: the last line of its errors.
    """

    status: str
    out: str = ""
    value: Any = None
    reason: str = ""


@cache
def _namespaces() -> tuple[str, ...]:
    """Return the command that cuts off the network, () where there is none."""
    program = shutil.which("unshare")
    if program is None:
        return ()
    command = (program, *_UNSHARE)
    try:
        done = subprocess.run((*command, "true"), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()


def missing() -> list[str]:
    """Return which walls of the sandbox this machine does not have, for people."""
    walls = []
    if not hasattr(signal, "SIGXCPU"):
        walls.append("limits of time, memory and files")
    if not _namespaces():
        walls.append("a network of its own (unshare)")
    if not confined.has_landlock():
        walls.append("one folder to write to (Landlock)")
    return walls


def run_code(
    code: str,
    stdin: str = "",
    *,
    function: str = "",
    arguments: list[Any] | None = None,
    seconds: float = 6.0,
    megabytes: int = 1024,
) -> CodeOutcome:
    """Run a program, or call a function of it.

    Args:
        code: Python.
        stdin: what the program reads.
        function: its name, of a class `Solution` or of the module; "" runs the program.
        arguments: of the function; JSON.
        seconds: of the clock; of the processor, rounded up.
        megabytes: of memory.

    >>> run_code("print(int(input()) + 1)", "41").out
    '42\\n'
    >>> run_code("def f(a): return a * 2", function="f", arguments=[4]).value
    8
    """
    with tempfile.TemporaryDirectory(prefix="mvspec-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job = {
            "code": code, "function": function, "arguments": arguments or [],
            "seconds": int(seconds) + 1, "bytes": megabytes << 20, "alone": bool(_namespaces()),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        status, reason = _run(folder, stdin, seconds)
        out = (folder / "out").read_text("utf-8", errors="replace")
        value: Any = None
        if status == "ok" and function:
            try:
                value = json.loads((folder / "value.json").read_text("utf-8"))
            except (OSError, ValueError):
                status, reason = "failed", "the function returned nothing that JSON can hold"
        return CodeOutcome(status, out, value, reason)


def _run(folder: Path, stdin: str, seconds: float) -> tuple[str, str]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder)}
    environment |= {"LANG": "C.UTF-8", "TMPDIR": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    command = [*_namespaces(), sys.executable, "-I", str(Path(confined.__file__).resolve())]
    (folder / "in").write_text(stdin, "utf-8")
    with (
        (folder / "in").open("rb") as source,
        (folder / "out").open("wb") as out,
        (folder / "errors").open("wb") as errors,
    ):
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=source, stdout=out, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "time", f"more than {seconds:g} s"
        finally:
            if process.poll() is None or hasattr(os, "killpg"):
                _kill(process)
    if code == 0:
        return "ok", ""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL, -24, 128 + 24):  # 24 is SIGXCPU
        return "time", "more time of the processor than it may have"
    lines = (folder / "errors").read_text("utf-8", errors="replace").strip().splitlines()
    return "failed", lines[-1][:500] if lines else f"exit status {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and whatever it has started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


_FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)

_MOST = 256 << 20
"""Bytes that packed tests may unpack to."""


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text; a pickle that asks for anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def unpacked_tests(value: Any) -> list[Any]:
    """Return tests from a list, JSON text of one, or the benchmark's packed form of it.

    Raises:
        ValueError: it is none of them.

    >>> unpacked_tests('[{"input": "1", "output": "2"}]')
    [{'input': '1', 'output': '2'}]
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                unpacker = zlib.decompressobj()
                data = unpacker.decompress(base64.b64decode(value, validate=True), _MOST)
                value = json.loads(_TextUnpickler(io.BytesIO(data)).load())
            except Exception as error:
                raise ValueError(f"neither JSON nor packed tests ({error})") from None
    if not isinstance(value, list):
        raise ValueError("not a list of tests")
    return value


def code_of(text: str) -> str:
    """Return the last fenced block of a text, "" where there is none.

    >>> code_of("First:\\n```python\\nprint(1)\\n```\\nThat is it.")
    'print(1)\\n'
    """
    found = _FENCED.findall(text)
    return found[-1] if found else ""


def grade_code(payload: Mapping[str, Any], text: str) -> GraderVerdict:
    """Run the code of an answer against every test; the first that fails ends it.

    Args:
        payload: `tests` (`input`, `output` of each), `function` ("" for a program that reads
            standard input), `seconds` and `megabytes` of a test.
        text: what was written.
    """
    code = code_of(text)
    if not code.strip():
        return GraderVerdict(0.0, note="no fenced code")
    tests = payload["tests"]
    for number, test in enumerate(tests, 1):
        reason = _failure(code, test, payload)
        if reason:
            note = f"test {number} of {len(tests)}: {reason}"
            return GraderVerdict(
                0.0, note=note, details={"passed": number - 1, "tests": len(tests)}
            )
    return GraderVerdict(1.0, details={"passed": len(tests), "tests": len(tests)})


def _failure(code: str, test: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """Return why a test fails, "" where it passes."""
    function = str(payload["function"])
    limits = {"seconds": payload["seconds"], "megabytes": payload["megabytes"]}
    if function:
        lines = [line for line in str(test["input"]).split("\n") if line.strip()]
        given = [json.loads(line) for line in lines]
        outcome = run_code(code, function=function, arguments=given, **limits)
    else:
        outcome = run_code(code, str(test["input"]), **limits)
    if outcome.status != "ok":
        return outcome.reason or outcome.status
    return "" if _same(outcome, str(test["output"]), function) else "another result"


def _same(outcome: CodeOutcome, expected: str, function: str) -> bool:
    if function:
        return bool(outcome.value == json.loads(expected))
    found, wanted = (text.strip().split("\n") for text in (outcome.out, expected))
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def _same_line(found: str, wanted: str) -> bool:
    one, other = found.split(), wanted.split()
    if one == other:
        return True
    try:
        return [Decimal(word) for word in one] == [Decimal(word) for word in other]
    except InvalidOperation:
        return False
