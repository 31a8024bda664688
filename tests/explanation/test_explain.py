"""`Captioner.explain`: a caption, its words, and one map for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import draw
from explain_toys import CAPTION, SIDE, ids, pixels, restless
from PIL import Image

from captioner.encoder.encoder import FrozenEncoder
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec
from captioner.errors import ConfigError, ImageError
from captioner.explanation.gradient import gradient_maps
from captioner.explanation.occlusion import covered, occlusion_maps
from captioner.text import Caption

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")
PHOTO = draw(3, (96, 64))


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_the_best_caption_is_explained_as_the_search_found_it(method: str) -> None:
    captioner = restless()
    found = captioner.explain(PHOTO, method=method, alternatives=3)
    [[best]] = captioner.search(captioner.encode(PHOTO), alternatives=3)
    assert found.caption == best
    assert len(found.maps) == len(best.words) > 0
    assert found.method == method
    assert found.maps.dtype == torch.float32 and found.maps.isfinite().all()
    assert torch.equal(found.pixels, captioner.encoder.preprocess.pixels(PHOTO))
    assert found.visible == pytest.approx(2 / 3)


def test_a_given_caption_has_the_probabilities_that_it_is_scored_with() -> None:
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(80, SIDE), "toy")  # resized, then cropped
    captioner = restless(FrozenEncoder(spec, toys.encoder_state(), "fp32"))
    found = captioner.explain(PHOTO, CAPTION.capitalize() + ".", alternatives=3).caption
    assert (found.text, found.finished) == (CAPTION, True)
    assert [word.text for word in found.words] == [*CAPTION.split(), "<eos>"]
    assert found.log_prob == pytest.approx(captioner.score(PHOTO, CAPTION, per_token=False))
    assert sum(word.log_prob for word in found.words) == pytest.approx(found.log_prob, abs=1e-4)
    for word in found.words:
        others = [text for text, _ in word.alternatives]
        values = [log_prob for _, log_prob in word.alternatives]
        assert len(set(others)) == 3 and word.text not in others
        assert values == sorted(values, reverse=True)
        assert not {"<unk>", "<pad>", "<bos>"} & set(others)


def test_a_caption_of_the_search_is_kept_word_for_word() -> None:
    captioner = restless()
    [[best]] = captioner.search(captioner.encode(PHOTO), alternatives=1)
    found = captioner.explain(PHOTO, best)
    assert found.caption is best
    torch.testing.assert_close(found.maps, captioner.explain(PHOTO, best.text).maps)
    unfinished = replace(best, finished=False, words=())
    assert len(captioner.explain(PHOTO, unfinished).maps) == len(best.words) - best.finished


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_maps_from_known_features_are_those_of_the_image(method: str) -> None:
    captioner = restless()
    found = captioner.explain(PHOTO, method=method)
    features = captioner.encode(PHOTO)
    maps = captioner.map_words(found.pixels, features, found.caption, method=method)
    torch.testing.assert_close(maps, found.maps)
    with pytest.raises(ConfigError, match=r"features: must be a tensor \(1, "):
        captioner.map_words(found.pixels, features.repeat(2, 1), found.caption, method=method)
    with pytest.raises(ConfigError, match=r"pixels: must be a tensor, uint8 \(3, "):
        captioner.map_words(found.pixels.float(), features, found.caption, method=method)


def test_words_have_attention_where_the_model_looks() -> None:
    looking = restless(toys.encoder(grid=3), attention="spatial")
    for caption in (None, CAPTION):
        found = looking.explain(PHOTO, caption)
        assert all(word.attention for word in found.caption.words)
    assert not any(word.attention for word in restless().explain(PHOTO).caption.words)


def test_an_unknown_word_is_explained_as_unknown() -> None:
    captioner = restless()
    found = captioner.explain(PHOTO, "a purple square").caption
    assert found.text == "a <unk> square"
    assert found.log_prob == pytest.approx(
        captioner.score(PHOTO, "a purple square", per_token=False)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magic"}, r"method: must be 'gradient' or 'occlusion', given 'magic'"),
        ({"alternatives": -1}, r"alternatives: must be 0 to 1,000"),
        ({"caption": "a " * 201}, r"caption: must have 1 to 200 words"),
        ({"caption": 3}, r"caption: must be str or Caption or None"),
        ({"caption": Caption("", 0.0, 0.0, finished=False)}, r"must have 1 to 200 words"),
        ({"options": {}}, r"options: must be DecodingConfig or None"),
    ],
)
def test_bad_arguments_are_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restless().explain(PHOTO, **given)


def test_words_in_other_pieces_than_the_text_are_computed_anew() -> None:
    captioner = restless()
    best = captioner.explain(PHOTO, CAPTION).caption
    found = captioner.explain(PHOTO, replace(best, words=best.words[1:]))
    assert found.caption == best
    assert len(found.maps) == len(best.words)


def test_numbers_that_overflow_are_an_error_of_the_image() -> None:
    captioner = restless()
    with torch.no_grad():
        captioner.decoder.output.weight.fill_(torch.inf)
    for caption in (None, CAPTION):
        with pytest.raises(ImageError, match="not finite"):
            captioner.explain(PHOTO, caption)


def test_an_empty_caption_is_its_end() -> None:
    found = restless().explain(PHOTO, "")
    assert [word.text for word in found.caption.words] == ["<eos>"] and len(found.maps) == 1


def test_an_occlusion_map_holds_what_the_score_loses_under_each_patch() -> None:
    captioner = restless()
    image, token_ids = pixels(captioner), ids(captioner)
    maps = occlusion_maps(captioner.encoder, captioner.decoder, image, token_ids)
    hidden = covered(image, 7)
    scores = captioner.score([image[0], *hidden], CAPTION, per_token=False)
    lost = (scores[0] - scores[1:]).view(7, 7)
    torch.testing.assert_close(maps.sum(0), lost, atol=1e-4, rtol=1e-4)
    assert lost.abs().max() > 0.1


def test_a_patch_covers_its_place_and_half_of_the_neighbours() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 0, 0] = 64  # the mean of the picture is 1
    copies = covered(image, 4)  # places of 2 x 2, patches of 4 x 4
    assert len(copies) == 16
    expected = image[0].clone()
    expected[:, 1:5, 3:7] = 1
    assert torch.equal(copies[4 * 1 + 2], expected)
    assert torch.equal(copies[0][:, 3:], image[0][:, 3:])
    assert (copies[0][:, :3, :3] == 1).all()


def test_nothing_is_lost_where_there_is_nothing_to_cover() -> None:
    captioner = restless()
    maps = captioner.explain(Image.new("RGB", (SIDE, SIDE), (90, 60, 30)), CAPTION,
                             method="occlusion").maps  # fmt: skip
    assert maps.abs().max() < 1e-5


def test_a_mirrored_model_is_explained_in_both_views() -> None:
    captioner = restless()
    captioner.encoder.mirrored = True
    parts = captioner.encoder, captioner.decoder
    image, token_ids = pixels(captioner), ids(captioner)
    for maps_of in (gradient_maps, occlusion_maps):
        maps = maps_of(*parts, image, token_ids)
        torch.testing.assert_close(
            maps_of(*parts, image.flip(-1), token_ids), maps.flip(2), atol=1e-4, rtol=1e-3
        )
