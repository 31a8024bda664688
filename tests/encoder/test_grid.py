"""The grid: the last feature map of a CNN, beside its vector, from one pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.encoder.backbones import build_backbone, remove_head
from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.encoder.grid import with_grid
from captioner.errors import ModelError
from captioner.model_dir import join_models, read_model

import toys

# Families whose vector is the mean of the last map; in the others, layers follow the mean.
MEANS = ["resnet18", "densenet121", "googlenet", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5"]
OTHERS = ["vgg11_bn", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny"]


def network(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    built = build_backbone(name, {}).eval()
    return built, remove_head(built)


def pixels(count: int = 3) -> torch.Tensor:
    shape = (count, 3, 64, 64)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("name", [*MEANS, *OTHERS])
def test_the_vector_stays_and_the_places_are_those_of_the_last_map(name):
    plain, width = network(name)
    images = torch.randn(2, 3, 96, 96)
    both, channels = with_grid(plain, 3, 96, 4096)
    with torch.inference_mode():
        vector, found = plain(images).flatten(1), both(images)
    assert found.shape == (2, width + 9 * channels)
    assert torch.equal(found[:, :width], vector)
    places = found[:, width:].view(2, 9, channels)
    assert places.std(1).max() > 0
    if name in MEANS:
        torch.testing.assert_close(places.mean(1), vector, atol=1e-4, rtol=1e-4)


def test_places_stand_row_by_row():
    plain = nn.Sequential(
        nn.AvgPool2d(8), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(1, 3, 32, 32)
    both, channels = with_grid(plain, 2, 32, 4096)
    maps = plain[:2](images)
    places = both(images)[0, 2:].view(2, 2, channels)
    torch.testing.assert_close(places[0, 1], maps[0, :, :2, 2:].mean((1, 2)))
    torch.testing.assert_close(places[1, 0], maps[0, :, 2:, :2].mean((1, 2)))


def test_an_image_of_one_place_is_refused():
    with pytest.raises(ModelError, match="images of 32 pixels have no places"):
        with_grid(network("mobilenet_v2")[0], 7, 32, 4096)


def test_several_cnns_put_their_vectors_first_and_share_the_places():
    one, other = toys.encoder(grid=2), toys.encoder(seed=1, grid=2)
    both = Encoder([one, other])
    images = pixels()
    found, parts = both(images), [one(images), other(images)]
    assert found.shape[1] == both.feature_size == both.sizes["feature_size"]
    width, channels = one.vector_size, one.channels
    assert (both.vector_size, both.channels, both.grid) == (2 * width, 2 * channels, 2)
    torch.testing.assert_close(found[:, : 2 * width], torch.cat([p[:, :width] for p in parts], 1))
    places = found[:, 2 * width :].view(3, 4, 2 * channels)
    for part, wanted in zip(places.split(channels, 2), parts, strict=True):
        torch.testing.assert_close(part, wanted[:, width:].view(3, 4, channels))


def test_the_mirror_image_keeps_each_place_where_it_is():
    eyes = toys.encoder(grid=2)
    images = pixels()
    mirrored, places = eyes.mirror(images), lambda rows: rows[:, eyes.vector_size :]
    direct = eyes(images.flip(-1))
    assert torch.equal(mirrored[:, : eyes.vector_size], direct[:, : eyes.vector_size])
    grid = places(direct).view(3, 2, 2, -1)
    assert torch.equal(places(mirrored), grid[:, :, [1, 0]].flatten(1))
    eyes.mirrored = True
    symmetric = torch.cat((images, images.flip(-1)), dim=3)
    symmetric = functional.interpolate(symmetric.float(), size=(64, 64)).byte()
    symmetric = torch.maximum(symmetric, symmetric.flip(-1))
    torch.testing.assert_close(eyes.see(symmetric), (eyes(symmetric) + eyes.mirror(symmetric)) / 2)


def test_a_grid_has_features_of_its_own():
    kinds = [(0, 9), (1, 9), (2, 9), (2, 8)]
    assert len({toys.encoder(grid=g, grid_channels=c).fingerprint() for g, c in kinds}) == 4


def test_a_sketch_keeps_the_angles_between_places_and_not_their_numbers():
    plain, width = network("mobilenet_v2")
    images = torch.randn(2, 3, 96, 96)
    whole, channels = with_grid(plain, 3, 96, 4096)
    for most in (256, 300):
        sketched, fewer = with_grid(plain, 3, 96, most)
        assert (channels, fewer) == (1280, most)
        with torch.inference_mode():
            every, some = whole(images), sketched(images)
        assert torch.equal(every[:, :width], some[:, :width])
        places, sketch = every[:, width:].reshape(18, channels), some[:, width:].reshape(18, most)
        signs = torch.from_numpy(2.0 * np.random.RandomState(0).randint(0, 2, channels) - 1)
        for column in (0, 1, most - 1):
            parts = (places * signs)[:, column::most]
            torch.testing.assert_close(sketch[:, column].double(), parts.sum(1))
        cosine = functional.cosine_similarity
        angles = cosine(places[:, None], places[None], dim=2)
        torch.testing.assert_close(
            cosine(sketch[:, None], sketch[None], dim=2), angles, atol=0.15, rtol=0
        )


def test_bf16_keeps_the_sketch():
    exact = toys.encoder(grid=2, grid_channels=16)
    rounded = FrozenEncoder(exact.spec, exact.state, "bf16", 2, 16)
    assert exact.channels == 16
    found, wanted = rounded(pixels()), exact(pixels())
    assert functional.cosine_similarity(found, wanted).min() > 0.99


@pytest.mark.parametrize("order", [1, -1])
def test_an_ensemble_of_a_cnn_with_and_without_grid_sees_what_each_sees(tmp_path, order):
    models = []
    for grid, attention in ((0, "none"), (2, "spatial")):
        both = toys.encoder(grid=2)
        eyes = FrozenEncoder(both.spec, both.state, "fp32", grid)
        captioner = toys.captioner(eyes, attention=attention)
        captioner.encoder.mirrored = True
        captioner.save(tmp_path / attention)
        models.append((tmp_path / attention, read_model(tmp_path / attention)))
    encoder, ensemble = join_models(models[::order])
    images = torch.rand(2, 3, 64, 64).mul(255).byte()
    together = encoder.see(images)
    assert encoder.grid == 2
    for (_, model), columns in zip(models[::order], ensemble._columns, strict=True):
        torch.testing.assert_close(together[:, columns], model.encoder.see(images))


def test_models_of_different_grids_do_not_go_together(tmp_path):
    models = []
    for grid in (2, 3):
        toys.captioner(toys.encoder(grid=grid), attention="spatial").save(tmp_path / str(grid))
        models.append((tmp_path / str(grid), read_model(tmp_path / str(grid))))
    with pytest.raises(ModelError, match=r"different grids, 2 and 3; .*same encoder\.grid"):
        join_models(models)


@pytest.mark.parametrize(("name", "value"), [("grid", -2), ("grid_channels", 0)])
def test_a_damaged_grid_in_config_json_is_one_clear_line(
    name: str, value: int, tmp_path: Path
) -> None:
    toys.captioner(toys.encoder(grid=2, grid_channels=16), attention="spatial").save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ModelError, match=rf"config\.json: cannot be used: {name}: .*given {value}"):
        Captioner.load(tmp_path / "m", "cpu")
