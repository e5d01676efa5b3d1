"""The engine over a `sglang.Engine` of the same process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_an_engine_in_the_same_process(folder: Path) -> None:
    script = Path(__file__).with_name("local.py")
    found = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    lines = [line for line in found.stdout.splitlines() if line.startswith('{"same"')]
    assert lines, found.stderr[-3000:]
    told = json.loads(lines[0])
    assert told["same"] == [True] * 4
    assert told["threads"] > 2
    assert told["plain"] == 4
    assert told["after"] is True
    assert "answers in another event loop" in told["elsewhere"]
