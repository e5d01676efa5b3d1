"""The script that runs inside the sandbox: it gives up what it still has, then runs the job.

It imports nothing but the standard library. `python -I -S -c` gets its text, so that no file of
ours is seen from inside, and two descriptors: the job's and that of the pipe for results.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

_FILE = 16 << 20
"""Bytes that one file may have."""

_PRELUDE = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing",
    "builtins",
)  # fmt: skip
"""Modules whose names a solution may use without an import, as the benchmark has it."""


def _limit(job: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: job["seconds"], resource.RLIMIT_AS: job["bytes"],
        resource.RLIMIT_FSIZE: _FILE, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_NPROC: 64,
        resource.RLIMIT_CORE: 1,  # at 0 a host's collector of cores would still be given one
    }  # fmt: skip
    for number, most in limits.items():
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))
    if os.getuid() == 0:  # the host's root, whom the limit of threads would not concern
        os.setgroups([])
        os.setgid(job["user"])
        os.setuid(job["user"])


def main() -> None:
    """Run the job; a value goes behind a line that says that the job has begun."""
    with open(int(sys.argv[1]), encoding="ascii") as file:
        job = json.load(file)
    results = open(int(sys.argv[2]), "w", encoding="ascii")  # noqa: SIM115
    sys.argv[:] = ["solution.py"]
    sys.path += job["libraries"]
    _limit(job)
    names: dict[str, Any] = {"__name__": "solution" if job["function"] else "__main__"}
    for module in _PRELUDE:
        exec(f"import {module}\nfrom {module} import *", names)
    sys.setrecursionlimit(50_000)
    print("begun", file=results, flush=True)
    exec(compile(job["code"], "solution.py", "exec"), names)
    if not job["function"]:
        return
    holder = names["Solution"]() if "Solution" in names else None
    name = job["function"]
    function = getattr(holder, name) if hasattr(holder, name) else names[name]
    print("value", json.dumps(function(*job["arguments"])), file=results, flush=True)


if __name__ == "__main__":
    main()
