"""Networks of timm, frozen: their features are timm's own. Random weights, no network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.data.feature_store import FeatureStore
from captioner.encoder import timm_networks
from captioner.encoder.backbones import build_backbone
from captioner.encoder.encoder import FrozenEncoder, side_by_side
from captioner.encoder.last_map import last_map
from captioner.encoder.preprocess import Preprocess, load_preprocess, save_preprocess
from captioner.encoder.timm_networks import build_timm, layout_of, open_timm
from captioner.encoder.weights import EncoderSpec
from captioner.errors import ModelError
from captioner.hub import check_reach

import toys

timm = pytest.importorskip("timm")

ROOT = Path(__file__).parents[2]
# One tiny network for each layout of the last feature map, and pixels of a side.
TINY = {
    "test_resnet": 96,  # channels first, batch norms with and without activations
    "test_efficientnet": 96,
    "test_nfnet": 96,  # weight-standardised convolutions
    "test_mambaout": 96,  # channels last
    "test_vit": 160,  # a class token before the patches; cannot be traced
    "test_vit_relpos": 160,  # patches alone
}
# The last feature map is a list of maps, or tokens whose places are not known.
NO_PLACES = {"coat", "crossvit", "efficientvim", "pit", "volo"}


def pixels(side: int, count: int = 3, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=draws).float()
    return functional.interpolate(coarse, side, mode="bilinear").to(torch.uint8)


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random weights, with batch norms as training would have left them."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


def network_of(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return lively(timm.create_model(name), seed)


def encoder_of(name: str, network: Any = None, precision: Any = "fp32", **grid: int) -> Any:
    state = (network or network_of(name)).state_dict()
    spec = EncoderSpec(f"timm:{name}", {}, Preprocess(TINY[name], TINY[name]), "toy")
    return FrozenEncoder(spec, state, precision, **grid)


def test_resnet50_of_timm_and_of_torchvision_give_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = lively(build_backbone("resnet50", {})).state_dict()
    save_file(state, tmp_path / "resnet50.safetensors")
    weights = str(tmp_path / "resnet50.safetensors")
    ours = FrozenEncoder.create("resnet50", weights, image_size=96, precision="fp32")
    theirs = FrozenEncoder.create("timm:resnet50", weights, image_size=96, precision="fp32")
    images = pixels(96)
    first, second = ours(images), theirs(images)
    assert first.shape == second.shape == (3, 2048)
    assert first.std() > 0.1
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    places = [
        FrozenEncoder(each.spec, each.state, "fp32", grid=2, grid_channels=64)(images)
        for each in (ours, theirs)
    ]
    assert torch.allclose(*places, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_features_are_those_that_the_classifier_of_timm_reads(name: str) -> None:
    network, images = network_of(name), pixels(TINY[name])
    encoder = encoder_of(name, network)
    with torch.inference_mode():
        normal = encoder.spec.preprocess.normalize(images)
        found = network.forward_head(network.forward_features(normal), pre_logits=True)
    assert encoder(images).shape == (3, encoder.feature_size)
    assert torch.allclose(encoder(images), found.flatten(1), rtol=1e-4, atol=1e-5)
    low = encoder_of(name, network, "bf16")(images)
    assert functional.cosine_similarity(encoder(images), low).min() > 0.99
    assert not torch.equal(encoder(images), low)


def test_batch_norms_fold_and_activations_stay() -> None:
    norms = [m for m in encoder_of("test_resnet").network.modules() if "BatchNorm" in str(type(m))]
    norms += [
        m for m in encoder_of("test_efficientnet").network.modules() if "BatchNorm" in str(type(m))
    ]
    assert norms == []


@pytest.mark.parametrize("name", TINY)
def test_places_are_those_of_the_last_feature_map(name: str) -> None:
    network, images = network_of(name), pixels(TINY[name])
    encoder = encoder_of(name, network, grid=2, grid_channels=10_000)
    with torch.inference_mode():
        found = network.forward_features(encoder.spec.preprocess.normalize(images))
    if name.startswith("test_vit"):
        patches = found[:, 1 if name == "test_vit" else 0 :]
        found = patches.transpose(1, 2).reshape(3, -1, 10, 10)
    elif name == "test_mambaout":
        found = found.permute(0, 3, 1, 2)
    means = functional.adaptive_avg_pool2d(found, 2).permute(0, 2, 3, 1)
    features = encoder(images)
    assert encoder.channels == found.shape[1]
    assert features.shape[1] == encoder.vector_size + 4 * encoder.channels
    assert torch.allclose(
        features[:, encoder.vector_size :], means.flatten(1), rtol=1e-4, atol=1e-5
    )
    assert torch.allclose(
        features[:, : encoder.vector_size], encoder_of(name, network)(images), atol=1e-5
    )


def test_places_of_a_transformer_are_sketched_and_mirrored() -> None:
    encoder, images = encoder_of("test_vit", grid=5, grid_channels=16), pixels(160)
    assert encoder.sizes == {"feature_size": 64 + 25 * 16, "places": 25, "channels": 16}
    plain, mirrored = encoder(images.flip(-1)), encoder.mirror(images)
    assert torch.equal(plain[:, :64], mirrored[:, :64])
    rows = plain[:, 64:].unflatten(1, (5, 5, 16)).flip(2).flatten(1)
    assert torch.equal(rows, mirrored[:, 64:])
    encoder.mirrored = True
    assert torch.allclose(encoder.see(images), (encoder(images) + mirrored) / 2, atol=1e-6)


def test_a_cnn_of_torchvision_stands_beside_a_transformer() -> None:
    other = FrozenEncoder.create("shufflenet_v2_x0_5", "none", image_size=160, precision="fp32")
    vit = FrozenEncoder.create(
        "timm:test_vit", "none", image_size=160, like=other.spec.preprocess, precision="fp32"
    )
    images = pixels(160)
    both = side_by_side([other, vit])
    assert both.name == "shufflenet_v2_x0_5+timm:test_vit"
    assert torch.equal(both(images), torch.cat((other(images), vit(images)), 1))
    squashed = replace(vit.spec, preprocess=replace(vit.spec.preprocess, squash=True))
    with pytest.raises(ModelError, match=r"squash False, True"):
        side_by_side([other, FrozenEncoder(squashed, vit.state, "fp32")])


def test_a_model_directory_holds_all_but_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toys.captioner(encoder_of("test_vit", grid=2, grid_channels=8), attention="spatial")
    squash = replace(made.encoder.spec.preprocess, squash=True)
    made.encoder.spec = replace(made.encoder.spec, preprocess=squash)
    made.save(tmp_path / "model")
    monkeypatch.setattr(timm.models._hub, "load_state_dict_from_hf", None)  # never downloads
    again = Captioner.load(tmp_path / "model", "cpu")
    assert again.encoder.spec == made.encoder.spec
    assert again.encoder.fingerprint() == made.encoder.fingerprint()
    image = Image.effect_noise((200, 160), 80).convert("RGB")
    assert torch.equal(again.encode(image), made.encode(image))
    assert again.caption(image) == made.caption(image)
    assert not any(name.startswith("head.") for name in again.encoder.state)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm:test_vit needs timm: pip install 'captioner\[tim"):
        Captioner.load(tmp_path / "model", "cpu")


def test_the_feature_store_takes_its_rows(tmp_path: Path) -> None:
    encoder = encoder_of("test_vit")
    store = FeatureStore.for_encoder(encoder, tmp_path)
    assert store.folder.name == f"timm-test_vit-{encoder.fingerprint()}"
    store.append([b"0" * 16], encoder(pixels(160, 1)).half().numpy())
    assert len(FeatureStore.for_encoder(encoder, tmp_path)) == 1
    other = encoder_of("test_vit", network_of("test_vit", seed=1))
    assert len(FeatureStore.for_encoder(other, tmp_path)) == 0
    assert len([*tmp_path.iterdir()]) == 2  # other weights, another store


def test_frozen_for_good() -> None:
    encoder = encoder_of("test_efficientnet").train()
    before, images = encoder.fingerprint(), pixels(96)
    features = encoder(images)
    assert not any(weights.requires_grad for weights in encoder.network.parameters())
    assert not any(layer.training for layer in encoder.network.modules())
    assert torch.equal(encoder(images), features)
    assert encoder.fingerprint() == before


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_by_path_are_strict(tmp_path: Path, ending: str) -> None:
    network, path = network_of("test_resnet"), tmp_path / f"mine.{ending}"
    state = network.state_dict()
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    encoder = FrozenEncoder.create("timm:test_resnet", str(path), precision="fp32")
    assert encoder.spec.weights == path.name
    assert torch.equal(encoder.state["conv1.0.weight"], state["conv1.0.weight"])
    del state["layer1.0.conv1.weight"]
    state["more.weight"] = torch.zeros(2)
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    with pytest.raises(ModelError) as error:
        FrozenEncoder.create("timm:test_resnet", str(path))
    assert "missing: layer1.0.conv1.weight; unexpected: more.weight" in str(error.value)
    assert "\n" not in str(error.value)


def downloads(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[str]:
    """Answer every download of timm with `found`, a network or an error; return the names."""
    asked, create = [], timm.create_model

    def answer(name: str, pretrained: bool = False, **args: Any) -> Any:
        if not pretrained:
            return create(name, **args)
        asked.append(name)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(timm, "create_model", answer)
    monkeypatch.setattr(timm_networks, "check_reach", lambda repository: None)
    return asked


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        ("timm:resnet10t", "DEFAULT"),
        ("timm:resnet10t.c3_in1k", "DEFAULT"),
        ("timm:resnet10t", "c3_in1k"),
    ],
)
def test_a_tag_names_weights_and_their_preprocessing(
    backbone: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of("resnet10t")
    asked = downloads(monkeypatch, network)
    encoder = FrozenEncoder.create(backbone, weights)
    assert asked == ["resnet10t.c3_in1k"]
    assert encoder.spec.backbone == "timm:resnet10t.c3_in1k"
    assert encoder.spec.weights == "c3_in1k"
    config = timm.data.resolve_model_data_config(network)
    assert encoder.spec.preprocess == Preprocess(
        resize_size=int(config["input_size"][1] / config["crop_pct"]),
        crop_size=config["input_size"][1],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    assert torch.equal(encoder.state["conv1.0.weight"], network.state_dict()["conv1.0.weight"])


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads(monkeypatch, OSError("no route\nto host"))
    with pytest.raises(ModelError) as error:
        FrozenEncoder.create("timm:resnet10t")
    assert str(error.value).startswith("encoder.weights: timm could not download resnet10t.c3_in1k")
    assert "set encoder.weights to the path" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_network_nothing_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = downloads(monkeypatch, network_of("test_resnet"))
    monkeypatch.setattr(timm_networks, "check_reach", check_reach)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"could not download test_resnet.r160_in1k \(hub:timm/te"):
        FrozenEncoder.create("timm:test_resnet")
    assert asked == []
    (tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots").mkdir(parents=True)
    FrozenEncoder.create("timm:test_resnet")  # the cache may have it
    assert asked == ["test_resnet.r160_in1k"]


@pytest.mark.parametrize(
    ("backbone", "weights", "args", "message"),
    [
        ("timm:resnet5", "none", {}, r"no model 'resnet5'; did you mean timm:resnet"),
        ("timm:hf-hub:someone/else", "none", {}, r"no model 'hf-hub:someone/else'"),
        ("timm:local-dir:.", "none", {}, r"no model 'local-dir:'"),
        ("timm:", "none", {}, r"no model "),
        ("timm:resnet50.best", "none", {}, r"no weights 'best' of resnet50; known: a1_in1k, "),
        ("timm:resnet50", "best", {}, r"neither a file nor weights of timm:resnet50 \(known: a1"),
        ("timm:test_vit", "none", {"depht": 3}, r"builder_args: timm:test_vit refuses .*depht"),
        ("timm:test_vit", "none", {"checkpoint_path": "x"}, r"checkpoint_path is not an argum"),
        ("timm:test_vit", "none", {"pretrained": True}, r"pretrained is not an argument"),
        ("timm:test_vit", "none", {"pretrained_cfg": {}}, r"pretrained_cfg is not an argument"),
        ("timm:test_vit", "none", {"img_size": 100}, r"test_vit .*\b(100|img_size)"),
    ],
)
def test_what_timm_has_not_is_refused_in_one_line(
    backbone: str, weights: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        FrozenEncoder.create(backbone, weights, builder_args=args)
    assert "\n" not in str(error.value)


def test_image_size_reaches_a_network_for_one_size() -> None:
    encoder = FrozenEncoder.create("timm:vit_tiny_patch16_224", "none", image_size=64, grid=2)
    assert encoder.spec.builder_args == {"img_size": 64}
    assert encoder.spec.preprocess.crop_size == 64
    assert encoder(pixels(64)).shape == (3, 192 + 4 * 192)
    by_args = FrozenEncoder.create(
        "timm:vit_tiny_patch16_224", "none", builder_args={"img_size": 64}
    )
    assert by_args.spec.preprocess.crop_size == 64


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_tiny.in12k_ft_in1k_384"])
def test_pixels_are_those_of_the_transform_of_timm(name: str) -> None:
    network = timm.create_model(name)
    encoder_spec = FrozenEncoder.create(f"timm:{name}", "none").spec
    config = timm.data.resolve_model_data_config(network)
    assert encoder_spec.preprocess.squash == (config["crop_mode"] == "squash")
    transform = timm.data.create_transform(**config, is_training=False)
    draws = np.random.RandomState(0).randint(0, 256, (12, 20, 3), dtype=np.uint8)
    image = Image.fromarray(draws).resize((500, 300), Image.Resampling.BICUBIC)
    ours = encoder_spec.preprocess.normalize(encoder_spec.preprocess.pixels(image)[None])[0]
    assert (ours - transform(image)).abs().max() < 0.05  # three of 255 values


def test_a_squashed_image_is_seen_whole(tmp_path: Path) -> None:
    squashed = Preprocess(64, 64, squash=True)
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (0, 0, 30, 100))
    left = squashed.pixels(image)[2, 32, :4]
    assert left.min() > 200  # the blue edge
    assert squashed.pixels(image).shape == (3, 64, 64)
    assert squashed.pixels(Image.new("RGB", (20_000, 8), "red")).shape == (3, 64, 64)
    assert squashed.seen(300, 100) == (0, 0, 1, 1)
    assert squashed.visible(300, 100) == 1
    lanczos = replace(squashed, interpolation="lanczos")
    assert lanczos.pixels(image)[2, 32, :4].min() > 200
    save_preprocess(tmp_path, [squashed])
    assert load_preprocess(tmp_path) == [squashed]
    save_preprocess(tmp_path, [Preprocess()])
    assert "squash" not in json.loads((tmp_path / "preprocessor_config.json").read_text())


def test_a_gradient_finds_the_map_of_a_cnn_only() -> None:
    cnn = encoder_of("test_resnet", grid=2, grid_channels=8)
    vector, found = last_map(cnn, pixels(96, 1))
    assert vector.shape == (1, cnn.vector_size)
    assert found.shape[1:] == (cnn.vector_size, 3, 3)
    for name in ("test_vit", "test_mambaout"):
        encoder = encoder_of(name)
        with pytest.raises(ModelError, match=r"explain by occlusion \(--method occlusion\)"):
            last_map(encoder, pixels(TINY[name], 1))
        image = Image.effect_noise((160, 160), 80).convert("RGB")
        explained = toys.captioner(encoder).explain(image, "a red square", method="occlusion")
        assert explained.maps.isfinite().all()


def test_weights_that_are_drawn_until_they_fit_take_no_time() -> None:
    torch.full((2**22,), torch.nan)  # what the allocator gives next
    network = build_timm("timm:hiera_tiny_224", {})
    assert network.num_features == 768


def test_hostile_sizes_allocate_nothing(tmp_path: Path) -> None:
    spec = encoder_of("test_vit").spec
    state = encoder_of("test_vit").state
    for args in ({"embed_dim": 2**20}, {"depth": 2**40}, {"depth": 10**5}):
        with pytest.raises(ModelError) as error:
            open_timm(replace(spec, builder_args=args), state, 0, 256)
        assert "\n" not in str(error.value)


def families() -> dict[str, str]:
    """Return one model of each of timm's files."""
    modules = timm.models._registry._model_to_module
    found: dict[str, str] = {}
    for name in timm.list_models():
        found.setdefault(modules[name], name)
    return found


@pytest.mark.slow
def test_every_family_has_a_vector_and_all_but_five_have_places() -> None:
    guide = (ROOT / "docs/guides/train.md").read_text(encoding="utf-8")
    kinds: dict[str, str] = {}
    for family, name in families().items():
        backbone = f"timm:{'sequencer2d_s' if family == 'sequencer' else name}"
        network = build_timm(backbone, {}, device="meta")
        side = timm.data.resolve_model_data_config(network)["input_size"][1]
        layout = layout_of(network, backbone, side)
        assert layout.vector_size > 0
        kinds[family] = layout.kind
        assert (layout.kind == "none") == (layout.channels == 0)
    assert {family for family, kind in kinds.items() if kind == "none"} == NO_PLACES & kinds.keys()
    assert len(kinds) >= 90
    if f"timm {timm.__version__}." in guide:
        assert f"of all {len(kinds)} families" in guide
        assert f"of {len(kinds) - len(NO_PLACES)} families" in guide
        assert all(f"`{family}`" in guide for family in NO_PLACES)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_tiny_240"])
def test_a_network_without_known_places_gives_a_vector_alone(name: str) -> None:
    encoder = FrozenEncoder.create(f"timm:{name}", "none", precision="fp32")
    assert encoder(pixels(encoder.preprocess.crop_size, 1)).isfinite().all()
    with pytest.raises(ModelError, match=r"no last feature map that is known; set decoder.atten"):
        FrozenEncoder(encoder.spec, encoder.state, "fp32", grid=2)
