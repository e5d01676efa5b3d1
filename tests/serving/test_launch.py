"""Starting a server: what is refused before it starts, and a server whose model has no tags."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from bpe import untagged_tokenizer
from served import Served, serve
from served_model import save_model
from tiny import chat
from typer.testing import CliRunner

import mvspec as mv
from mvspec.cli import app
from mvspec.compiler import plan_document
from mvspec.data.records import InputError
from mvspec.errors import MvspecError, Unsupported
from mvspec.forms.multiverse import MULTIVERSE
from mvspec.forms.untagged import UNTAGGED
from mvspec.law.limits import Limits
from mvspec.runtime import Options, SGLangEngine
from mvspec.runtime.serving.launch import ServerLaunch


@pytest.fixture(scope="module")
def untagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has no tags."""
    folder = tmp_path_factory.mktemp("untagged")
    save_model(folder)
    chat(untagged_tokenizer()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        ["--speculative-algorithm", "EAGLE"],
        ["--enable-lora"],
        ["--enable_mixed_chunk"],
        ["--page-size=16"],
        ["--pp-size", "2"],
        ["--disaggregation-mode", "prefill"],
        ["--skip-tokenizer-init"],
        ["--enable-hierarchical-cache"],
        ["--enable-priority-scheduling"],
        [
            "--enable-priority-scheduling",
            "--disable-priority-preemption",
            "--max-queued-requests",
            "4",
        ],
    ],
    ids=" ".join,
)
def test_flags_that_forks_do_not_work_with_are_refused_by_name(
    folder: Path, flags: list[str]
) -> None:
    name = flags[0].partition("=")[0].replace("_", "-")
    with pytest.raises(Unsupported, match=name if "disagg" not in name else "one server"):
        ServerLaunch(str(folder), flags)


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Olmo3Config", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("Gemma2Config", {}),
    ("Gemma3TextConfig", {}),
    ("MistralConfig", {"sliding_window": 64}),
    ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
]


def windowed(folder: Path, made: Path, name: str, more: dict[str, Any]) -> Path:
    """A model of another type, with the tokenizer of the tests' model."""
    import transformers

    held = json.loads((folder / "config.json").read_text())
    config = getattr(transformers, name)(
        vocab_size=held["vocab_size"], hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        **more,
    )  # fmt: skip
    make: Any = transformers.AutoModelForCausalLM.from_config
    make(config).save_pretrained(made)
    for path in folder.iterdir():
        if "token" in path.name or "template" in path.name:
            shutil.copy(path, made)
    return made


@pytest.mark.parametrize(("name", "more"), WINDOWS)
def test_models_that_no_mask_decides_are_refused(
    folder: Path, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    with pytest.raises(Unsupported, match=r"sliding"):
        ServerLaunch(str(windowed(folder, tmp_path / "model", name, more)), [])


def test_a_server_looks_at_its_layers_itself(folder: Path, tmp_path: Path) -> None:
    """SGLang does not list Olmo 3 as hybrid, and serves it."""
    made = windowed(folder, tmp_path / "model", *WINDOWS[0])
    log = tmp_path / "server.log"
    with (
        pytest.raises(AssertionError, match="did not come up"),
        serve(made, log, stock=True, environment={"MVSPEC": "require"}),
    ):
        pass
    assert "mvspec: fork and join do not work with sliding windows" in log.read_text()


def test_what_is_started(folder: Path) -> None:
    launch = ServerLaunch(str(folder), ["--port", "31000", "--page-size", "1"], Limits(max_depth=2))
    assert launch.command[1:5] == ["-m", "sglang.launch_server", "--model-path", str(folder)]
    assert launch.command[5:9] == ["--port", "31000", "--page-size", "1"]
    assert launch.environment["MVSPEC"] == "require"
    assert json.loads(launch.environment["MVSPEC_NATIVE"]) == {"max_depth": 2}
    assert not launch.notes
    assert "MVSPEC_NATIVE" not in ServerLaunch(str(folder), []).environment


def test_the_supervisors_of_the_page(folder: Path, tmp_path: Path) -> None:
    """Its units are systemd's, and both commands start a server."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    blocks = re.findall(r"```text\n(.*?)```", page.partition("## A supervisor")[2], re.DOTALL)
    unit, check, timer, image = blocks
    started = re.findall(r"ExecStart=\S+/mvspec serve \S+ (.*)", unit)[0].split()
    run = json.loads(re.findall(r"\nCMD (\[.*\])", image)[0])[1:]
    for native, dashes, *flags in (started, run):
        assert (native, dashes) == ("--native", "--")
        assert ServerLaunch(str(folder), flags, Limits()).command[5:] == flags
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = re.sub(r"(?<=ExecStart=)\S+", "/bin/true", unit)
    names = "mvspec.service", "mvspec-health.service", "mvspec-health.timer"
    for name, text in zip(names, (unit, check, timer), strict=True):
        (tmp_path / name).write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_model_without_tags_is_told_of(untagged: Path) -> None:
    (note,) = ServerLaunch(str(untagged), []).notes
    assert "lacks <Think>, </Think>" in note
    with pytest.raises(Unsupported, match="only a model that was taught the tags forks"):
        ServerLaunch(str(untagged), [], Limits())
    with pytest.raises(InputError, match="the model's tokenizer /nowhere"):
        ServerLaunch("/nowhere", [])


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_refuses_before_it_starts(folder: Path) -> None:
    found = command("serve", str(folder), "--", "--enable-lora")
    assert found.exit_code == 2
    assert "fork and join do not work with --enable-lora" in found.stderr
    found = command("serve", str(folder), "--max-depth", "2")
    assert found.exit_code == 2
    assert "--native" in found.stderr


def test_run_asks_a_server(server: Served, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import mvspec as mv\n"
        "one, two = mv.gen('a', 5), mv.gen('b', choices=['x', 'y'])\n"
        "block = mv.parallel(mv.branch('One', one), mv.branch('Two', two))\n"
        "document = mv.document(mv.user('Well?'), mv.assistant(block))\n"
    )
    trace = tmp_path / "trace.jsonl"
    found = command(
        "run", str(program), "--engine", server.url, "--json", "--trace", str(trace), "--seed", "1"
    )
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["values"]["b"] in ("x", "y")
    assert json.loads(trace.read_text())["model"] == str(server.folder)
    found = command("run", str(program), "--engine", "http://127.0.0.1:9")
    assert found.exit_code == 2
    assert "no server answers at http://127.0.0.1:9" in found.stderr
    found = command("run", str(program), "--engine", server.url, "--model", "x")
    assert found.exit_code == 2


def test_the_example_runs(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[2] / "examples" / "triage.py"
    monkeypatch.setattr("sys.argv", [str(example), server.url])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    for name in ("subject", "mood", "wish", "verdict"):
        assert printed.count(f"  {name}: ") == 3


def test_the_page_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:30000", server.url), names)
    assert {"taste", "health", "verdict"} <= set(capsys.readouterr().out.split())
    assert [len(result.texts) for result in names["several"]] == [3, 0]


def certificate(folder: Path) -> tuple[str, ...]:
    """The flags of a certificate that nobody has signed."""
    key, made = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    return "--ssl-keyfile", str(key), "--ssl-certfile", str(made)


def test_a_server_without_tags_and_its_end(
    untagged: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more server: its model has no tags, it speaks TLS, and its scheduler hangs and dies."""
    flags = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", flags[-1])
    block = mv.parallel(mv.branch("One", mv.gen("a", 4)), mv.branch("Two", mv.gen("b", 4)))
    document = mv.document(mv.user("Well?"), mv.assistant(block))
    with serve(
        untagged,
        tmp_path / "server.log",
        flags=flags,
        environment={"SGLANG_HEALTH_CHECK_TIMEOUT": "3"},
    ) as served:
        assert served.url.startswith("https://")
        with monkeypatch.context() as elsewhere:
            elsewhere.delenv("SSL_CERT_FILE")
            with pytest.raises(MvspecError, match="in SSL_CERT_FILE"):
                SGLangEngine(served.url)
        assert "this server runs untagged plans" in served.log.read_text()
        engine = SGLangEngine(served.url)
        assert engine.syntax is UNTAGGED
        result = engine.run(document)
        assert set(result.texts) == {"a", "b"}
        assert len(result.trace.threads) == 3
        tagged = plan_document(document, _tokenizer(folder), syntax=MULTIVERSE, template=True)
        with pytest.raises(Unsupported, match="no tags"):
            engine.run(tagged)
        with pytest.raises(Unsupported, match="is not that of"):
            SGLangEngine(served.url, _tokenizer(folder))
        sent = {"custom_params": {"mvspec": '{"form": "multiverse"}'}}
        answer = httpx.post(
            f"{served.url}/generate",
            json={"input_ids": [5], "sampling_params": sent},
            timeout=60.0,
        )
        assert answer.status_code == 400
        assert (
            "SGLang: the plan is in form 'multiverse', and the tokenizer has no tags" in answer.text
        )

        wanted = ["pgrep", "-P", str(served.process.pid), "-f", "scheduler"]
        scheduler = int(subprocess.run(wanted, check=True, capture_output=True).stdout)
        os.kill(scheduler, signal.SIGSTOP)
        assert httpx.get(f"{served.url}/health", timeout=30.0).status_code == 503
        os.kill(scheduler, signal.SIGCONT)
        assert httpx.get(f"{served.url}/health", timeout=30.0).status_code == 200

        long = Options(limits=Limits(max_tokens=3000))
        ask = mv.document(mv.user("Well?"))
        events = engine.stream(ask, long)
        next(events)
        os.kill(scheduler, signal.SIGKILL)
        with pytest.raises(MvspecError, match=r"went away|broke off"):
            list(events)
        assert served.process.wait(60) != 0  # a supervisor starts it again
        with pytest.raises(MvspecError, match="no server answers"):
            SGLangEngine(served.url)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
