"""The command as a process: workers, pipes, interrupts, terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from traces import CANONICAL

import mvspec
from mvspec.cli import console
from mvspec.data.parallel_map import ordered_map
from mvspec.data.sources import read

CUT = CANONICAL[: CANONICAL.index("</Goal>") + 3]


def process(*args: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mvspec", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    texts = CANONICAL, CUT, CANONICAL.replace("</Path>\n", "", 1)
    path.write_text("".join(json.dumps({"output": text}) + "\n" for text in texts), "utf-8")
    return path


def test_workers_change_nothing(rows: Path) -> None:
    with rows.open("ab") as file:
        file.write(b"{broken\n" + rows.read_bytes() * 30)
    one = process("check", rows, "--field", "output", "--json")
    two = process("check", rows, "--field", "output", "--json", "--workers", 2)
    assert one.returncode == two.returncode == 1
    assert one.stdout == two.stdout
    assert one.stdout.count(b"\n") == 94
    assert one.stderr == two.stderr == b""


def test_batches_keep_the_order() -> None:
    items = list(range(-40, 40))
    assert list(ordered_map(abs, items, 2, batch=3)) == [abs(item) for item in items]


def test_workers_pass_errors_on() -> None:
    with pytest.raises(TypeError):
        list(ordered_map(len, [3], 2))  # type: ignore[arg-type]


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"output": CUT}) + "\n") * 5000)
    command = [sys.executable, "-m", "mvspec", "check", str(path), "--field", "output"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    assert child.stderr
    child.stdout.readline()
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(timeout=60), errors) == (141, b"")


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_it_quietly(workers: int) -> None:
    command = [sys.executable, "-m", "mvspec", "check", "-", "--field", "output", "--json",
               "--workers", str(workers)]  # fmt: skip
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that a shell runs in the background inherit that interrupts are ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdin
    assert child.stdout
    row = json.dumps({"output": CANONICAL}).encode() + b"\n"
    # The first verdict shows that it is at work; then it waits for a row that never comes.
    child.stdin.write(row * (1 if workers == 1 else 5 * 500_000 // len(CANONICAL) + 10))
    child.stdin.flush()
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (130, b"")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs a mask of signals")
def test_a_worker_is_born_deaf_to_interrupts() -> None:
    assert list(ordered_map(blocked, [0], 2)) == [True]
    assert not blocked(0)


def blocked(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mvspec", "schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"No space left" in done.stderr


def test_nothing_but_text_where_nobody_watches(rows: Path) -> None:
    done = process("check", rows, "--field", "output")
    assert done.returncode == 1
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout


def test_output_that_the_terminal_cannot_encode(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("größer ✓", "utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "mvspec", "show", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfer \u2713" in done.stdout


def test_the_bar_is_shown_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"output": "a"}\n' * 10)
    monkeypatch.setattr(console, "LONG", 100)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(
            "rich.console.Console", lambda stderr: Console(stderr=stderr, force_terminal=True)
        )
        with console.reading_bar(read(path, field="output")) as records:
            assert len(list(records)) == 10
        assert ("reading" in capsys.readouterr().err) is terminal


@pytest.mark.parametrize("arguments", [["--help"], ["check", "PATH"], ["compile", "--help"]])
def test_commands_that_need_no_model_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "good.txt"
    path.write_text(CANONICAL, "utf-8")
    given = [str(path) if each == "PATH" else each for each in arguments]
    program = (
        "import sys\nfrom mvspec.cli import app\n"
        f"try: app({given!r})\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'asyncio'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_the_version_is_the_packages() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"mvspec {mvspec.__version__}\n".encode())


@pytest.mark.parametrize(
    "command",
    [
        ["nothing"],
        ["--nothing"],
        ["check"],
        ["check", "nowhere.txt"],
        ["eval", "nothing"],
        ["train", "nothing"],
        ["train", "fit", "--nothing"],
        ["run", "nowhere.py"],
        ["show", "a.txt", "--mask", "a.png"],
    ],
)
def test_a_wrong_command_ends_with_two(command: list[str]) -> None:
    assert process(*command).returncode == 2
