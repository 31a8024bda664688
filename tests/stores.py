"""The S3 server of `benchmarks/storage.py`, with its proxy, for tests."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "benchmarks"


@cache
def benchmark() -> ModuleType:
    """Import `benchmarks/storage.py`."""
    spec = importlib.util.spec_from_file_location("storage_benchmark", FOLDER / "storage.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(FOLDER))  # as where a script is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("common", None)
    return module
