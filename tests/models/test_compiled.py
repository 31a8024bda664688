"""OpenVINO computes the same features, wherever it can; where it cannot, PyTorch does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from captioner.models import compiled
from captioner.models.compiled import IMAGES, balance
from captioner.models.encoder import EncoderSpec, FrozenEncoder
from captioner.models.fused import fold
from captioner.models.preprocess import Preprocess

if TYPE_CHECKING:
    from tests.conftest import MakeState

SIDE = 32


def pixels(count: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)


@pytest.fixture
def turned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.delenv(compiled.SWITCH)


def encoders(
    backbone: str, state: dict[str, Tensor], precision: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[FrozenEncoder, FrozenEncoder]:
    """Return a CNN compiled by OpenVINO, and the same as PyTorch computes it in fp32."""
    spec = EncoderSpec(backbone, {}, Preprocess(SIDE, SIDE))
    fast = FrozenEncoder(spec, state, precision)
    assert fast.compiled
    with monkeypatch.context() as patch:
        patch.setenv(compiled.SWITCH, "0")
        exact = FrozenEncoder(spec, state, "fp32")
    assert not exact.compiled
    return fast, exact


@pytest.mark.usefixtures("turned_on")
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_features_are_the_same(
    backbone: str, make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, exact = encoders(backbone, make_state(backbone), "fp32", monkeypatch)
    some = pixels(2 * IMAGES + 1)
    features = fast(some)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact(some), rtol=1e-3, atol=1e-4)
    assert fast.fingerprint() != exact.fingerprint()  # equal but for the last bits
    assert fast(some[:0]).shape == (0, fast.feature_size)


@pytest.mark.usefixtures("turned_on")
def test_features_do_not_depend_on_their_company(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, _ = encoders("mobilenet_v2", make_state("mobilenet_v2"), "auto", monkeypatch)
    some = pixels(11)
    alone = torch.cat([fast(one) for one in some.split(1)])
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(fast, [some] * 6))
    assert all(features.equal(alone) for features in together)


@pytest.mark.usefixtures("turned_on")
def test_what_openvino_cannot_do_pytorch_does(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(compiled, "_convert", fails)
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(SIDE, SIDE))
    encoder = FrozenEncoder(spec, make_state("squeezenet1_1"), "fp32")
    assert not encoder.compiled
    assert encoder.fused
    assert capsys.readouterr().err == (
        "warning: OpenVINO is left out (CAPTIONER_OPENVINO=0 hides this): no such operator\n"
    )


class Small(nn.Module):
    """Every way in which one convolution may follow another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.linear = nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def forward(self, images: Tensor) -> Tensor:
        x = self.depthwise(self.relu(self.first(images)))
        x = self.linear(self.grouped(self.relu6(x)))
        x = self.twice(self.relu(self.twice(x))) + x
        scores: Tensor = self.last(torch.sigmoid(x))
        return scores


def test_balanced_channels_change_nothing_but_make_biases_exact() -> None:
    torch.manual_seed(0)
    network = fold(Small())
    with torch.no_grad():
        network.first.bias[0] = 0.0
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(4, 3, 16, 16)
    balanced = balance(network, torch.bfloat16)
    torch.testing.assert_close(balanced(images), network(images), rtol=0.05, atol=0.02)
    for name, tensor in network.state_dict().items():
        assert tensor.equal(before[name])
    after = balanced.state_dict()
    rounded = {name for name in after if after[name].equal(after[name].bfloat16().float())}
    weights = {name for name in after if name.endswith("weight")}
    # Only these are read by one convolution that could undo what is done to their channels.
    assert rounded == weights | {"first.bias", "grouped.bias"}


def test_balancing_alone_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = fold(Small()), torch.rand(4, 3, 16, 16)
    monkeypatch.setattr(compiled, "round_weights", lambda weight, _: weight)
    balanced = balance(network, torch.bfloat16)
    assert not balanced.first.weight.equal(network.first.weight)
    torch.testing.assert_close(balanced(images), network(images), rtol=1e-5, atol=1e-5)
