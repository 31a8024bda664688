"""Captioning imports nothing of PyTorch's compiler, and leaves it usable."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from captioner import Captioner
from captioner.model_config import bundled_model

def compiler():
    return {name for name in sys.modules if name in ("torch._dynamo", "sympy")}

captioner = Captioner.load(bundled_model("scenes"))
captioner.encoder.to_device(captioner.device)
print(captioner.caption(np.zeros((64, 64, 3), np.uint8)) != "", compiler())

import torch
from torchvision.ops.roi_align import is_compile_supported

print(callable(is_compile_supported), "_dynamo" in vars(torch))
supported = is_compile_supported("cpu")
import torch._dynamo.utils as real

print(supported is real.is_compile_supported("cpu"), real.__file__ is not None)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist())
print(sys.modules["torch._dynamo"] is torch._dynamo, torch._dynamo.__file__ is not None)
"""


def test_captioning_imports_no_compiler_and_a_later_import_is_real() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert done == ["True set()", "True False", "True True", "[2.0, 2.0]", "True True"]


def test_a_compiler_that_is_imported_already_stays() -> None:
    script = (
        "import torch._dynamo as before; from captioner.encoder.without_compiler import "
        "import_torchvision as ours; ours(); import sys; import torchvision; "
        "print(sys.modules['torch._dynamo'] is before, before.__file__ is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
