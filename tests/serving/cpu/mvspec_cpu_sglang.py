"""Lets stock SGLang be imported where torch has no CUDA and there is no triton.

A `.pth` file imports this when Python starts; nothing heavy is loaded before SGLang is.

- torchvision's wheel is built for CUDA: beside torch for CPUs, two of its operators, which
  nothing here calls, have to be declared before it is imported.
- triton: SGLang's kernels are decorated with it at import. Beside torch for CPUs none is ever
  compiled, so a decorator that returns its function is enough.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any


class _Anything(types.ModuleType):
    """A module whose every attribute is one of its kind; as a decorator it changes nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__version__ = "3.6.0"
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name == "cdiv":
            return lambda a, b: -(-a // b)
        if name == "next_power_of_2":
            return lambda n: 1 << (int(n) - 1).bit_length()
        made: Any = (
            type(name, (), {"__init__": lambda self, *args, **kwargs: None})
            if name[:1].isupper()
            else _Anything(f"{self.__name__}.{name}")
        )
        setattr(self, name, made)
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not kwargs:
            return args[0]
        return lambda function: function

    def __getitem__(self, key: Any) -> Any:
        return self

    def __contains__(self, key: Any) -> bool:
        return False  # torch looks for its back ends: a search by index would never end


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `triton` where there is none, and readies torch for `torchvision`."""

    def __init__(self) -> None:
        self._library: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "torchvision" and self._library is None:
            import torch

            if not torch.cuda.is_available() and not torch.version.cuda:
                library: Any = torch.library.Library
                self._library = library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self._library.define(
                        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
        if name.split(".")[0] == "triton" and "sglang" in sys.modules:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


# Behind the other finders, where a triton that is installed is found first; before them for
# torchvision, which is there.
class _First(importlib.abc.MetaPathFinder):
    def __init__(self, finder: _Finder) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "torchvision":
            self._finder.find_spec(name)
        return None


_finder = _Finder()
sys.meta_path.insert(0, _First(_finder))
sys.meta_path.append(_finder)
