"""The CNN's fast form: the same function by fewer kernels, its first layers unrounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioner.encoder.encoder import FrozenEncoder
from captioner.encoder.folding import EXACT, fast_form, fold
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec

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


def test_a_folded_network_is_the_same_function() -> None:
    network = Branches().eval()
    network.norm.running_var = torch.rand(8) + 0.5
    folded = fold(network)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), network(images()))
    assert "BatchNorm2d" not in calls(folded)
    assert not any(weights.requires_grad for weights in folded.parameters())


def test_a_batch_norm_after_anything_else_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    network[2].running_mean = torch.ones(4)
    folded = fold(network)
    assert "BatchNorm2d" in calls(folded)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), network(images()))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_torchvisions_networks_keep_no_batch_norm(backbone: str, make_state: MakeState) -> None:
    for precision in ("fp32", "bf16"):
        encoder = FrozenEncoder(
            EncoderSpec(backbone, {}, Preprocess(64, 64)), make_state(backbone), precision
        )
        assert not [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        weights = [m.weight for m in encoder.modules() if isinstance(m, nn.Conv2d)]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_begins_after_the_first_layers(dtype: torch.dtype) -> None:
    exact, low = fast_form(Branches(), torch.float32), fast_form(Branches(), dtype)
    assert {tensor.dtype for tensor in exact.parameters()} == {torch.float32}
    used = [name for name in low.state_dict() if name.endswith("weight")]
    kept = [name for name in used if low.state_dict()[name].dtype == torch.float32]
    # `deep` serves in both halves, and is rounded in the second alone.
    assert [name.split(".")[-2] for name in kept] == ["first", "second", "deep"]
    assert len(kept) == EXACT
    assert {low.state_dict()[name].dtype for name in used} == {torch.float32, dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_close_to_the_same_function(dtype: torch.dtype) -> None:
    network = Branches().eval()
    with torch.inference_mode():
        wanted, low = network(images()), fast_form(network, dtype)(images())
        assert low.dtype == dtype
        torch.testing.assert_close(low.float(), wanted, rtol=0.05, atol=0.05)
        assert not low.float().equal(wanted)
        torch.testing.assert_close(network(images()), wanted, rtol=0, atol=0)  # left as it was


def test_a_network_of_first_layers_alone_stays_exact() -> None:
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(EXACT))).eval()
    with torch.inference_mode():
        assert torch.equal(fast_form(network, torch.bfloat16)(images()), network(images()))


def test_differences_of_large_weights_survive_in_the_first_layers() -> None:
    """Images are alike in all channels; the first filter takes 256.5 times one from another."""
    first, last = nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    between = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(EXACT - 1)]
    first.weight.data = torch.tensor([256.5, -256.0, 0.0]).view(1, 3, 1, 1)
    for layer in (*between, last):
        layer.weight.data.fill_(1)
    network = nn.Sequential(first, *between, last).eval()
    grey = torch.full((1, 3, 4, 4), 0.5)
    with torch.inference_mode():
        assert torch.unique(fast_form(network, torch.bfloat16)(grey)).tolist() == [0.25]
        assert torch.unique(network.bfloat16()(grey.bfloat16())).tolist() != [0.25]
