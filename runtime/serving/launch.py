"""The launch of a server of SGLang that forks: what `mvspec serve` does."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvspec.compiler.chat_template import asking
from mvspec.compiler.models import check_model, check_weights
from mvspec.compiler.vocabulary import Vocabulary, load_tokenizer, save_tokenizer
from mvspec.data.records import InputError
from mvspec.errors import MvspecError, Unsupported, VerifyError
from mvspec.law.limits import Limits
from mvspec.law.tags import Tag
from mvspec.runtime.serving.adaptive_requests import ADAPTIVE_LIMITS
from mvspec.runtime.serving.hooks import ONLY_ONE, REFUSED_FLAGS


class ServerLaunch:
    """A server that is about to start.

    Args:
        model: folder or hub name.
        flags: SGLang's own, passed on.
        adaptive: limits of requests that fork by themselves; None where only plans fork.
        chat_template_kwargs: the chat template's own arguments. The server then has a tokenizer of
            its own, in a folder of the system's temporary ones, which names them.

    Attributes:
        command: what is executed.
        environment: in which.
        notes: what the user should know before it starts.

    Raises:
        InputError: SGLang is not installed, or the model's tokenizer cannot be read.
        Unsupported: a flag or the tokenizer that fork and join do not work with.
    """

    def __init__(
        self,
        model: str,
        flags: Sequence[str],
        adaptive: Limits | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("sglang") is None:
            raise InputError("serve needs SGLang beside mvspec: pip install 'mvspec[sglang]'")
        given = _given(flags)
        for name in ("--model-path", "--model"):
            if name in given:
                raise InputError(f"{name}: the model is serve's argument, {model!r}")
        for name, reason in REFUSED_FLAGS.items():
            if name in given:
                raise Unsupported(f"fork and join do not work with {name}: {reason}")
        for name in (*ONLY_ONE, "--pipeline-parallel-size"):
            if given.get(name, "1") != "1":
                raise Unsupported(f"fork and join need {name} 1, not {given[name]}")
        if "--enable-priority-scheduling" in given and (
            "--disable-priority-preemption" not in given or "--max-queued-requests" in given
        ):
            raise Unsupported(
                "fork and join need --disable-priority-preemption with "
                "--enable-priority-scheduling, and no --max-queued-requests: the server would take "
                "single threads away for other requests"
            )
        if given.get("--disaggregation-mode", "null") != "null":
            raise Unsupported("fork and join need prefill and decode in one server")
        if adaptive is not None and given.get("--tokenizer-worker-num", "1") != "1":
            raise Unsupported("--native needs --tokenizer-worker-num 1: others load no plugins")
        if os.path.isdir(model):
            try:
                check_weights(Path(model))
            except VerifyError as error:
                raise InputError(f"the model {error}") from None
            _check_config(model)
        self.notes: list[str] = []
        tokenizer = self._checked(given.get("--tokenizer-path", model), adaptive)
        asked = asking(tokenizer, chat_template_kwargs)
        if asked is not tokenizer:
            for name in ("--tokenizer-path", "--chat-template"):
                if name in given:
                    raise InputError(f"--template-arg is of the model's own template: not {name}")
            folder = tempfile.mkdtemp(prefix="mvspec-tokenizer-")
            save_tokenizer(asked, Path(folder))
            flags = [*flags, "--tokenizer-path", folder]
        self.command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, *flags]
        self.environment = {**os.environ, "MVSPEC": "require"}
        self.environment.pop(ADAPTIVE_LIMITS, None)
        if adaptive is not None:
            self.environment[ADAPTIVE_LIMITS] = adaptive.model_dump_json(exclude_unset=True)

    def _checked(self, name: str, adaptive: Limits | None) -> Any:
        """Return the tokenizer, which plans can be made for."""
        try:
            tokenizer = load_tokenizer(name)
        except MvspecError as error:
            raise InputError(f"the model's {error}") from None
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        missing = [tag for tag in Tag if backend.token_to_id(tag.value) is None]
        if not missing:
            Vocabulary.of(tokenizer)
            return tokenizer
        lacks = f"the tokenizer of {name} lacks {', '.join(missing)}"
        if adaptive is not None:
            raise Unsupported(f"--native: {lacks}: only a model that was taught the tags forks")
        self.notes.append(f"{lacks}: this server runs untagged plans, and its model never forks")
        Vocabulary.of(tokenizer, tagged=False)
        return tokenizer

    def execute(self) -> None:
        """Become the server: its signals and its exit status are this process's."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(self.command[0], self.command, self.environment)


def _check_config(folder: str) -> None:
    """Refuse a model before it is loaded; of one that only SGLang knows, the server itself says.

    Raises:
        Unsupported: no mask and positions decide what its attention reads.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):
        return
    check_model(config)


def _given(flags: Sequence[str]) -> dict[str, str]:
    """Return the flags with their values, "" for a switch.

    >>> _given(["--page-size=4", "--tp", "2", "--enable-lora"])
    {'--page-size': '4', '--tp': '2', '--enable-lora': ''}
    """
    found: dict[str, str] = {}
    for index, flag in enumerate(flags):
        if not flag.startswith("--"):
            continue
        name, equals, value = flag.partition("=")
        following = "" if equals or index + 1 == len(flags) else flags[index + 1]
        found[name.replace("_", "-")] = value or ("" if following[:2] == "--" else following)
    return found
