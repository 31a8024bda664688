"""Finite weights whose arithmetic overflows: an error for the picture, never a caption or NaN."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from captioner.captioner import Captioner
from captioner.captioning.job import JobOptions, caption_to_file
from captioner.captioning.records import caption_files
from captioner.captioning.sources import list_images
from captioner.cli import main
from captioner.config import DecodingConfig
from captioner.errors import ImageError, ModelError
from captioner.search import SpecialIds, beam_search, sample
from captioner.training.run import train

import toys

COLOURS = list(toys.COLOURS)


def overflow(captioner: Captioner, what: str) -> Captioner:
    """Give the weights of one layer finite values that are far too large."""
    decoder = captioner.decoder
    with torch.no_grad():
        if what == "states":
            decoder.init_hidden.std.zero_()
        elif what == "scores":
            decoder.output.weight.fill_(3e38)
            decoder.to_embed.weight.fill_(3e38)
        else:
            network = captioner.encoder.cnns[0]
            network.state["features.12.expand1x1.weight"].fill_(3e38)
            return Captioner(
                type(network)(network.spec, network.state, "fp32"),
                decoder,
                captioner.vocabulary,
            )
    return captioner


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    return [toys.draw(tmp_path / "in" / f"{c}.png", c) for c in COLOURS]


@pytest.fixture(params=["features", "states", "scores"])
def broken(request) -> Captioner:
    return overflow(toys.captioner(cell="gru"), request.param)


SEARCHES = [
    {},
    {"beam_size": 1},
    {"search": "sample", "temperature": 0.5},
    {"search": "sample", "top_k": 2},
]


@pytest.mark.parametrize("decoding", SEARCHES)
def test_every_way_to_caption_says_so(broken, pictures, decoding):
    with pytest.raises(
        ImageError, match="the model computes NaN or infinity for this image"
    ) as error:
        broken.caption(pictures[0], **decoding)
    assert error.value.kind == "not_a_number"
    assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="computes NaN or infinity"):
        list(broken.caption(pictures, **decoding))
    assert list(broken.caption(pictures, on_error="skip", **decoding)) == [None] * len(pictures)
    items = list_images([str(pictures[0].parent)])
    records = list(caption_files(broken, items, broken.settings(**decoding)))
    assert [(r.status, r.kind, r.captions) for r in records] == [("error", "not_a_number", ())] * 6


def test_scores_and_vectors_are_refused(broken, pictures):
    with pytest.raises(ImageError, match="computes NaN or infinity"):
        broken.score(pictures[0], "a red square")
    with pytest.raises(ImageError, match=r"image 1 of 6: .* computes NaN or infinity"):
        broken.score(pictures, ["a red square", "a square"])


def test_a_text_without_numbers_is_refused():
    with pytest.raises(ModelError, match="computes NaN or infinity for a caption"):
        overflow(toys.captioner(cell="rnn"), "states").embed("a red square")


def test_features_without_numbers_are_refused(pictures):
    broken = overflow(toys.captioner(), "features")
    with pytest.raises(ImageError, match=r"image 1 of 2: .* features are not finite"):
        broken.encode([Image.open(p).convert("RGB") for p in pictures[:2]])
    sound = toys.captioner()
    features = torch.zeros(3, sound.encoder.feature_size)
    features[1, 2] = torch.nan
    with pytest.raises(ImageError, match=r"image 2 of 3: .* features are not finite"):
        sound.search(features)


@pytest.mark.parametrize("layer", ["0", "3.squeeze", "6.expand3x3", "10.expand1x1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_overflows_in_any_layer_of_the_cnn_is_seen(layer, precision):
    network = toys.captioner().encoder.cnns[0]
    network.state[f"features.{layer}.weight"].fill_(3e38)
    broken = type(network)(network.spec, network.state, precision)
    size = network.spec.preprocess.crop_size
    pixels = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    assert not broken.see(pixels).isfinite().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "decoding",
    [{"beam_size": 3}, {"beam_size": 1}, {"search": "sample"}, {"search": "sample", "top_k": 2}],
)
def test_the_others_of_a_batch_keep_their_captions(value, decoding):
    captioner = toys.captioner(hidden_size=16)
    torch.manual_seed(1)
    features = 3 * torch.randn(8, captioner.encoder.feature_size)
    options = captioner.settings(seed=3, **decoding)
    whole = captioner.search_each(features, options)
    features[[2, 5], 7] = value
    found = captioner.search_each(features, options)
    assert [i for i, each in enumerate(found) if isinstance(each, ImageError)] == [2, 5]
    assert all(isinstance(each, list) for each in whole)
    if "beam_size" in decoding:  # draws depend on their company
        sound = [i for i in range(8) if i not in (2, 5)]
        assert [found[i] for i in sound] == [whole[i] for i in sound]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("place", [0, 1, 4, slice(None)])  # never written, end, a word, all
def test_a_step_without_numbers_spoils_its_image_alone(value, at, place):
    """Whenever the step overflows, for whichever token, and whatever was found before."""
    if value == -torch.inf:
        place = slice(None)  # one word without probability is no mistake
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 6, 8, generator=generator)

    def step(_ids: Tensor, hidden: Tensor, _images: Tensor) -> tuple[Tensor, Tensor]:
        time, image = hidden[0, :, 0].long(), hidden[0, :, 1].long()
        logits = table[image, time]
        logits[(image == 1) & (time == at), place] = value
        return logits, hidden + torch.tensor([1.0, 0.0])

    hidden = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
    ids, options = SpecialIds(0, 1, (0,)), DecodingConfig(max_length=5, length_penalty=0)
    for found in (
        beam_search(step, hidden, ids, options, n_best=2),
        sample(step, hidden, ids, options, 40, generator),
    ):
        assert found.log_probs.isnan().all(1).tolist() == [False, True, False]
        assert found.scores.isnan().all(1).tolist() == [False, True, False]
        assert found.log_probs[[0, 2]].isfinite().all()


def test_a_job_lists_them_and_the_exit_code_says_so(pictures, tmp_path):
    overflow(toys.captioner(), "states").save(tmp_path / "model")
    arguments = ["caption", str(pictures[0].parent), "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["error"] * 6
    assert all(
        f"model {tmp_path / 'model'} computes NaN or infinity" in row["error"] for row in rows
    )
    told = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in told] == ["not_a_number"] * 6
    done = CliRunner().invoke(main, [*arguments, "--format", "jsonl"])
    assert done.exit_code == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows


def test_a_job_goes_on_with_the_same_bytes(pictures, tmp_path):
    overflow(toys.captioner(), "states").save(tmp_path / "model")
    captioner = Captioner.load(tmp_path / "model", "cpu")
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        done = caption_to_file(
            lambda: captioner,
            list_images([str(pictures[0].parent)]),
            tmp_path / name,
            model="toy",
            how=JobOptions(batch_size=2),
        )
        assert (done.failed, done.images) == (6, 6)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.fixture
def spoilt_run(tmp_path) -> Path:
    """A trained run whose weights overflow."""
    train(toys.config(tmp_path, epochs=1), tmp_path / "run", device="cpu")
    captioner = Captioner.load(tmp_path / "run", "cpu")
    overflow(captioner, "states").save(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_nothing_is_scored_and_the_doctor_says_why(spoilt_run):
    done = CliRunner().invoke(main, ["evaluate", "--model", str(spoilt_run)])
    assert done.exit_code == 1
    assert "captioner: error: " in done.stderr
    assert "computes NaN or infinity for this image" in done.stderr.splitlines()[-1]
    assert not (spoilt_run / "evaluation" / "scores.json").exists()
    done = CliRunner().invoke(main, ["doctor", "--model", str(spoilt_run)])
    assert done.exit_code == 1
    assert "problem  numbers" in done.stdout
