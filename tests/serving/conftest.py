"""The fixtures of this folder, whose tests need SGLang."""

from __future__ import annotations

import importlib.util

# Examples in docstrings are looked for in every file: these are put elsewhere, or are commands.
collect_ignore_glob = ["cpu/*", "fuzz.py", "install.py", "local.py", "soak.py"]

if importlib.util.find_spec("sglang") is None:
    collect_ignore_glob = ["*"]
else:
    from served import engine, folder, reference, server  # noqa: F401
