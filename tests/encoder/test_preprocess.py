"""The stored transform is torchvision's own, but for the last bit of a few bytes in a thousand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models

from captioner.encoder.preprocess import (
    FILE_NAME,
    Preprocess,
    load_preprocess,
    save_preprocess,
)
from captioner.errors import ModelError

WEIGHTS = [
    models.ResNet50_Weights.IMAGENET1K_V1,
    models.ResNet50_Weights.IMAGENET1K_V2,
    models.EfficientNet_B0_Weights.DEFAULT,
    models.EfficientNet_V2_L_Weights.DEFAULT,
    models.Inception_V3_Weights.DEFAULT,
    models.ConvNeXt_Tiny_Weights.DEFAULT,
    models.RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E_V1,
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", [(640, 427), (100, 333), (231, 231)])
def test_equals_the_transforms_of_the_weights(
    weights: Any, size: tuple[int, int], picture: Callable[..., Image.Image]
) -> None:
    image = picture(3, size)
    preprocess = Preprocess.of_weights(weights.transforms())
    pixels = preprocess.pixels(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, preprocess.crop_size, preprocess.crop_size)
    images = preprocess.normalize(pixels[None])
    assert images.is_contiguous(memory_format=torch.channels_last)
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    steps = (images[0] - weights.transforms()(image)).abs() * 255 * std
    most, share = (1, 0.001) if preprocess.interpolation == "bilinear" else (2, 0.005)
    assert steps.max() < most + 0.01  # of 255
    assert (steps > 0.01).float().mean() < share


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(1, 1), (640, 427), (60, 60), (5000, 3)])
def test_one_colour_is_blank_and_a_faint_picture_is_not(
    size: tuple[int, int], interpolation: str
) -> None:
    preprocess = Preprocess(64, 60, interpolation)
    for colour in ("black", "white", (12, 130, 201)):
        assert preprocess.is_blank(preprocess.pixels(Image.new("RGB", size, colour)))
    faint = Image.linear_gradient("L").point(lambda value: value // 64 + 100).convert("RGB")
    assert not preprocess.is_blank(preprocess.pixels(faint))
    red = Image.merge("RGB", (faint.getchannel(0), *Image.new("RGB", faint.size).split()[1:]))
    assert not preprocess.is_blank(preprocess.pixels(red))


def test_filters_that_only_pillow_has_are_pillows(picture: Callable[..., Image.Image]) -> None:
    image = picture(3, (90, 60))
    pixels = Preprocess(30, 30, "lanczos").pixels(image)
    wanted = image.resize((45, 30), Image.Resampling.LANCZOS).crop((8, 0, 38, 30))
    assert pixels.equal(torch.from_numpy(np.array(wanted)).permute(2, 0, 1))


def test_the_largest_pictures_are_not_copied(
    picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(3, (90, 60))
    usual = Preprocess(30, 30).pixels(image).int()

    def copied(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("captioner.encoder.preprocess.MAX_COPIED", 90 * 60 - 1)
    monkeypatch.setattr("torch.nn.functional.interpolate", copied)
    assert (Preprocess(30, 30).pixels(image) - usual).abs().max() <= 1


def test_a_picture_of_the_right_size_is_not_touched(picture: Callable[..., Image.Image]) -> None:
    image = picture(3, (32, 32))
    assert (
        Preprocess(32, 32).pixels(image).equal(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    )


def test_every_cnn_of_torchvision_has_a_transform_that_can_be_stored(tmp_path: Path) -> None:
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            preprocess = Preprocess.of_weights(weights.transforms())
            save_preprocess(tmp_path, [preprocess])
            assert load_preprocess(tmp_path) == [preprocess]


@settings()
@given(st.integers(1, 400), st.integers(1, 400))
def test_any_shape_of_picture_gives_the_same_shape_of_pixels(width: int, height: int) -> None:
    preprocess = Preprocess(32, 32)
    assert preprocess.pixels(Image.new("RGB", (width, height))).shape == (3, 32, 32)


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (7, 60_000), (60_001, 2)])
def test_a_thread_of_a_picture_is_cut_before_it_fills_the_memory(size: tuple[int, int]) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for axis in (0, 1):  # a small bright middle, where a crop off the centre would not be
        middle = pixels.shape[axis] // 2
        half = max(1, min(size))
        pixels.swapaxes(0, axis)[max(0, middle - half) : middle + half] += 100
    seen = Preprocess().pixels(Image.fromarray(pixels))
    assert seen.shape == (3, 224, 224)
    assert seen.min() >= 150


def test_the_cut_changes_nothing_that_can_be_seen(
    picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ((20, 900), (901, 20), (640, 31)):
        image = picture(1, size)
        whole = Preprocess(64, 56).pixels(image).int()
        with monkeypatch.context() as patch:
            patch.setattr("captioner.encoder.preprocess.MAX_PIXELS", 10_000)
            cut = Preprocess(64, 56).pixels(image).int()
        assert (cut - whole).abs().max() <= 12
        assert (cut - whole).abs().float().mean() < 2


def load(folder: Path, text: str | bytes) -> Preprocess:
    (folder / FILE_NAME).write_bytes(text.encode() if isinstance(text, str) else text)
    [preprocess] = load_preprocess(folder)
    return preprocess


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: cannot be read: No such"):
        load_preprocess(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "null", "3", '"text"', "{}", b"\xff\xfe", "{" * 50, "[" * 100_000],
    ids=lambda text: repr(text[:9]),
)
def test_what_is_no_config_is_a_model_error(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ModelError, match="not a preprocessor config"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resize_size", None),
        ("resize_size", "256"),
        ("resize_size", [256]),
        ("resize_size", True),
        ("resize_size", 0),
        ("resize_size", -3),
        ("resize_size", 4097),
        ("resize_size", 223.5),
        ("crop_size", 257),
        ("crop_size", {}),
        ("interpolation", "psychic"),
        ("interpolation", ["bilinear"]),
        ("interpolation", None),
        ("mean", 0.5),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, 0.5, 0.5]),
        ("mean", ["a", 0, 0]),
        ("mean", [None, 0, 0]),
        ("mean", "abc"),
        ("mean", [float("nan"), 0, 0]),
        ("mean", [10**400, 0, 0]),
        ("std", [0, 1, 1]),
        ("std", [-1, 1, 1]),
        ("std", [float("inf"), 1, 1]),
    ],
)
def test_a_hostile_value_is_a_model_error_that_names_the_file(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ModelError) as error:
        load(tmp_path, json.dumps(asdict(Preprocess()) | {key: value}))
    assert str(error.value).startswith(f"{tmp_path / FILE_NAME}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", Preprocess().as_dict())
def test_a_missing_value_is_named(tmp_path: Path, key: str) -> None:
    values = asdict(Preprocess())
    del values[key]
    with pytest.raises(ModelError, match=f"{key} is missing"):
        load(tmp_path, json.dumps(values))


def test_later_versions_may_add_values(tmp_path: Path) -> None:
    made = replace(Preprocess(), interpolation="bicubic", std=(1.0, 2.0, 3.0))
    assert load(tmp_path, json.dumps(asdict(made) | {"new": 1})) == made
