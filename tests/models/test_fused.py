"""The CNN's fast form: the same function, by fewer kernels, with rounding that does no harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioner.models import fused
from captioner.models.encoder import EncoderSpec, FrozenEncoder
from captioner.models.fused import fold, fuse, round_weights
from captioner.models.preprocess import Preprocess

MakeState = Callable[..., dict[str, Tensor]]


class Branches(nn.Module):
    """Each way a convolution can be followed, and ways that must stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.third, self.same = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding="same")
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.six, self.silu, self.hard = nn.ReLU6(inplace=True), nn.SiLU(), nn.Hardswish()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.six(self.first(images))
        total = self.norm(self.second(maps))
        total += maps  # a sum in place, then an activation
        total = functional.relu(total)
        total = self.silu(self.deep(total)) + self.deep(total)  # one layer in two places
        both = self.hard(self.third(total))
        total = self.same(both) + both
        return (maps + self.deep(total)) + 1  # a shortcut on the left; no shortcut


class Shared(nn.Module):
    """A convolution that feeds a batch norm and also goes around it; no torchvision CNN does so."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.ones(4)
        self.norm.running_var = torch.full((4,), 9.0)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return self.norm(maps) + maps


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def images(side: int = 12) -> Tensor:
    drawn = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.to(memory_format=torch.channels_last)


def calls(network: fx.GraphModule) -> list[str]:
    """Return what a network's nodes do, by layer class or function name."""
    layers = dict(network.named_modules())
    return [
        type(layers[node.target]).__name__ if node.op == "call_module" else node.target.__name__
        for node in network.graph.nodes
        if node.op.startswith("call")
    ]


def test_a_convolution_with_other_readers_is_not_folded() -> None:
    network = Shared().eval()
    with torch.no_grad():
        torch.testing.assert_close(fold(network)(images()), network(images()))


def test_fused_is_the_same_function() -> None:
    network = Branches().eval()
    network.norm.running_var = torch.rand(8) + 0.5
    fast = fold(network)
    assert fuse(fast, torch.float32)
    with torch.inference_mode():
        wanted = network(images())
        torch.testing.assert_close(fast(images()), wanted)
        torch.testing.assert_close(fast(images(7)[:1]), network(images(7)[:1]))  # other sizes too
    left = [name for name in calls(fast) if name != "_Convolution"]
    # `same` pads in a way oneDNN's operator is not told; its sum stays too. Then the last + 1.
    assert left == ["Conv2d", "add", "add"]


@pytest.mark.parametrize(
    ("backbone", "unfused"),
    [("resnet18", {"Conv2d", "ReLU", "add"}), ("mobilenet_v2", {"Conv2d", "ReLU6", "add"})],
)
def test_what_follows_a_convolution_is_part_of_it(
    backbone: str, unfused: set[str], make_state: MakeState
) -> None:
    spec = EncoderSpec(backbone, {}, Preprocess(64, 64))
    encoder = FrozenEncoder(spec, make_state(backbone), "fp32")
    assert encoder.arithmetic == "fp32 by oneDNN"
    assert isinstance(encoder.network, fx.GraphModule)
    assert not unfused & set(calls(encoder.network))
    assert not [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]


def test_without_the_kernels_the_network_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, make_state: MakeState
) -> None:
    spec, state = EncoderSpec("squeezenet1_1", {}, Preprocess(64, 64)), make_state("squeezenet1_1")
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    fast = FrozenEncoder(spec, state, "fp32")
    wanted = fast(pixels)

    def gone(*_: object) -> None:
        raise RuntimeError("no such operator")

    fused._has_kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(fused._Convolution, "forward", gone)
        slow = FrozenEncoder(spec, state, "fp32")
        assert slow.arithmetic == "fp32 by PyTorch"
        torch.testing.assert_close(slow(pixels), wanted)
    fused._has_kernels.cache_clear()
    assert slow.fingerprint() != fast.fingerprint()  # equal but for the last bits


@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (8, 12, 1, 1), (4, 3, 7, 7)])
def test_rounded_filters_keep_their_sums(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * 10
    weight[0] = 3.0  # equal weights: their order is any
    rounded = round_weights(weight, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert rounded.shape == weight.shape
    step = weight.abs() * 2**-7  # from a bf16 number to the next is at most this much
    largest = step.flatten(1).amax(1)[:, None, None, None]
    assert ((rounded.float() - weight).abs() <= step + largest).all()
    dims = 1 if shape[2] == 1 else (2, 3)
    mine = (rounded.double() - weight.double()).sum(dims).abs().mean()
    nearest = (weight.bfloat16().double() - weight.double()).sum(dims).abs().mean()
    assert mine < nearest / 2
    exact = torch.tensor([[[[1.0, 2.0], [-4.0, 0.5]]]])
    assert torch.equal(round_weights(exact, torch.bfloat16).float(), exact)
