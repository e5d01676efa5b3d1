"""Stock servers of SGLang for the tests of this folder, started by `mvspec serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Served", "engine", "folder", "reference", "serve", "server"]

FLAGS = (
    "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
    "--dtype", "float32", "--disable-cuda-graph", "--mem-fraction-static", "0.1",
    "--max-total-tokens", "8192", "--max-running-requests", "32", "--host", "127.0.0.1",
    "--log-level", "info", "--sleep-on-idle",
)  # fmt: skip
"""What lets SGLang serve a small model on a CPU, exactly; one that has nothing to do takes none."""


ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Served:
    """A server that is up."""

    url: str
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    def lines(self, text: str) -> list[str]:
        """Return the lines of its log that hold a text."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if text in line]

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Return the first line of its log with a text, once it is there."""
        until = time.monotonic() + seconds
        while not (found := self.lines(text)):
            if time.monotonic() > until:
                raise AssertionError(f"no {text!r} in {self.log}: {self.tail()}")
            time.sleep(0.1)
        return found[0]

    def ended(self, rid: str) -> dict[str, Any]:
        """Return what its log says of a request at its end."""
        line = self.wait_for(f'mvspec {{"rid": "{rid}"')
        return dict(json.loads(line[line.index("{") :]))

    def live_threads(self) -> float:
        """Return how many threads have not ended."""
        import httpx

        text = httpx.get(f"{self.url}/metrics/", timeout=10.0).text
        found = [line for line in text.splitlines() if line.startswith("mvspec_live_threads{")]
        return float(found[-1].rpartition(" ")[2])

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def serve(
    folder: Path,
    log: Path,
    *options: str,
    flags: Sequence[str] = (),
    stock: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Run `mvspec serve` until the block ends, and see that it stops on Ctrl-C.

    Args:
        options: of `mvspec serve`, before `--`.
        flags: of SGLang, besides `FLAGS`.
        stock: whether SGLang's own command starts it, without the plugin.
        environment: what it has beside this process's.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mvspec", "serve", str(folder), *options, "--"]
    if stock:
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(folder)]
        environment = {"MVSPEC": "off", **(environment or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *FLAGS, "--port", str(port), "--enable-metrics", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
    scheme = "https" if "--ssl-certfile" in flags else "http"
    served = Served(f"{scheme}://127.0.0.1:{port}", folder, log, process)
    try:
        until = time.monotonic() + 240
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the server did not come up: {served.tail()}")
            try:
                if httpx.get(f"{served.url}/health", timeout=5.0).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield served
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that likes to fork."""
    from served_model import save_model

    made = tmp_path_factory.mktemp("model")
    save_model(made)
    return made


@pytest.fixture(scope="session")
def server(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    """A server in which plain requests fork too."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(folder, log, "--native", "--max-position", "160") as served:
        yield served
        assert served.process.poll() is None, f"the server died: {served.tail()}"
        if request.session.testsfailed:
            print(f"\nlog of the server, {log}:\n{served.tail()}")


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same weights in this process."""
    from mvspec.runtime import TorchEngine

    return TorchEngine.load(folder, dtype="float32")


@pytest.fixture(scope="session")
def engine(server: Served) -> Any:
    """A client of the server."""
    from mvspec.runtime import SGLangEngine

    return SGLangEngine(server.url)
