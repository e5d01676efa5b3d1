"""Stands for SGLang's kernel package, which has no build for CPUs: importable, never callable.

SGLang imports it on every device. On a CPU with torch's own attention nothing of it is called,
and what were called would say so here.
"""

from typing import Any

__version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} was called on a CPU")

    return kernel
