"""Every torchvision CNN, frozen: its features are torchvision's own, only faster."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from captioner.encoder import backbones
from captioner.encoder.backbones import build_backbone, check_backbone, remove_head
from captioner.encoder.encoder import FrozenEncoder, best_precision, side_by_side
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec
from captioner.errors import ModelError
from captioner.images.decode import read_image

MakeState = Callable[..., dict[str, Tensor]]
MakeEncoder = Callable[..., FrozenEncoder]
SHARED = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[3] / "shared"))
# The network that shared/weights/mobilenet_v2.pth was trained as.
TRAINED_SETTING = [[1.01, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 1]]
TRAINED_SETTING += [[6, 96, 3, 2], [6, 160, 3, 2], [6, 320, 1, 1]]
ALL = models.list_models(module=models)
TRANSFORMERS = [name for name in ALL if name.startswith(("vit_", "swin_", "maxvit_"))]
KNOWN_WIDTHS = {
    "alexnet": 4096,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "mnasnet1_0": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "resnet50": 2048,
    "shufflenet_v2_x2_0": 2048,
    "squeezenet1_0": 512,
    "vgg16": 4096,
}
# One small member of each family: the layer that is given the features, and pixels of a side.
FAMILIES = {
    "alexnet": ("classifier.6", 64),
    "convnext_tiny": ("classifier.2", 32),
    "densenet121": ("classifier", 32),
    "efficientnet_b0": ("classifier.1", 32),
    "efficientnet_v2_s": ("classifier.1", 32),
    "googlenet": ("fc", 64),
    "inception_v3": ("fc", 80),
    "mnasnet0_5": ("classifier.1", 32),
    "mobilenet_v2": ("classifier.1", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "regnet_y_400mf": ("fc", 32),
    "resnet18": ("fc", 32),
    "resnext50_32x4d": ("fc", 32),
    "shufflenet_v2_x0_5": ("fc", 32),
    "squeezenet1_1": ("classifier.1", 64),
    "vgg11_bn": ("classifier.6", 32),
}


def pixels(side: int, count: int = 4, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=draws).float()
    return functional.interpolate(coarse, side, mode="bilinear").to(torch.uint8)


def plain_model(backbone: str, state: dict[str, Tensor], images: Tensor) -> nn.Module:
    """Torchvision's own model with batch norm statistics as training would have left them."""
    network = build_backbone(backbone, {}, device="meta")
    wanted = network.state_dict()  # carries the version marks
    wanted.update(state)
    network.load_state_dict(wanted, assign=True)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.5  # all the way, some would be next to nothing
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.train()(images)
    return network.eval()


def plain_features(network: nn.Module, head: str, images: Tensor) -> Tensor:
    """What a torchvision model hands to its last layer."""
    seen: list[Tensor] = []
    network.get_submodule(head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network(images)
    [features] = seen
    return features.mean((2, 3)) if features.ndim == 4 else features


def spec_of(backbone: str, side: int, **builder_args: Any) -> EncoderSpec:
    return EncoderSpec(backbone, builder_args, Preprocess(side, side))


@pytest.mark.parametrize("backbone", ALL)
def test_every_name_gives_a_vector_of_its_width_or_a_reason(backbone: str) -> None:
    if backbone in TRANSFORMERS:
        with pytest.raises(ModelError, match=f"{backbone} is a transformer, not a CNN; choose"):
            check_backbone(backbone)
        return
    network = build_backbone(backbone, {}, device="meta")
    # The last matrix with a row for each of ImageNet's classes has a column for each feature.
    matrices = [t for t in network.state_dict().values() if t.ndim > 1 and len(t) == 1000]
    width = matrices[-1].shape[1]
    assert remove_head(network) == width == KNOWN_WIDTHS.get(backbone, width)
    with torch.inference_mode():
        features = network.eval()(torch.empty(2, 3, 96, 96, device="meta"))
    assert features.flatten(1).shape == (2, width)


def test_the_walk_met_both_kinds() -> None:
    assert len(TRANSFORMERS) >= 10
    assert len(ALL) - len(TRANSFORMERS) >= 60
    assert KNOWN_WIDTHS.keys() | FAMILIES.keys() <= set(ALL) - set(TRANSFORMERS)


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.slow
def test_the_fast_form_gives_torchvisions_features(backbone: str, make_state: MakeState) -> None:
    head, side = FAMILIES[backbone]
    spec, images = spec_of(backbone, side), pixels(side)
    inputs = spec.preprocess.normalize(images)
    plain = plain_model(backbone, make_state(backbone), inputs)
    wanted = plain_features(plain, head, inputs)
    state = plain.state_dict()
    encoder = FrozenEncoder(spec, state, "fp32")
    features = encoder(images)
    assert features.dtype == torch.float32
    assert features.shape == (4, encoder.feature_size)
    scale = wanted.abs().max()
    assert scale > 0
    assert (features - wanted).abs().max() / scale < 1e-4
    spread = (wanted - wanted.mean(0)).abs().max() / scale
    assert spread > 1e-4  # or else the comparison says nothing about the images
    rough = FrozenEncoder(spec, state, "bf16")(images)
    assert rough.dtype == torch.float32
    # Random weights magnify rounding; trained ones are held to 0.999 below.
    assert functional.cosine_similarity(rough, wanted).min() >= 0.99


@pytest.mark.data
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v2"])
def test_trained_weights_see_photographs_alike_in_low_precision(
    backbone: str, precision: str
) -> None:
    path = SHARED / "weights" / f"{backbone}.pth"
    photographs = sorted((SHARED / "flickr8k" / "images").glob("*.jpg"))[:4]
    if not path.is_file() or not photographs:
        pytest.skip("no shared/weights and shared/flickr8k beside the checkout")
    args = {"inverted_residual_setting": TRAINED_SETTING} if backbone == "mobilenet_v2" else {}
    exact, rough = (
        FrozenEncoder.create(backbone, str(path), builder_args=args, precision=given)
        for given in ("fp32", precision)
    )
    images = torch.stack([exact.spec.preprocess.pixels(read_image(p)) for p in photographs])
    assert functional.cosine_similarity(rough(images), exact(images)).min() >= 0.999


def test_a_batch_gives_what_its_images_give_alone(tiny_encoder: FrozenEncoder) -> None:
    images = pixels(32)
    alone = torch.cat([tiny_encoder(image[None]) for image in images])
    torch.testing.assert_close(tiny_encoder(images), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_mirrored_encoder_sees_the_mean_of_a_picture_and_its_mirror_image(
    make_encoder: MakeEncoder, count: int
) -> None:
    parts = [make_encoder("shufflenet_v2_x0_5", seed, image_size=32) for seed in range(count)]
    encoder, images = side_by_side(parts), pixels(32)
    assert torch.equal(encoder.see(images), encoder(images))
    encoder.mirrored = True
    left_to_right = images.flip(3)
    mean = (encoder(images) + encoder(left_to_right)) / 2
    spread = (mean - encoder(images)).abs().max()
    assert spread > 0.01  # these pictures are not symmetric
    torch.testing.assert_close(encoder.see(images), mean)
    torch.testing.assert_close(encoder.see(left_to_right), mean)
    assert (encoder.see(images.flip(2)) - mean).abs().max() > spread / 10  # upside down is another


def test_train_wakes_nothing(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("densenet121", image_size=32)  # keeps batch norms of its own
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert any("running_mean" in name for name in before)
    features = encoder(pixels(32))
    holder = nn.Sequential(encoder).train()
    assert encoder.train() is encoder
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.testing.assert_close(holder(pixels(32)), features, rtol=0, atol=0)
    assert not features.requires_grad
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    encoder.to_device(torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_state_is_what_was_given_in_any_precision(make_state: MakeState) -> None:
    state = make_state("shufflenet_v2_x0_5")
    encoder = FrozenEncoder(spec_of("shufflenet_v2_x0_5", 32), state, "bf16")
    encoder(pixels(32))
    assert encoder.state.keys() == {name for name in state if not name.startswith("fc.")}
    for name, tensor in encoder.state.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def test_moving_between_precisions_does_not_round_twice(make_encoder: MakeEncoder) -> None:
    wanted = make_encoder("shufflenet_v2_x0_5", image_size=32)(pixels(32))
    encoder = make_encoder("shufflenet_v2_x0_5", image_size=32, precision="bf16")
    encoder.precision = "fp32"
    torch.testing.assert_close(encoder.to_device(torch.device("cpu"))(pixels(32)), wanted)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_spec_needs_no_more_than_a_name(make_state: MakeState) -> None:
    spec = EncoderSpec("squeezenet1_1")
    assert spec == EncoderSpec("squeezenet1_1", {}, Preprocess(), "none")
    encoder = FrozenEncoder(spec, make_state("squeezenet1_1"))
    assert encoder.precision == "auto"
    assert encoder.arithmetic == f"{best_precision(torch.device('cpu'))} on cpu"


def test_moving_to_where_it_is_builds_nothing(tiny_encoder: FrozenEncoder) -> None:
    network = tiny_encoder.network
    assert tiny_encoder.to_device(torch.device("cpu")).network is network


def test_an_encoder_is_the_same_in_another_process(tiny_encoder: FrozenEncoder) -> None:
    tiny_encoder.mirrored = True
    copy = pickle.loads(pickle.dumps(tiny_encoder))
    assert copy.mirrored
    assert copy.fingerprint() == tiny_encoder.fingerprint()
    assert torch.equal(copy.see(pixels(32)), tiny_encoder.see(pixels(32)))


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for known, wanted in (
        ({}, "fp32"),
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert best_precision(cpu) == wanted
    assert best_precision(torch.device("mps")) == "fp32"
    for native, wanted in ((True, "bf16"), (False, "fp16")):
        # Emulated bf16 is slower than fp16.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation, native=native: native or including_emulation,
        )
        assert best_precision(torch.device("cuda")) == wanted


def test_elsewhere_than_on_a_processor_a_batch_goes_through_at_once(
    make_encoder: MakeEncoder,
) -> None:
    encoder, calls = make_encoder("resnet18", image_size=32), []
    assert encoder.images_per_pass == 4

    def count(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls.append((given[0].device.type, len(given[0])))

    meta = torch.device("meta")  # stands in for a GPU: it computes shapes alone
    assert encoder.to_device(meta) is encoder
    assert encoder.device == meta
    assert encoder.arithmetic == "fp32 on meta"
    encoder.network.register_forward_pre_hook(count)
    features = encoder(pixels(32, count=7))
    assert (features.device, features.shape, features.dtype) == (meta, (7, 512), torch.float32)
    assert encoder(pixels(32, count=0)).shape[0] == 0
    assert calls == [("meta", 7), ("meta", 0)]


def test_the_fingerprint_of_a_known_network_stays_as_it_is() -> None:
    # Feature stores bear it in their names: another one has every picture encoded again.
    wanted = build_backbone("squeezenet1_1", {}, device="meta").state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in wanted.items()}
    encoder = FrozenEncoder(spec_of("squeezenet1_1", 32), state, "fp32")
    assert encoder.fingerprint("fp32 on cpu") == "d4c0bfeb7434cea3f980c898596180f3"


def test_fingerprint_follows_what_the_features_follow(make_state: MakeState) -> None:
    spec, state = spec_of("shufflenet_v2_x0_5", 32), make_state("shufflenet_v2_x0_5")

    def fingerprint(spec: EncoderSpec = spec, precision: str = "fp32", **changed: Tensor) -> str:
        return FrozenEncoder(spec, state | changed, precision).fingerprint()

    first = fingerprint()
    assert len(bytes.fromhex(first)) == 16
    assert first == fingerprint()
    assert first == fingerprint(replace(spec, weights="some/other_name.pth"))
    assert first == fingerprint(**{"fc.weight": torch.zeros(1000, 1024)})
    nudged = state["conv1.0.weight"].clone()
    nudged[0, 0, 0, 0] += 1e-3
    statistic = state["conv1.1.running_var"] + 1
    others = {
        fingerprint(**{"conv1.0.weight": nudged}),
        fingerprint(**{"conv1.1.running_var": statistic}),
        fingerprint(precision="bf16"),
        fingerprint(replace(spec, preprocess=Preprocess(36, 32))),
        fingerprint(replace(spec, preprocess=replace(spec.preprocess, interpolation="bicubic"))),
        fingerprint(replace(spec, preprocess=replace(spec.preprocess, mean=(0.5, 0.5, 0.5)))),
    }
    assert len(others) == 6
    assert first not in others


def test_builder_args_reach_the_builder(make_encoder: MakeEncoder) -> None:
    setting = [[1, 16, 1, 1], [6, 24, 2, 2]]
    encoder = make_encoder(
        "mobilenet_v2", image_size=32, width_mult=0.5, inverted_residual_setting=setting
    )
    assert encoder.state["features.0.0.weight"].shape[0] == 16
    assert encoder(pixels(32)).shape == (4, 1280)
    assert make_encoder("resnet18", image_size=32, num_classes=7).feature_size == 512


@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("resnet18", {"psychic": True}),
        ("mobilenet_v2", {"width_mult": "wide"}),
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 2]]}),
        ("mobilenet_v2", {"inverted_residual_setting": []}),
        ("densenet121", {"block_config": 3}),
        ("resnet18", {"weights": None}),
    ],
)
def test_wrong_builder_args_are_refused(backbone: str, args: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as error:
        build_backbone(backbone, args, device="meta")
    assert str(error.value).startswith(f"encoder.builder_args: {backbone} refuses ")
    assert "\n" not in str(error.value)


def test_a_builder_that_makes_more_calls_than_it_may_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbones, "MAX_CALLS", 10)
    with pytest.raises(ModelError, match="more layers than any CNN has"):
        build_backbone("squeezenet1_1", {}, device="meta")
    with backbones.Building():
        for _ in range(10):
            torch.zeros(1)
        with pytest.raises(ValueError, match="more layers"):
            torch.zeros(1)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_builder_that_is_stopped_anywhere_leaves_gradients_as_they_were(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.set_grad_enabled(enabled):
        for calls in range(40):
            monkeypatch.setattr(backbones, "MAX_CALLS", calls)
            with pytest.raises(ModelError, match="more layers than any CNN has"):
                build_backbone("squeezenet1_1", {}, device="meta")
            assert torch.is_grad_enabled() == enabled


def test_a_network_is_built_on_the_processor_unless_told_otherwise() -> None:
    places = {
        parameter.device.type for parameter in build_backbone("squeezenet1_1", {}).parameters()
    }
    assert places == {"cpu"}


def test_the_builders_reason_is_told_on_one_line() -> None:
    with pytest.raises(ModelError, match=r"got an unexpected keyword argument 'psychic'$"):
        build_backbone("resnet18", {"psychic": True}, device="meta")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet5O", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("EfficientNet_B0", "net_b0")],
)
def test_an_unknown_backbone_suggests_a_known_one(name: str, suggestion: str) -> None:
    with pytest.raises(ModelError, match="did you mean") as error:
        check_backbone(name)
    assert name in str(error.value)
    with pytest.raises(ModelError, match=r"^encoder\.backbone: torchvision has no"):
        build_backbone(name, {}, device="meta")
    suggestions = str(error.value).partition("did you mean")[2]
    assert suggestion in suggestions
    assert suggestions.count(" or ") == 2


def test_other_kinds_of_models_are_no_classification_cnns() -> None:
    for name in ("fcn_resnet50", "r3d_18", "raft_small", "quantized_resnet50", "", "zzz"):
        with pytest.raises(ModelError, match="no classification CNN"):
            FrozenEncoder.create(name, "none")


def test_densenet_files_with_old_names_fit(tmp_path: Path, make_state: MakeState) -> None:
    state = make_state("densenet121")
    old = {
        name.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): tensor
        for name, tensor in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    encoder = FrozenEncoder.create(
        "densenet121", str(tmp_path / "old.pth"), image_size=32, precision="fp32"
    )
    plain = FrozenEncoder(spec_of("densenet121", 32), state, "fp32")
    torch.testing.assert_close(encoder(pixels(32)), plain(pixels(32)))


@pytest.mark.parametrize("backbone", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_whoever_asks(backbone: str, make_state: MakeState) -> None:
    with_heads = make_state(backbone, aux_logits=True)
    assert any(name.lower().startswith("aux") for name in with_heads)
    side = FAMILIES[backbone][1]
    encoder = FrozenEncoder(spec_of(backbone, side), with_heads, "fp32")
    assert not any("aux" in name.lower() for name in encoder.state)
    asked = FrozenEncoder(spec_of(backbone, side, aux_logits=True), with_heads, "fp32")
    torch.testing.assert_close(asked(pixels(side)), encoder(pixels(side)))


def test_transform_input_changes_the_features(make_encoder: MakeEncoder) -> None:
    plain = make_encoder("googlenet")
    turned = make_encoder("googlenet", transform_input=True)
    assert (plain(pixels(64)) - turned(pixels(64))).abs().max() > 1e-3
    assert plain.fingerprint() != turned.fingerprint()


@pytest.mark.parametrize("backbone", ["mnasnet0_5", "mnasnet1_3"])
def test_mnasnet_keeps_its_version(backbone: str, tmp_path: Path, make_state: MakeState) -> None:
    # Without torchvision's version mark its loader would rebuild the stem as of version 1.
    state = make_state(backbone)
    torch.save(state, tmp_path / "w.pth")
    encoder = FrozenEncoder.create(backbone, str(tmp_path / "w.pth"), image_size=32)
    assert encoder.state["layers.0.weight"].shape == state["layers.0.weight"].shape
    for name, tensor in encoder.state.items():
        assert torch.equal(tensor, state[name]), name


def test_create_none_warns_and_image_size_is_resize_and_crop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = FrozenEncoder.create("squeezenet1_1", "none", image_size=64)
    assert "has random weights" in capsys.readouterr().err
    preprocess = encoder.spec.preprocess
    assert (preprocess.resize_size, preprocess.crop_size) == (64, 64)
    assert encoder.spec.weights == "none"
    full = FrozenEncoder.create("squeezenet1_1", "none").spec.preprocess
    weights = models.SqueezeNet1_1_Weights.DEFAULT
    assert full == Preprocess.of_weights(weights.transforms())
    assert replace(full, resize_size=64, crop_size=64) == preprocess
