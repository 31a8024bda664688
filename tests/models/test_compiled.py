"""OpenVINO computes the same features, wherever it can; where it cannot, PyTorch does."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.errors import ConfigError, ModelError
from captioner.models import compiled
from captioner.models.compiled import IMAGES, balance, other_arithmetic
from captioner.models.encoder import EncoderSpec, FrozenEncoder, best_precision
from captioner.models.fused import fold
from captioner.models.preprocess import Preprocess

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.conftest import MakeState

SIDE = 32


def pixels(count: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)


@pytest.fixture
def turned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(compiled.SWITCH, "1")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def encoders(
    backbone: str, state: dict[str, Tensor], precision: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[FrozenEncoder, FrozenEncoder]:
    """Return a CNN compiled by OpenVINO, and the same as PyTorch computes it in fp32."""
    spec = EncoderSpec(backbone, {}, Preprocess(SIDE, SIDE))
    fast, exact = FrozenEncoder(spec, state, precision), FrozenEncoder(spec, state, "fp32")
    assert fast.arithmetic.endswith(" by OpenVINO")
    with monkeypatch.context() as patch:
        patch.setenv(compiled.SWITCH, "0")
        assert exact.arithmetic == "fp32 by oneDNN"
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
    assert fast.fingerprint(exact.arithmetic) == exact.fingerprint()
    assert fast(some[:0]).shape == (0, fast.feature_size)


@pytest.mark.usefixtures("turned_on")
def test_features_rounded_are_close(make_state: MakeState, monkeypatch: pytest.MonkeyPatch) -> None:
    if best_precision(torch.device("cpu")) != "bf16":
        pytest.skip("this processor does not compute in bf16")
    fast, exact = encoders("squeezenet1_1", make_state("squeezenet1_1"), "bf16", monkeypatch)
    cosines = torch.cosine_similarity(fast(pixels(20)), exact(pixels(20)))
    assert cosines.min() > 0.999
    assert not fast(pixels(20)).equal(exact(pixels(20)))


@pytest.mark.usefixtures("turned_on", "three_threads")
def test_features_depend_on_no_company_and_no_threads(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, _ = encoders("mobilenet_v2", make_state("mobilenet_v2"), "auto", monkeypatch)
    some = pixels(5 * IMAGES + 3)
    alone = torch.cat([fast(one) for one in some.split(1)])
    assert fast(some).equal(alone)
    with ThreadPoolExecutor(5) as pool:  # more than it was told
        together = list(pool.map(fast, [some] * 9))
    assert all(features.equal(alone) for features in together)
    assert copy.deepcopy(fast)(some).equal(alone)


@pytest.mark.usefixtures("turned_on")
def test_a_forked_process_is_told_to_spawn(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, _ = encoders("squeezenet1_1", make_state("squeezenet1_1"), "fp32", monkeypatch)
    monkeypatch.setattr(compiled.os, "getpid", lambda: -1)
    with pytest.raises(
        ModelError, match="does not survive a fork: start processes by multiprocessing"
    ):
        fast(pixels(1))


SIGNALLED = """
import gc, os, signal
from captioner.models.encoder import FrozenEncoder

made = [
    FrozenEncoder.create("squeezenet1_1", "none", image_size=32, precision="fp32")
    for _ in range(3)
]
assert {encoder.arithmetic for encoder in made} == {"fp32 by OpenVINO"}
while made:
    made.pop(0)
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("alive")
"""


# OpenVINO leaves signals without a stack where several of its cores come and go.
@pytest.mark.usefixtures("turned_on")
def test_signals_do_no_harm_when_encoders_have_come_and_gone() -> None:
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr


@pytest.mark.usefixtures("turned_on")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_openvino_cannot_do_pytorch_does(
    precision: str,
    make_state: MakeState,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(compiled, "_convert", fails)
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(SIDE, SIDE))
    encoder = FrozenEncoder(spec, make_state("squeezenet1_1"), precision)
    assert encoder(pixels(3)).isfinite().all()
    assert not encoder.arithmetic.endswith("OpenVINO")
    assert capsys.readouterr().err == (
        "warning: OpenVINO is left out (CAPTIONER_OPENVINO=1 asked for it): no such operator\n"
    )


@pytest.mark.parametrize(
    ("value", "installed", "message"),
    [
        ("maybe", True, "CAPTIONER_OPENVINO: must be 1 or 0, given 'maybe'"),
        ("On", False, r"CAPTIONER_OPENVINO=On needs pip install 'captioner\[openvino\]'"),
        ("off", False, None),
        ("", True, None),
    ],
)
def test_what_is_asked_for_is_not_left_out_silently(
    value: str,
    installed: bool,
    message: str | None,
    make_state: MakeState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(compiled.SWITCH, value)
    monkeypatch.setattr(compiled, "find_spec", lambda _: installed or None)
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(SIDE, SIDE))
    encoder = FrozenEncoder(spec, make_state("squeezenet1_1"), "fp32")
    if message:
        with pytest.raises(ConfigError, match=message):
            encoder(pixels(1))
    else:
        assert encoder.arithmetic == "fp32 by oneDNN"


def test_a_change_of_arithmetic_says_what_brings_it_back() -> None:
    by_openvino, by_onednn = "bf16 by OpenVINO", "bf16 by oneDNN"
    assert "CAPTIONER_OPENVINO=1 brings" in other_arithmetic(by_openvino, by_onednn)
    assert "CAPTIONER_OPENVINO=0 brings" in other_arithmetic(by_onednn, by_openvino)
    assert "CAPTIONER" not in other_arithmetic("fp32 by oneDNN", by_onednn)
    assert "not noted" in other_arithmetic(None, by_onednn)


def test_an_encoder_that_is_not_used_is_not_compiled(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def compile_network(*given: Any) -> None:
        made.append(given[-1])

    monkeypatch.setattr("captioner.models.encoder.compile_network", compile_network)
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(SIDE, SIDE))
    encoder = FrozenEncoder(spec, make_state("squeezenet1_1"), "fp32")
    assert made == []
    encoder.prepare(7)
    encoder(pixels(1))
    assert made == [7]


class Small(nn.Module):
    """Every way in which one convolution may follow another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.linear = nn.Conv2d(8, 8, 1)
        self.cut, self.sum = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def forward(self, images: Tensor) -> Tensor:
        x = self.depthwise(self.relu(self.first(images)))
        x = self.linear(self.grouped(self.relu6(x)))
        x = self.cut(functional.relu(x))
        x = self.sum(self.relu6(x))
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
    assert rounded == weights | {"first.bias", "grouped.bias", "linear.bias", "cut.bias"}


def test_balancing_alone_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = fold(Small()), torch.rand(4, 3, 16, 16)
    monkeypatch.setattr(compiled, "round_weights", lambda weight, _: weight)
    balanced = balance(network, torch.bfloat16)
    assert not balanced.first.weight.equal(network.first.weight)
    torch.testing.assert_close(balanced(images), network(images), rtol=1e-5, atol=1e-5)
