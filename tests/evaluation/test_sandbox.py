"""Code tasks: programs that are right, and programs that try to get out of the sandbox."""

from __future__ import annotations

import base64
import json
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from mvspec.cli import app
from mvspec.runtime.evaluation import sandbox
from mvspec.runtime.evaluation.grader_process import GraderVerdict, graders
from mvspec.runtime.evaluation.sandbox import CodeOutcome, grade_code, run_code

GRADER = "mvspec.runtime.evaluation.sandbox:grade_code"


@pytest.fixture(scope="module")
def walls() -> None:
    """Skip where there is no sandbox, and say why."""
    if reason := sandbox.refusal():
        pytest.skip(reason)


def payload(*tests: tuple[str, str], function: str = "", seconds: float = 5.0) -> dict[str, Any]:
    made = [{"input": given, "output": expected} for given, expected in tests]
    return {"tests": made, "function": function, "seconds": seconds, "megabytes": 512}


def fenced(text: str) -> str:
    return f"Here it is:\n```python\n{textwrap.dedent(text)}\n```\nDone."


# Programs that are right or wrong


@pytest.mark.usefixtures("walls")
def test_programs_and_functions() -> None:
    add = payload(("1 2\n", "3\n"), ("5 5", "10"))
    good = grade_code(add, fenced("a, b = map(int, input().split())\nprint(a + b)"))
    assert (good.score, good.details) == (1.0, {"passed": 2, "tests": 2})
    bad = grade_code(add, fenced("input(); print(3)"))
    assert (bad.score, bad.details["passed"]) == (0.0, 1)
    assert "test 2 of 2: another result" in bad.note
    call = payload(("[1, 2]\n3", "6"), function="total")
    solution = "class Solution:\n    def total(self, xs: List[int], y):\n        return sum(xs) + y"
    assert grade_code(call, fenced(solution)).score == 1.0
    assert grade_code(call, fenced("def total(xs, y): return sum(xs)")).score == 0.0
    assert "ZeroDivisionError" in grade_code(call, fenced("def total(a, b): 1 / 0")).note
    assert grade_code(add, "print(3)").note == "no fenced code"


@pytest.mark.usefixtures("walls")
def test_what_is_printed_is_compared_by_value() -> None:
    numbers = payload(("", "1.50\n2"))
    assert grade_code(numbers, fenced("print(1.5)\nprint(2)")).score == 1.0
    assert grade_code(numbers, fenced("print(1.5, 2)")).score == 0.0


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize(
    "program",
    [
        "print(sum(map(int, open(0).read().split())) * 6)",
        "print(sum(map(int, open('/dev/stdin').read().split())) * 6)",
        "import numpy; print(int(numpy.array([6, 7]).prod()))",
        "open('kept.txt', 'w').write('42'); print(open('/tmp/kept.txt').read())",
        "import tempfile; f = tempfile.TemporaryFile(); f.write(b'42'); f.seek(0)\n"
        "print(f.read().decode())",
        "import threading\nthreading.stack_size(1 << 27)\n"
        "def f(n): return n and f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(42 + f(20_000))); t.start(); t.join()",
        "import asyncio; print(asyncio.run(asyncio.sleep(0, 42)))",
        "import random, os; print(42 + 0 * len(os.urandom(4)) * random.SystemRandom().random())",
        "import sys; print(42); sys.exit(0)",
        "import os; os.write(1, b'42'); os._exit(0)",
        "import atexit; atexit.register(print, 42)",
        "import sys; print('x' * 100_000, file=sys.stderr); print(42)",
        "x = bytearray(300 << 20); print(42)",
    ],
)
def test_what_an_honest_program_may_do(program: str) -> None:
    found = grade_code(payload(("6 1", "42")), fenced(program))
    assert (found.score, found.note) == (1.0, "")


@pytest.mark.usefixtures("walls")
def test_packages_of_an_environment_wherever_it_stands(tmp_path: Path) -> None:
    """A program sees the environment's packages, and not what stands beside it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "e"], check=True)
    packages = next((tmp_path / "e").glob("lib/python*/site-packages"))
    (packages / "planted.py").write_text("value = 42")
    (tmp_path / "e" / "secret").write_text("7")
    code = f"import os, planted; print(planted.value, os.listdir({str(tmp_path / 'e')!r}))"
    call = f"from {GRADER.partition(':')[0]} import *; print(run_code({code!r}))"
    path = os.pathsep.join(map(str, sys.path))
    done = subprocess.run(
        [tmp_path / "e" / "bin" / "python", "-c", call], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert "out=\"42 ['lib']\\n\"" in done.stdout, done.stdout + done.stderr


# Programs that try more


class Host(NamedTuple):
    """What there is on the host to get at."""

    secret: str
    file: Path
    pid: int
    port: int
    path: str
    name: str
    child: int


@pytest.fixture(scope="module")
def host(walls: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Give a user's file, environment, process and servers; the secret is in all of them."""
    folder = tmp_path_factory.mktemp("home")
    secret = os.urandom(16).hex()
    file = folder / "data.jsonl"
    file.write_text(json.dumps({"output": secret}))
    os.chmod(file, 0o640)
    os.utime(file, (1e9, 1e9))
    descriptor = os.open(file, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    os.environ["MVSPEC_TEST_KEY"] = secret
    wait = [sys.executable, "-c", "import time; time.sleep(600)", secret]
    name = f"\0mvspec-{os.getpid()}"
    with (
        subprocess.Popen(wait) as child,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as path,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        path.bind(str(folder / "socket"))
        abstract.bind(name)
        for each in (path, abstract):
            each.listen()
        yield Host(
            secret, file, os.getpid(), server.getsockname()[1], str(folder / "socket"), name,
            child.pid,
        )  # fmt: skip
        child.kill()
    del os.environ["MVSPEC_TEST_KEY"]
    os.close(descriptor)


class Attack(NamedTuple):
    """A program that tries something.

    Args:
        code: it raises or ends where it fails; `won` is true where it has won. `{secret}` and the
            like are the host's. Whoever looks for a secret sets `found`, which is printed.
        note: what its grade says.
        plain: whether it wins where there is no sandbox, which is tried.
        seconds: that it may take.
    """

    code: str
    note: str = "another result"
    plain: bool = False
    seconds: float = 5.0


CALLS = {
    "x86_64": {"ptrace": 101, "unshare": 272, "add_key": 248, "keyctl": 250, "bpf": 321,
               "io_uring_setup": 425, "userfaultfd": 323, "perf_event_open": 298, "mount": 165,
               "memfd_create": 319, "process_vm_readv": 310, "clone3": 435, "setns": 308,
               "shmget": 29, "kexec_load": 246},
    "aarch64": {"ptrace": 117, "unshare": 97, "add_key": 217, "keyctl": 219, "bpf": 280,
                "io_uring_setup": 425, "userfaultfd": 282, "perf_event_open": 241, "mount": 40,
                "memfd_create": 279, "process_vm_readv": 270, "clone3": 435, "setns": 268,
                "shmget": 194, "kexec_load": 104},
}.get(platform.machine(), {})  # fmt: skip

SETUP = """
import ctypes, os, socket, sys, time
found, won = "", False
libc = ctypes.CDLL(None, use_errno=True)
"""

ATTACKS = {
    # Reading what is not its own
    "the command lines of the host": Attack(
        "found = open('/proc/{child}/cmdline').read().split('\\0')[-2]", "FileNotFound", True
    ),
    "every process's environment and command line": Attack(
        "found = ''.join(open(f'/proc/{{pid}}/{{name}}', errors='replace').read()\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc'))\n"
        "    for name in ('environ', 'cmdline') if os.access(f'/proc/{{pid}}/{{name}}', 4))",
    ),
    "the parent's memory": Attack(
        "memory = open(f'/proc/{{os.getppid()}}/mem', 'rb', 0)\n"
        "for line in open(f'/proc/{{os.getppid()}}/maps'):\n"
        "    start, end = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "    memory.seek(start); found += memory.read(end - start).decode('latin-1')\n",
        "PermissionError|No such file|Input/output|Argument|another result",
    ),
    "its own memory and frames": Attack(
        "import gc\nframe = sys._getframe()\n"
        "while frame: found += str(frame.f_locals.keys()) + str(frame.f_locals.get('job')); "
        "frame = frame.f_back\n"
        "found += str(len([x for x in gc.get_objects() if type(x) is dict and 'output' in x]))",
    ),
    "the environment": Attack("found = os.environ['MVSPEC_TEST_KEY']", "KeyError", True),
    "the disk": Attack("found = open('{file}').read()[12:44]", "FileNotFoundError", True),
    "the folders of the disk": Attack(
        "assert not [n for n in os.listdir('/') if n in ('home', 'var', 'opt', 'mnt', 'boot')]\n"
        "for top in ('/tmp', '/home', os.path.dirname('{file}')):\n"
        "    for folder, _, names in os.walk(top):\n"
        "        for name in names: found += name if 'jsonl' in name else ''",
    ),
    "descriptors that are open": Attack(
        "for number in range(3, 256):\n"
        "    try: found += os.pread(number, 1000, 0).decode('latin-1')[12:44]\n"
        "    except OSError: pass",
        plain=True,
    ),
    # Files that whoever grades might read
    "links named as results are": Attack(
        "for name in ('errors', 'out', 'value.json', 'job.json', 'in'):\n"
        "    os.symlink('/proc/self/environ', name)\n"
        "    os.symlink('{file}', name + '.1')\n"
        "sys.exit(open('errors').read())",
        "LANG=C.UTF-8|Permission denied: 'errors'",
    ),
    "pipes and endless devices named as results are": Attack(
        "os.mkfifo('out'); os.mkfifo('value.json'); os.symlink('/dev/zero', 'errors')"
    ),
    # Outliving its time
    "a daemon": Attack(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n"
        "    os._exit(0)\nwon = True",
        "PermissionError",
    ),
    "no signal at a parent's death": Attack(
        "import signal\nlibc.prctl(1, 0, 0, 0, 0)\n"
        "for n in range(1, 32):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
        "os.close(1); os.close(2); os.setsid() if os.getpid() != os.getsid(0) else 0\n"
        "time.sleep(60)",
        "more than 0.5 s", seconds=0.5,
    ),
    "another program": Attack(
        "os.execv(sys.executable, ['sleep', '-c', 'import time; time.sleep(60)'])",
        "more than 0.5 s", seconds=0.5,
    ),
    "a shell": Attack("found = __import__('subprocess').getoutput('echo hm')", "PermissionError"),
    "a bomb of processes": Attack("while True: os.fork()", "PermissionError"),
    "a bomb of threads": Attack(
        "import threading\nthreading.stack_size(1 << 16)\nmade = []\n"
        "for _ in range(1000):\n"
        "    made.append(threading.Thread(target=time.sleep, args=(60,), daemon=True))\n"
        "    made[-1].start()\nwon = True",
        "can't start new thread",
    ),
    # Eating the machine
    "a bomb of memory": Attack("kept = [bytearray(1 << 26) for _ in range(100)]; won = True",
                               "MemoryError"),
    "shared memory": Attack(
        "import mmap\nkept = [mmap.mmap(-1, 1 << 27) for _ in range(8)]; won = True",
        "OSError|Memory",
    ),
    "960 MB of files": Attack(
        "for n in range(64): open(str(n), 'wb').write(bytes(15 << 20))\nwon = True",
        "No space left",
    ),
    "a large file": Attack("open('a', 'wb').write(bytes(20 << 20)); won = True", "File too large"),
    "memory of devices": Attack("open('/dev/shm/a', 'wb'); won = True", "Read-only"),
    "many small files": Attack(
        "for n in range(20_000): open(str(n), 'w').close()\nfound = len(os.listdir())"
    ),
    "endless output": Attack("while True: print('x' * 100_000)", "wrote more than 16 MB"),
    "endless errors": Attack(
        "while True: print('x' * 100_000, file=sys.stderr)", "more than 0.5 s", seconds=0.5
    ),
    "endless output of every descriptor": Attack(
        "while True:\n    for n in range(1, 64):\n        try: os.write(n, b'x\\n' * 30_000)\n"
        "        except OSError: pass",
        "wrote more than 16 MB",
    ),
    # The network, and sockets of the host
    "the network": Attack(
        "won = socket.create_connection(('127.0.0.1', {port}), 1)", "PermissionError", True
    ),
    "a socket on the disk": Attack(
        "s = socket.socket(socket.AF_UNIX); s.connect('{path}'); won = True",
        "PermissionError", True,
    ),
    "a socket without a file": Attack(
        "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + '{name}'); won = True",
        "PermissionError", True,
    ),
    "rare sockets": Attack(
        "for family in (1, 2, 10, 16, 17, 38, 40):\n"  # unix to netlink, packet, alg, vsock
        "    for kind in (1, 2, 3):\n"
        "        won = won or libc.socket(family, kind, 0) >= 0",
        plain=True,
    ),
    # The user's files
    "mode and dates of a file": Attack(
        "os.chmod('{file}', 0o640); os.utime('{file}', (1e9, 1e9)); won = True",
        "FileNotFoundError", True,
    ),
    "a file's removal": Attack("os.remove('{file}.gone'); won = True", "FileNotFoundError"),
    "Python's own files": Attack(
        "for path in (os.__file__, sys.path[-1] + '/evil.pth', sys.executable):\n"
        "    try: os.utime(path); won = True\n"
        "    except OSError as error: reason = error\n"
        "    try: open(path, 'ab'); won = True\n"
        "    except OSError as error: reason = error\n"
        "if not won: raise reason",
        "Read-only|Permission",
    ),
    "a new root": Attack("os.chroot('/tmp'); won = True", "PermissionError"),
    "files at the root": Attack("os.mkdir('/evil'); won = True", "Read-only|Permission"),
    "the kernel's settings": Attack(
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/self/mem',\n"
        "             '/proc/self/oom_score_adj'):\n"
        "    try: open(path, 'r+b'); won = True\n"
        "    except OSError: pass"
    ),
    # Signals, tracing, namespaces, limits
    "a signal to who grades": Attack("os.kill({pid}, 0); won = True", "ProcessLookupError", True),
    "signals to all": Attack(
        "import signal\nfor pid in (1, -1, os.getppid()):\n"
        "    for number in (9, 15, 19):\n"
        "        try: os.kill(pid, number)\n        except OSError: pass\n"
        "time.sleep(0.2)",
    ),
    "root's rights": Attack("os.setuid(0); won = True", "PermissionError|Invalid"),
    "higher limits": Attack(
        "import resource\n"
        "for n in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "    resource.setrlimit(n, (1 << 40, 1 << 40))\nwon = True",
        "exceed maximum|not allowed",
    ),
    "keys typed into the terminal": Attack(
        "import fcntl, termios\nfor n in range(3):\n"
        "    try: fcntl.ioctl(n, termios.TIOCSTI, b'x'); won = True\n"
        "    except OSError: pass"
    ),
    "forbidden system calls": Attack(
        f"calls = {CALLS}\n"
        "for name, number in calls.items():\n"
        "    ctypes.set_errno(0)\n"
        "    libc.syscall(number, -1, 0, 0, 0, 0)\n"
        "    if ctypes.get_errno() != (38 if name == 'clone3' else 1):\n"
        "        won, found = True, found + ' ' + name",
        plain=True,
    ),
    # Ending oddly
    "an exit before its work": Attack("sys.exit(0)"),
    "an exit at once": Attack("os._exit(0)"),
    "an exit that looks like a limit": Attack("os._exit(137)", "more time of the processor"),
    "closed pipes": Attack("os.closerange(0, 256); os._exit(0)"),
    "closed pipes and sleep": Attack(
        "os.closerange(0, 256); time.sleep(60)", "more than 0.5 s", seconds=0.5
    ),
    "a deep recursion": Attack("def f(n): return f(n + 1)\nf(0)", "RecursionError|status 139"),
    "a deep recursion in native code": Attack(
        "class A:\n    def __getattr__(self, name): return getattr(self, name)\n"
        "sys.setrecursionlimit(10**9); A().x",
        "RecursionError|status 139",
    ),
    "a crash": Attack("ctypes.string_at(0)", "status 139"),
    "an abort": Attack("os.abort()", "status 134"),
    "no end in native code": Attack("10 ** 10 ** 9", "more than 0.5 s", seconds=0.5),
    "no end": Attack("while True: pass", "more than 0.5 s", seconds=0.5),
    "stopping itself": Attack("os.kill(os.getpid(), 19)", "more than 0.5 s", seconds=0.5),
    "text that is none": Attack("os.write(1, b'\\xff\\0' * 1000)"),
}  # fmt: skip


def strangers() -> set[str]:
    """Return the processes that this one has left behind: in another namespace, or zombies."""
    mine = os.readlink("/proc/self/ns/pid")
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                if int(parent) in (1, os.getpid()):
                    found.add(pid)
            elif os.readlink(f"/proc/{pid}/ns/pid") != mine:
                found.add(pid)
        except OSError:
            continue
    return found


def assert_gone(before: set[str]) -> None:
    """Processes of others' sandboxes come and go; one that stays is ours."""
    new = strangers() - before
    for _ in range(100):
        new &= strangers()
        if not new:
            return
        time.sleep(0.05)
    raise AssertionError([Path(f"/proc/{pid}/stat").read_text() for pid in new])


def state(host: Host) -> object:
    """Return all of a user's folder."""
    about = host.file.stat()
    return host.file.read_text(), about.st_mode, about.st_mtime, os.listdir(host.file.parent)


def written(attack: Attack, host: Host) -> str:
    """Return an attack's program: it prints 42 where it won, and what it found."""
    facts = {**host._asdict(), "name": host.name[1:]}
    body = attack.code if "calls = " in attack.code else attack.code.format(**facts)
    return f"{SETUP}\n{body}\nprint(42 if won else 'no', found)"


def test_attacks_are_real(host: Host) -> None:
    """Where there is no sandbox, they win."""
    lost = []
    for name, attack in ATTACKS.items():
        if attack.plain:
            done = subprocess.run(
                [sys.executable, "-c", written(attack, host)], capture_output=True, text=True,
                close_fds=False, check=False, timeout=20,
            )  # fmt: skip
            if not done.stdout.startswith("42") and host.secret not in done.stdout:
                lost.append((name, done.stdout[:100], done.stderr[-200:]))
    assert not lost


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_nothing_and_leaves_nothing(
    name: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ATTACKS[name]
    processes, before = strangers(), state(host)
    asked = payload(("6 7", f"42 {host.secret}"), seconds=attack.seconds)
    started = time.monotonic()
    outcomes: list[CodeOutcome] = []

    def kept(*arguments: Any, **options: Any) -> CodeOutcome:
        outcomes.append(run_code(*arguments, **options))
        return outcomes[-1]

    monkeypatch.setattr(sandbox, "run_code", kept)
    found = grade_code(asked, fenced(written(attack, host)))
    assert time.monotonic() - started < attack.seconds + 5
    assert found.score == 0.0
    assert any(part in found.note for part in attack.note.split("|")), found.note
    assert host.secret not in repr(found)
    out = outcomes[0].out
    assert not out.startswith("42")
    assert host.secret not in out
    assert state(host) == before
    assert_gone(processes)
    honest = "print(eval(input().replace(' ', '*')))"
    assert grade_code(payload(("6 7", "42")), fenced(honest)).score == 1.0


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("class Same(int):\n  __eq__ = lambda *a: True\ndef f(x): return Same(7)",
         "another result"),
        ("def f(x): return float('nan')", "another result"),
        ("def f(x): return object()", "is not JSON serializable"),
        ("def f(x):\n  import json, sys\n  json.dumps = lambda v: 'true'", "another result"),
        ("import sys\ndef f(x): sys.exit(0)", "nothing that JSON can hold"),
        ("import os\nos._exit(0)\ndef f(x): pass", "nothing that JSON can hold"),
        ("import os\nfor n in range(3, 99):\n  try: os.write(n, b'[' * 99_999 + b'\\n')\n"
         "  except OSError: pass\ndef f(x): return 1", "nothing that JSON can hold"),
        ("def f(x): return 'x' * (20 << 20)", "wrote more than 16 MB"),
        ("def f(x):\n  x = []\n  for _ in range(100_000): x = [x]\n  return x", "RecursionError"),
        ("class Solution:\n  def __getattr__(self, name): raise SystemExit", "JSON can hold"),
        ("def g(x): return 42", "KeyError"),
    ],
)  # fmt: skip
def test_a_value_cannot_be_forged(code: str, note: str) -> None:
    asked = payload(("6", "42"), function="f")
    found = grade_code(asked, fenced(code))
    assert found.score == 0.0
    assert note in found.note
    assert grade_code(asked, fenced("def f(x): return 7 * x")).score == 1.0


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize("how", ["time", "killed"])
def test_nothing_outlives_who_grades(how: str) -> None:
    """A grader that is stopped takes its program along, whatever that did against it."""
    before = strangers()
    code = fenced(SETUP + "libc.prctl(1, 0, 0, 0, 0)\nos.closerange(0, 3)\ntime.sleep(60)")
    asked = payload(("", "42"), seconds=50.0)
    if how == "time":
        with graders(1, 1.0) as pool:
            found = pool.grade(GRADER, asked, code)
            assert found.note == "the grader took more than 1 s"
    else:
        call = f"from {GRADER.partition(':')[0]} import *; grade_code({asked!r}, {code!r})"
        with subprocess.Popen([sys.executable, "-c", call]) as process:
            for _ in range(200):
                if strangers() - before:
                    break
                time.sleep(0.05)
            time.sleep(0.3)
            assert strangers() - before
            process.send_signal(signal.SIGKILL)
        for _ in range(20):  # this process takes up orphans by now
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.02)
    assert_gone(before)


@pytest.mark.usefixtures("walls")
def test_programs_run_beside_each_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with graders(2, 30.0) as pool, ThreadPoolExecutor(4) as threads:

        def grade(number: int) -> GraderVerdict:
            code = fenced(f"print({number} if int(input()) == {number} else 0)")
            return pool.grade(GRADER, payload((str(number), str(number))), code)

        assert [each.score for each in threads.map(grade, range(12))] == [1.0] * 12


# Where there is no sandbox


@pytest.mark.parametrize("way", ["missing", "refused"])
def test_without_bubblewrap_code_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "refused":  # as it says where namespaces are not for users
        program = tmp_path / "bwrap"
        program.write_text("#!/bin/sh\necho bwrap: No permissions to make namespaces >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    row = {"id": 1, "question": "P", "tests": [{"input": "1", "output": "2"}], "output": "no"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    sandbox.refusal.cache_clear()
    sandbox._walls.cache_clear()
    try:
        arguments = ["eval", "livecodebench", str(data), "--field", "output", "--allow-code"]
        result = CliRunner().invoke(app, arguments)
    finally:
        sandbox.refusal.cache_clear()
        sandbox._walls.cache_clear()
    assert result.exit_code == 2
    reason = {"missing": "bwrap is not installed", "refused": "No permissions to make namespaces"}
    assert f"{reason[way]}): have bubblewrap 0.7" in " ".join(result.stderr.split())


# Packed tests


def test_packed_tests_cannot_run_code() -> None:
    tests = [{"input": "1", "output": "2"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()
    assert sandbox.unpacked_tests(packed) == tests

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match=r"asks for builtins\.print"):
        sandbox.unpacked_tests(evil)
    with pytest.raises(ValueError, match="neither JSON"):
        sandbox.unpacked_tests("hello")
