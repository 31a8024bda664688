"""Imports torchvision without PyTorch's compiler.

For one function of `roi_align`, torchvision imports `torch._dynamo`, which takes as long as the
import of torch. captioner calls neither.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

COMPILER = "torch._dynamo"


@cache
def import_torchvision() -> None:
    """Import torchvision, and none of the compiler's modules.

    Functions of the compiler that torchvision imports are real: the first call imports it.
    """
    if COMPILER in sys.modules:
        return
    sys.meta_path.insert(0, _FINDER)
    try:
        importlib.import_module("torchvision")
    finally:
        _give_way()


class _StandIn(ModuleType):
    """Takes the place of a module; each of its functions imports the module when it is called."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **named: object) -> object:
            _give_way()
            return getattr(importlib.import_module(self.__name__), name)(*args, **named)

        return call


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for the compiler and its modules."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        """Return the stand-in's spec, or None for any other module."""
        ours = fullname == COMPILER or fullname.startswith(f"{COMPILER}.")
        return ModuleSpec(fullname, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make a stand-in."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in is complete."""


_FINDER = _Finder()


def _give_way() -> None:
    """Forget all stand-ins, so that the next import finds the real modules."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _FINDER]
    for name, module in [*sys.modules.items()]:
        if isinstance(module, _StandIn):
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            vars(sys.modules.get(parent, module)).pop(child, None)
