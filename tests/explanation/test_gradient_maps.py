"""Gradient maps: nothing is lost on the way from the word to the places."""

from __future__ import annotations

import pytest
import torch
from explain_toys import SIDE, ids, pixels, pooled, restless
from torch import Tensor

from captioner.captioner import Captioner
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.encoder import FrozenEncoder, side_by_side
from captioner.encoder.last_map import last_map
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec
from captioner.errors import ModelError
from captioner.explanation.gradient import (
    END_OF_LINE,
    feature_gradients,
    gradient_maps,
    resized,
    whole_line,
)
from captioner.explanation.teacher_forcing import log_probs_of_words, members_of

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")


def mirrored() -> Captioner:
    captioner = restless()
    captioner.encoder.mirrored = True
    return captioner


def looking() -> Captioner:
    return restless(toys.encoder(grid=3), attention="spatial")


def together() -> Captioner:
    """Two decoders that read other columns; the second one looks at places."""
    looks = looking()
    width = looks.encoder.vector_size
    blind = restless(pooled(), seed=4).decoder
    members = [blind, looks.decoder]
    columns = [torch.arange(width), torch.arange(looks.encoder.feature_size)]
    return Captioner(looks.encoder, Ensemble(members, columns), looks.vocabulary)


MODELS = {
    "one CNN": restless,
    "two CNNs": lambda: restless(side_by_side([pooled(), pooled(seed=1)])),
    "mirrored": mirrored,
    "attention": looking,
    "ensemble": together,
    **{
        cell: lambda cell=cell: restless(cell=cell)
        for cell in ("rnn", "gru", "elman")  # the default is lstm
    },
}


def log_probs(captioner: Captioner, features: Tensor, token_ids: Tensor) -> Tensor:
    """Of each word of the caption, (A, T)."""
    with torch.no_grad():
        return log_probs_of_words(members_of(captioner.decoder, features), token_ids)


@pytest.mark.parametrize("name", MODELS)
def test_the_places_share_all_of_gradient_times_features(name: str) -> None:
    captioner = MODELS[name]()
    image, token_ids = pixels(captioner), ids(captioner)
    features = captioner.encoder.see(image).clone()
    parts = captioner.decoder, features, token_ids
    maps = gradient_maps(captioner.encoder, captioner.decoder, image, token_ids)
    gradients, average = feature_gradients(*parts, whole_line())
    expected = (gradients * features - average).sum(1)
    assert maps.shape[0] == len(token_ids) and min(maps.shape[1:]) > 1
    torch.testing.assert_close(maps.sum((1, 2)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_map_adds_up_to_what_the_image_changes(name: str) -> None:
    captioner = MODELS[name]()
    image, token_ids = pixels(captioner), ids(captioner)
    average = torch.zeros(1, captioner.encoder.feature_size)
    for member, columns in members_of(captioner.decoder, torch.arange(average.shape[1])[None]):
        of_places = member.attention.mean.repeat(member.places) if member.attention else None
        means = [member.init_hidden.mean] + ([] if of_places is None else [of_places])
        average[0, columns[0]] = torch.cat(means)
    now = log_probs(captioner, captioner.encoder.see(image).clone(), token_ids)
    before = log_probs(captioner, average, token_ids)
    maps = gradient_maps(captioner.encoder, captioner.decoder, image, token_ids, whole_line(200))
    changes = (now - before)[0]
    assert changes.abs().max() > 0.5
    torch.testing.assert_close(maps.sum((1, 2)), changes, atol=0.02, rtol=0.02)
    few = gradient_maps(captioner.encoder, captioner.decoder, image, token_ids)
    torch.testing.assert_close(few.sum((1, 2)), changes, atol=0.1, rtol=0.1)


def test_a_gradient_is_the_change_of_the_log_probability() -> None:
    captioner = restless()
    features = captioner.encoder.see(pixels(captioner)).clone()
    token_ids = ids(captioner)
    found = feature_gradients(captioner.decoder, features, token_ids, END_OF_LINE)
    direction = torch.randn(features.shape[1])
    step = 1e-3 * direction / direction.norm()
    change = log_probs(captioner, features + step, token_ids) - log_probs(
        captioner, features - step, token_ids
    )
    expected = change[0] / 2e-3 * direction.norm()
    torch.testing.assert_close(found.gradients @ direction, expected, atol=0.02, rtol=0.02)


def test_a_place_adds_its_activations_times_the_gradients() -> None:
    """For a CNN that pools by the mean; the average image of this decoder is zero."""
    captioner = restless()
    captioner.decoder.init_hidden.mean.zero_()
    image, token_ids = pixels(captioner), ids(captioner)
    _, feature_map = last_map(captioner.encoder, image)
    features = captioner.encoder.see(image).clone()
    found = feature_gradients(captioner.decoder, features, token_ids, whole_line())
    places = feature_map[0, 0].numel()
    expected = torch.einsum("tc,chw->thw", found.gradients, feature_map[0].detach()) / places
    maps = gradient_maps(captioner.encoder, captioner.decoder, image, token_ids)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)


def test_the_mirror_image_has_the_mirrored_map() -> None:
    captioner = mirrored()
    image, token_ids = pixels(captioner), ids(captioner)
    parts = captioner.encoder, captioner.decoder
    maps = gradient_maps(*parts, image, token_ids)
    other = gradient_maps(*parts, image.flip(-1), token_ids)
    torch.testing.assert_close(other, maps.flip(2))
    assert (maps - maps.flip(2)).abs().max() > 0.1 * maps.abs().max()


FAMILIES = (
    *("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18"),
    *("googlenet", "densenet121", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf"),
    *("convnext_tiny", "alexnet"),
)


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_flow_through_the_fast_form_of_every_family(
    backbone: str, precision: str, make_encoder
) -> None:
    cnn = make_encoder(backbone, image_size=SIDE, precision=precision)
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    vector, feature_map = last_map(cnn, image)
    torch.testing.assert_close(vector.detach(), cnn(image).clone())
    [gradient] = torch.autograd.grad(vector.sum(), feature_map)
    assert feature_map.shape[0] == 1 and min(feature_map.shape[2:]) > 1
    assert gradient.abs().max() > 0
    assert feature_map.shape[2] <= 6  # not an earlier one


def test_a_grid_changes_nothing_about_the_last_map() -> None:
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    plain, grid = pooled(), toys.encoder(grid=2, grid_channels=16)
    for one, other in zip(last_map(plain, image), last_map(grid, image), strict=True):
        torch.testing.assert_close(one, other)


def test_an_image_of_one_pixel_has_no_places() -> None:
    from conftest import random_state

    state = random_state("shufflenet_v2_x0_5")
    spec = EncoderSpec("shufflenet_v2_x0_5", {}, Preprocess(1, 1), "toy")
    cnn = FrozenEncoder(spec, state, "fp32")
    with pytest.raises(ModelError, match=r"1 pixels as a single place.*encoder\.image_size"):
        last_map(cnn, torch.zeros(1, 3, 1, 1, dtype=torch.uint8))


def test_a_map_of_other_size_keeps_its_sum_and_its_places() -> None:
    maps = torch.rand(2, 3, 3)
    torch.testing.assert_close(resized(maps, 3), maps)
    for size in (2, 4, 6, 7):
        torch.testing.assert_close(resized(maps, size).sum((1, 2)), maps.sum((1, 2)))
    torch.testing.assert_close(
        resized(maps, 6), maps.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    )
    torch.testing.assert_close(
        resized(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), 3),
        torch.tensor([[[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]) / 9,
    )


def test_maps_leave_no_gradient_behind_and_need_none_switched_on() -> None:
    captioner = restless()
    image, token_ids = pixels(captioner), ids(captioner)
    parts = captioner.encoder, captioner.decoder
    maps = gradient_maps(*parts, image, token_ids)
    assert not maps.requires_grad
    assert all(weight.grad is None for weight in captioner.decoder.parameters())
    for switch in (torch.no_grad, torch.inference_mode):
        with switch():
            torch.testing.assert_close(gradient_maps(*parts, image.clone(), token_ids), maps)
