"""What several tests share: a home of their own, small pictures, small frozen encoders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from processes import ended

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.encoder.encoder import FrozenEncoder

# The tensors here are too small to share between threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background with SIGINT ignored, and children inherit that: the
# tests that send it would wait in vain.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("captioner", deadline=None)
settings.load_profile("captioner")

MakeState = Callable[..., "dict[str, Tensor]"]
MakeEncoder = Callable[..., "FrozenEncoder"]
MakePhotos = Callable[..., "list[Path]"]


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches and settings of whoever runs it."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "CAPTIONER_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _own_numbers() -> None:
    """What a test draws does not depend on the tests before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def ends_what_it_starts() -> Iterator[None]:
    """What the test starts ends with it."""
    with ended():
        yield


def draw(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Draw a coarse coloured noise picture; the same seed draws the same one."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(seed, size=(48, 40))` -> RGB image."""
    return draw


@pytest.fixture
def photos(tmp_path: Path) -> MakePhotos:
    """`photos(count, start=0)` -> PNG files `photo0.png`, ... in `tmp_path`."""

    def make(count: int, start: int = 0) -> list[Path]:
        paths = [tmp_path / f"photo{i}.png" for i in range(start, start + count)]
        for i, path in enumerate(paths, start):
            draw(i).save(path)
        return paths

    return make


def random_state(backbone: str, seed: int = 0, **builder_args: object) -> dict[str, Tensor]:
    """Invent weights for a whole torchvision CNN, its batch norm statistics far from trivial."""
    import torch

    from captioner.encoder.backbones import build_backbone

    draws = torch.Generator().manual_seed(seed)

    def invent(name: str, wanted: Tensor) -> Tensor:
        if not wanted.is_floating_point():
            return torch.zeros_like(wanted, device="cpu")
        values = torch.empty(wanted.shape).uniform_(-1, 1, generator=draws)
        if wanted.ndim > 1:  # keeps activations about as large from layer to layer
            return values * (6 / max(1, wanted[0].numel())) ** 0.5
        return 1 + values / 2 if name.endswith(("weight", "running_var")) else values / 5

    wanted = build_backbone(backbone, builder_args, device="meta").state_dict()
    return {name: invent(name, tensor) for name, tensor in wanted.items()}


@pytest.fixture(scope="session")
def make_state() -> MakeState:
    """`make_state(backbone, seed=0, **builder_args)` -> torchvision state dict, random."""
    return random_state


@pytest.fixture(scope="session")
def make_encoder() -> MakeEncoder:
    """`make_encoder(backbone, seed=0, image_size=64, precision="fp32", **builder_args)`."""

    def make(
        backbone: str = "squeezenet1_1",
        seed: int = 0,
        image_size: int = 64,
        precision: str = "fp32",
        **builder_args: object,
    ) -> FrozenEncoder:
        from captioner.encoder.encoder import FrozenEncoder
        from captioner.encoder.preprocess import Preprocess
        from captioner.encoder.weights import EncoderSpec

        spec = EncoderSpec(backbone, builder_args, Preprocess(image_size, image_size))
        return FrozenEncoder(spec, random_state(backbone, seed, **builder_args), precision)

    return make


@pytest.fixture(scope="session")
def tiny_encoder(make_encoder: MakeEncoder) -> FrozenEncoder:
    """A frozen ShuffleNet (1,024 features) with seeded random weights, fp32, 32 pixels."""
    return make_encoder("shufflenet_v2_x0_5", image_size=32)
