"""Several frozen CNNs as one: nothing but the concatenation is new."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.data.feature_store import FeatureStore
from captioner.data.prepare import open_encoder
from captioner.encoder.encoder import Encoder, FrozenEncoder, side_by_side
from captioner.encoder.preprocess import Preprocess
from captioner.errors import ModelError

import toys

CPU = torch.device("cpu")


def pixels(count: int = 3, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    shape = (count, 3, toys.SIZE, toys.SIZE)
    return torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)


def changed(part: FrozenEncoder, **preprocess: Any) -> FrozenEncoder:
    spec = replace(part.spec, preprocess=replace(part.spec.preprocess, **preprocess))
    return FrozenEncoder(spec, part.state, part.precision)


@pytest.fixture(scope="module")
def parts(tiny_encoder: FrozenEncoder) -> list[FrozenEncoder]:
    """Three CNNs, of two families, each with a normalisation of its own."""
    return [
        tiny_encoder,
        changed(toys.encoder(), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)),
        changed(toys.encoder(seed=1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_features_are_those_of_the_parts_in_their_order(
    parts: list[FrozenEncoder], count: int
) -> None:
    images = pixels(count)
    untouched = images.clone()
    for order in permutations(parts):
        together = Encoder(order)
        features = together(images)
        assert features.dtype == torch.float32
        assert features.shape == (count, together.feature_size) == (count, 1024 + 512 + 512)
        assert torch.equal(features, torch.cat([part(images) for part in order], dim=1))
    assert torch.equal(images, untouched)


def test_a_single_one_is_itself(parts: list[FrozenEncoder]) -> None:
    assert side_by_side(parts[:1]) is parts[0]
    assert parts[0].cnns == (parts[0],)
    assert not isinstance(side_by_side(parts), FrozenEncoder)


def test_what_the_program_asks_of_an_encoder(parts: list[FrozenEncoder]) -> None:
    together = Encoder(parts)
    assert together.cnns == tuple(parts)
    assert together.name == "shufflenet_v2_x0_5+squeezenet1_1+squeezenet1_1"
    assert (together.device, together.dtype) == (CPU, torch.float32)
    assert together.images_per_pass == parts[0].images_per_pass
    assert together.to_device(CPU) is together
    assert not any(module.training for module in together.train().modules())
    assert parts[0].network in together.modules()
    image = Image.new("RGB", (50, 40), (200, 100, 50))
    for part in parts:
        assert torch.equal(together.preprocess.pixels(image), part.preprocess.pixels(image))


def test_the_fingerprint_tells_parts_and_order(parts: list[FrozenEncoder]) -> None:
    whole: list[Encoder] = [Encoder(order) for order in permutations(parts)]
    whole += [Encoder(parts[:2]), Encoder(parts[1:]), *parts]
    whole += [Encoder([parts[0], changed(parts[1], mean=(0.5, 0.4, 0.31))])]
    whole += [Encoder([parts[0], changed(toys.encoder(seed=2))])]
    prints = [encoder.fingerprint() for encoder in whole]
    assert len(set(prints)) == len(prints)
    assert {len(fingerprint) for fingerprint in prints} == {32}
    assert Encoder(parts).fingerprint() == Encoder(parts).fingerprint()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize_size": 40}, "resize_size 32, 40"),
        ({"crop_size": 24}, "crop_size 32, 24"),
        ({"interpolation": "bicubic"}, "interpolation bilinear, bicubic"),
    ],
)
def test_parts_that_would_see_other_pixels_are_refused(
    parts: list[FrozenEncoder], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as error:
        Encoder([*parts, changed(parts[1], **change)])
    for words in ("shufflenet_v2_x0_5 and squeezenet1_1", said, "set encoder.image_size"):
        assert words in str(error.value)
    assert "std" not in str(error.value)


def test_parts_of_other_precision_are_refused(parts: list[FrozenEncoder]) -> None:
    other = FrozenEncoder(parts[1].spec, parts[1].state, "auto")
    with pytest.raises(ModelError, match="precision fp32, auto"):
        Encoder([parts[0], other])


def captioner_of(*parts: FrozenEncoder) -> Captioner:
    eyes, words = side_by_side(parts), toys.vocabulary()
    writer = toys.decoder(vocab_size=len(words), feature_size=eyes.feature_size)
    return Captioner(eyes, writer, words)


def test_a_model_directory_gives_each_part_back(
    parts: list[FrozenEncoder], tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    before = captioner_of(*parts)
    before.save(tmp_path / "model")
    after = Captioner.load(tmp_path / "model", "cpu")
    assert [part.spec for part in after.encoder.cnns] == [part.spec for part in parts]
    assert after.encoder.fingerprint() == before.encoder.fingerprint()
    images = [picture(seed) for seed in range(4)]
    features = before.encode(images)
    assert torch.equal(after.encode(images), features)
    assert after.search(features, n_best=3) == before.search(features, n_best=3)
    assert list(after.caption(images)) == list(before.caption(images))


def written(folder: Path, *parts: FrozenEncoder) -> tuple[Any, Any, set[str]]:
    captioner_of(*parts).save(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 1
    preprocess = json.loads((folder / "preprocessor_config.json").read_text())
    return config["encoder"], preprocess, set(load_file(folder / "model.safetensors"))


def test_one_cnn_is_written_without_a_list_and_several_with_one(
    parts: list[FrozenEncoder], tmp_path: Path
) -> None:
    encoder, preprocess, names = written(tmp_path, parts[0])
    assert encoder["backbone"] == "shufflenet_v2_x0_5"
    assert preprocess["crop_size"] == toys.SIZE
    assert {f"encoder.{name}" for name in parts[0].state} < names
    encoder, preprocess, names = written(tmp_path, *parts)
    assert [cnn["backbone"] for cnn in encoder] == [part.spec.backbone for part in parts]
    assert [one["mean"][0] for one in preprocess] == [0.485, 0.5, 0.0]
    each = enumerate(parts)
    assert {f"encoder.{i}.{name}" for i, part in each for name in part.state} < names


def test_a_store_of_several_is_named_after_all_and_says_what_they_are(
    parts: list[FrozenEncoder], tmp_path: Path
) -> None:
    together = Encoder(parts)
    store = FeatureStore.for_encoder(together, tmp_path)
    assert store.folder.name == f"{together.name}-{together.fingerprint()}"
    assert store.feature_size == together.feature_size
    about = json.loads((store.folder / "about.json").read_text())["encoder"]
    assert [one["preprocess"]["mean"][0] for one in about] == [0.485, 0.5, 0.0]
    many = FeatureStore.for_encoder(Encoder(parts * 20), tmp_path)
    assert len(many.folder.name) < 255


def config_of(image_size: int | None, *backbones: str) -> Config:
    encoder: list[dict[str, Any]] = [{"backbone": name, "weights": "none"} for name in backbones]
    encoder[0] |= {"image_size": image_size, "precision": "fp32"}
    return Config.model_validate({"encoder": encoder})


@pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")
def test_one_image_size_makes_any_cnns_see_alike() -> None:
    names = ("shufflenet_v2_x0_5", "efficientnet_b0")
    with pytest.raises(ModelError, match="interpolation bilinear, bicubic"):
        open_encoder(config_of(None, *names), CPU)
    encoder = open_encoder(config_of(32, *names), CPU)
    assert encoder.preprocess == Preprocess(32, 32, "bilinear")
    turned = open_encoder(config_of(32, *reversed(names)), CPU)
    assert turned.preprocess == Preprocess(32, 32, "bicubic")
    assert encoder.feature_size == turned.feature_size == 1024 + 1280
    alone = open_encoder(config_of(32, names[1]), CPU)
    assert isinstance(alone, FrozenEncoder)
    assert alone.fingerprint() == turned.cnns[0].fingerprint()
