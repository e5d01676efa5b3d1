"""Programs that a model wrote, run against tests where they can reach nothing.

The walls are bubblewrap's and a filter of system calls (libseccomp): a root with Python and
nothing of the user's, no network, one process, limits of `confined.py`. A program gets a test's
input; what the test expects stays out here, and what the program sends comes through pipes, of
which so many bytes are read. The end of its namespace's first process ends all of it.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import io
import json
import os
import pickle
import re
import selectors
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

from mvspec.runtime.evaluation.grader_process import GraderVerdict

_FORBIDDEN = (
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime",
    "delete_module", "fanotify_init", "finit_module", "fork", "fsconfig", "fsmount", "fsopen",
    "fspick", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm",
    "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "memfd_create",
    "memfd_secret", "modify_ldt", "mount", "mount_setattr", "move_mount", "mq_open", "msgget",
    "name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "personality",
    "pidfd_getfd", "pidfd_open", "pivot_root", "process_madvise", "process_vm_readv",
    "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "semget",
    "setns", "settimeofday", "shmget", "socket", "swapoff", "swapon", "syslog", "umount2",
    "unshare", "userfaultfd", "vfork", "vhangup",
)  # fmt: skip
"""System calls that a program may not make: of other processes, namespaces, sockets, memory that
no limit counts, keys, and of the kernel's rarely used doors."""

_CLONE_THREAD = 0x10000

_SCRATCH = 64 << 20
"""Bytes of the only folder that a program can write to; it is in memory."""

_SENT = 16 << 20
"""Bytes of output, and of a value, that are read of a program."""

_TOLD = 1 << 16
"""Bytes of its errors that are kept."""

_BEGUN = b"begun"
_VALUE = b"value "
"""What `confined.py` writes when all is ready, and before what a function returned."""

_START = 60.0
"""Seconds that a sandbox may take to stand; only then does a program's time begin."""


class SandboxFailure(Exception):
    """The sandbox did not come to run a program; the message says why."""


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


def _libraries() -> list[str]:
    return [path for path in site.getsitepackages() if os.path.isdir(path)]


@cache
def _walls() -> tuple[str, ...]:
    """Return bubblewrap's command, up to what depends on the program."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxFailure("bwrap is not installed")
    command = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "sandbox", "--new-session"]
    command += ["--die-with-parent", "--cap-drop", "ALL"]
    if os.getuid():
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:  # becomes a user of the host who owns nothing, which a namespace's users would not be
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    # What bubblewrap leaves behind is ours to wait for: in a container nobody else might.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = Path(python).parents[1]
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(_SCRATCH)]
    command += ["--tmpfs", "/tmp", "--chdir", "/tmp"]  # before what may stand in it
    seen = [python, f"{prefix}/lib", f"{prefix}/lib64", "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    seen += ["/etc/ld.so.cache", *_libraries()]
    parents = {parent for path in seen for parent in Path(path).parents}
    for parent in sorted(parents)[1:]:  # else closed where they are closed to others out here
        command += ["--dir", str(parent)]
    for path in dict.fromkeys(seen):
        linked = os.path.islink(path)
        command += ["--symlink", os.readlink(path)] if linked else ["--ro-bind-try", path]
        command.append(path)
    for path in ("/proc", "/dev", "/"):
        command += ["--remount-ro", path]
    script = Path(__file__).with_name("confined.py").read_text("utf-8")
    return (*command, "--", python, "-I", "-S", "-c", script)


@cache
def _filter() -> bytes:
    """Return the filter of system calls as the kernel reads it."""
    import pyseccomp

    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in _FORBIDDEN:
        try:
            made.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        except OSError:  # younger than this libseccomp
            continue
    thread = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0)
    made.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", thread)
    made.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags are out of a filter's sight
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


@cache
def refusal() -> str:
    """Return why programs cannot be run on this machine, in one line; "" where they can."""
    try:
        run_code("")
    except (SandboxFailure, ImportError, OSError, RuntimeError) as error:
        return (
            f"a model's code runs in bubblewrap alone, which fails here ({error}): have bubblewrap "
            "0.7 or later and libseccomp (apt install bubblewrap libseccomp2; pip install "
            "'mvspec[eval]') on a Linux that lets this user make namespaces "
            "(user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        )
    return ""


def _sealed(data: bytes) -> int:
    """Return a descriptor of data that nobody can write to."""
    import fcntl

    made = os.memfd_create("mvspec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(made, "wb", closefd=False) as file:
        file.write(data)
        file.seek(0)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    return made


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

    Raises:
        SandboxFailure: there is no sandbox; the program did not run.

    >>> run_code("print(int(input()) + 1)", "41").out  # doctest: +SKIP
    '42\\n'
    >>> run_code("def f(a): return a * 2", function="f", arguments=[4]).value  # doctest: +SKIP
    8
    """
    job = {
        "code": code, "function": function, "arguments": arguments or [],
        "seconds": int(seconds) + 1, "bytes": megabytes << 20, "libraries": _libraries(),
        "user": 60_000 + os.getpid() % 5_000,  # programs beside it do not count as this user's
    }  # fmt: skip
    walls = _walls()
    handed: list[int] = []
    try:
        given = (stdin.encode("utf-8", "surrogatepass"), _filter(), json.dumps(job).encode())
        handed += map(_sealed, given)
        source, seccomp, task = handed
        results, results_in = os.pipe()
        status_in = os.dup(results_in)  # bubblewrap keeps one end, the program gets the other
        handed += [results_in, status_in]
        process = subprocess.Popen(
            [walls[0], "--seccomp", str(seccomp), "--json-status-fd", str(status_in), *walls[1:],
             str(task), str(results_in)],
            stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={"LANG": "C.UTF-8", "HOME": "/tmp", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(seccomp, task, results_in, status_in), start_new_session=True,
        )  # fmt: skip
    finally:
        for descriptor in handed:
            os.close(descriptor)
    with process, open(results, "rb", buffering=0) as pipe:
        sent = {name: bytearray() for name in ("out", "errors", "results")}
        pipes = dict(zip(sent, (process.stdout, process.stderr, pipe), strict=True))
        late: tuple[str, str] | None = ("failed", "interrupted")
        try:
            late = _read(pipes, sent, seconds)
        finally:
            status = _end(process, sent["results"], late is not None)
    lines = bytes(sent["results"]).split(b"\n")
    errors = sent["errors"].decode("utf-8", errors="replace").strip().splitlines()
    if _BEGUN not in lines[1:2]:
        raise SandboxFailure(errors[-1] if errors else f"bubblewrap ended with status {status}")
    out, value = sent["out"].decode("utf-8", errors="replace"), None
    if late is not None:
        return CodeOutcome(late[0], out, reason=late[1])
    if status in (128 + signal.SIGKILL, 128 + signal.SIGXCPU):
        return CodeOutcome("time", out, reason="more time of the processor than it may have")
    if status:
        reason = errors[-1][:500] if errors else f"exit status {status}"
        return CodeOutcome("failed", out, reason=reason)
    if function:
        try:
            value = json.loads(lines[2].partition(_VALUE)[2])
        except (ValueError, RecursionError):
            reason = "the function returned nothing that JSON can hold"
            return CodeOutcome("failed", out, reason=reason)
    return CodeOutcome("ok", out, value)


def _read(
    pipes: Mapping[str, Any], sent: Mapping[str, bytearray], seconds: float
) -> tuple[str, str] | None:
    """Read what a program sends until it has ended; return status and reason where it may not."""
    end = time.monotonic() + _START
    begun = False
    with selectors.DefaultSelector() as waiting:
        for name, pipe in pipes.items():
            waiting.register(pipe, selectors.EVENT_READ, name)
        while waiting.get_map():
            left = end - time.monotonic()
            if left <= 0:
                return "time", f"more than {seconds:g} s"
            for key, _ in waiting.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    waiting.unregister(key.fileobj)
                had = sent[key.data]
                had += data
                if key.data == "errors":
                    del had[:-_TOLD]
                elif len(had) > _SENT:
                    return "failed", f"it wrote more than {_SENT >> 20} MB"
            if not begun and _BEGUN in sent["results"]:
                begun, end = True, time.monotonic() + seconds
    return None


def _end(process: subprocess.Popen[bytes], results: bytearray, late: bool) -> int:
    """End a sandbox and all that is in it, leave no zombie, and return bubblewrap's status."""
    if late:
        process.kill()
    status = process.wait()
    line, told, _ = results.partition(b"\n")
    if told:
        first = int(json.loads(line)["child-pid"])  # of its namespace; all end with it
        with suppress(ChildProcessError):  # bubblewrap has waited for it
            if not os.waitpid(first, os.WNOHANG)[0]:
                os.kill(first, signal.SIGKILL)
                os.waitpid(first, 0)
    return status


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
        given, wanted = call_of(test)
        outcome = run_code(code, function=function, arguments=given, **limits)
        same = outcome.value == wanted
    else:
        outcome = run_code(code, str(test["input"]), **limits)
        same = _same(outcome.out, str(test["output"]))
    if outcome.status != "ok":
        return outcome.reason or outcome.status
    return "" if same else "another result"


def call_of(test: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Return the arguments, one a line of the input, and the value of a function's test.

    Raises:
        ValueError: one of them is not JSON.
    """
    lines = [line for line in str(test["input"]).split("\n") if line.strip()]
    return [json.loads(line) for line in lines], json.loads(str(test["output"]))


def _same(out: str, expected: str) -> bool:
    found, wanted = (text.strip().split("\n") for text in (out, expected))
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def _same_line(found: str, wanted: str) -> bool:
    one, other = found.split(), wanted.split()
    if one == other:
        return True
    try:
        return [Decimal(word) for word in one] == [Decimal(word) for word in other]
    except InvalidOperation:
        return False
