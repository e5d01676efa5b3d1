"""The script that runs inside the sandbox: it shuts the doors, then runs the job.

It imports nothing but the standard library, and is started by its path with `python -I`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""Landlock's system calls; the same on every architecture (Linux's syscall tables)."""

_WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
"""WRITE_FILE, REMOVE_DIR ... MAKE_SYM (linux/landlock.h)."""

_TRUNCATE = 1 << 14
"""From version 3 of the interface on."""

_FILE = 16 << 20
"""Bytes that one file, standard output included, may have."""

_PRELUDE = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing",
    "builtins",
)  # fmt: skip
"""Modules whose names a solution may use without an import, as the benchmark has it."""


def _call(number: int, *arguments: Any) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))


def has_landlock() -> bool:
    """Whether the kernel can forbid writing."""
    return sys.platform == "linux" and _call(_CREATE, None, ctypes.c_size_t(0), 1) >= 1


def _forbid_writing(folder: str) -> None:
    """Forbid this process, and all that it starts, to write outside a folder."""
    version = _call(_CREATE, None, ctypes.c_size_t(0), 1)
    rights = _WRITES | (_TRUNCATE if version >= 3 else 0)
    handled = ctypes.c_uint64(rights)
    rules = _call(_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    for path, allowed in ((folder, rights), ("/dev/null", rights & ((1 << 1) | _TRUNCATE))):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = allowed.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        if _call(_ADD, rules, 1, ctypes.c_char_p(rule), 0) < 0:
            raise OSError(ctypes.get_errno(), "Landlock refuses a rule")
        os.close(opened)
    ctypes.CDLL(None, use_errno=True).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if _call(_RESTRICT, rules, 0) < 0:
        raise OSError(ctypes.get_errno(), "Landlock refuses the rules")
    os.close(rules)


def _limit(job: dict[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        "RLIMIT_CPU": job["seconds"], "RLIMIT_AS": job["bytes"], "RLIMIT_FSIZE": _FILE,
        "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0,
    }  # fmt: skip
    if job["alone"]:  # elsewhere all of the user's processes count
        limits["RLIMIT_NPROC"] = 64
    for name, most in limits.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(number, (most, most))


def main() -> None:
    """Run `job.json` of this folder."""
    with open("job.json", encoding="utf-8") as file:
        job = json.load(file)
    _limit(job)
    if has_landlock():
        _forbid_writing(os.getcwd())
    names: dict[str, Any] = {"__name__": "__main__"}
    if job["function"]:
        names["__name__"] = "solution"
    for module in _PRELUDE:
        exec(f"import {module}\nfrom {module} import *", names)
    sys.setrecursionlimit(50_000)
    exec(compile(job["code"], "solution.py", "exec"), names)
    if not job["function"]:
        return
    holder = names["Solution"]() if "Solution" in names else None
    name = job["function"]
    function = getattr(holder, name) if hasattr(holder, name) else names[name]
    value = function(*job["arguments"])
    with open("value.json", "w", encoding="utf-8") as file:
        json.dump(value, file)


if __name__ == "__main__":
    main()
