import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.datasets import Example
from captioner.evaluation import retrieval
from captioner.evaluation.retrieval import caption_ranks, image_ranks, retrieve
from captioner.evaluation.run import evaluate
from captioner.metrics import Signature
from captioner.text import tokenize
from captioner.training.prepare import SplitTable
from captioner.training.run import train

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

# Three images, two captions of the first, one of each other.
OWNERS = np.array([0, 0, 1, 2])
MATRIX = np.array(
    [
        [-1.0, -9.0, -2.0, -3.0],
        [-2.0, -8.0, -1.5, -1.0],
        [-3.0, -7.0, -1.0, -2.0],
    ]
)


def test_ranks_of_a_planted_matrix():
    # caption 1 is least probable with its own image; captions 2 and 3 come second
    assert image_ranks(MATRIX, OWNERS).tolist() == [1, 3, 2, 2]
    # image 0 finds its better caption first, images 1 and 2 prefer each other's
    assert caption_ranks(MATRIX, OWNERS).tolist() == [1, 2, 2]


def test_a_tie_is_lost():
    flat = np.zeros((3, 4))
    assert image_ranks(flat, OWNERS).tolist() == [3, 3, 3, 3]
    assert caption_ranks(flat, OWNERS).tolist() == [3, 4, 4]  # own captions are no rivals


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_sorting(seed):
    draws = np.random.default_rng(seed)
    owners = np.sort(draws.permutation(np.r_[np.arange(7), draws.integers(0, 7, 5)]))
    matrix = draws.normal(size=(7, 12))
    for caption, image in enumerate(owners):
        order = np.argsort(-matrix[:, caption]).tolist()
        assert image_ranks(matrix, owners)[caption] == 1 + order.index(image)
    for image in range(7):
        order = np.argsort(-matrix[image])
        rivals = [caption for caption in order if owners[caption] != image]
        best = max(matrix[image, owners == image])
        assert caption_ranks(matrix, owners)[image] == 1 + sum(matrix[image, rivals] > best)


def table(captions_of_each):
    """Images by colour; how many captions each has."""
    colours = list(toys.COLOURS)[: len(captions_of_each)]
    texts = [[f"a {c} square", f"the {c} square", f"a {c} square in the middle"] for c in colours]
    texts = [of_image[:n] for of_image, n in zip(texts, captions_of_each, strict=True)]
    features = torch.randn(len(colours), 512, generator=torch.Generator().manual_seed(0)).half()
    examples = tuple(
        Example(Path(f"{c}.png"), tuple(t), "dev", c) for c, t in zip(colours, texts, strict=True)
    )
    return SplitTable(examples, features, [[tokenize(t) for t in texts_] for texts_ in texts])


@pytest.fixture
def planted(monkeypatch):
    """Have the model say what a test wants, in the order it asks; returns what was asked."""

    def plant(matrix):
        asked = []

        def log_likelihoods(decoder, hidden, captions):
            asked.extend(map(tuple, captions))
            words = toys.vocabulary()
            known = {tuple(words.encode(c)): i for i, c in enumerate(plant.captions)}
            return torch.tensor(matrix)[:, [known[tuple(c)] for c in captions]]

        monkeypatch.setattr(retrieval, "log_likelihoods", log_likelihoods)
        return asked

    return plant


def test_a_caption_that_suits_every_image_finds_none(planted):
    split = table([1, 1, 1])
    planted.captions = [image[0] for image in split.references]
    planted([[-5.0, -7.0, -1.0], [-7.0, -5.0, -1.0], [-7.0, -7.0, -0.9]])
    scores = retrieve(toys.captioner(), split, split="dev", resamples=0)
    assert scores["caption_r1"].value == 1
    assert Signature.parse(scores["caption_r1"].signature)["by"] == "likelihood_ratio"
    assert Signature.parse(scores["image_r1"].signature)["by"] == "likelihood"


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_scores_of_a_planted_matrix(planted, monkeypatch, chunk):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    split = table([2, 1, 1])
    planted.captions = [caption for image in split.references for caption in image]
    asked = planted(MATRIX)
    scores = retrieve(toys.captioner(), split, split="dev", captions_each=2, resamples=50)
    assert len(asked) == 4
    assert {name: score.value for name, score in scores.items()} == {
        "image_r1": 0.25,
        "image_r5": 1.0,
        "image_r10": 1.0,
        "image_rank": 2.0,
        "caption_r1": pytest.approx(1 / 3),
        "caption_r5": 1.0,
        "caption_r10": 1.0,
        "caption_rank": 2.0,
    }
    assert scores["image_r1"].per_image.tolist() == [0.5, 0.0, 0.0]
    assert scores["image_rank"].per_image.tolist() == [2.0, 2.0, 2.0]
    for score in scores.values():
        low, high = score.interval
        assert low <= score.value <= high
        assert json.dumps(score.as_dict())
    signature = Signature.parse(scores["image_r1"].signature)
    assert signature.name == "imager1"
    assert (signature["images"], signature["captions"], signature["split"]) == ("3", "4", "dev")


def test_the_first_caption_of_each_image_is_asked_for(planted):
    split = table([3, 3, 1])
    planted.captions = [image[0] for image in split.references]
    planted(np.eye(3))
    scores = retrieve(toys.captioner(), split, split="dev", resamples=0)
    assert scores["image_r1"].value == scores["caption_r1"].value == 1
    assert scores["image_rank"].interval is None
    assert Signature.parse(scores["image_rank"].signature)["captions"] == "3"


def test_only_so_many_images_take_part(planted, monkeypatch):
    monkeypatch.setattr(retrieval, "IMAGES", 2)
    split = table([1, 1, 1])
    planted.captions = [image[0] for image in split.references]
    planted(np.eye(3)[:2])
    scores = retrieve(toys.captioner(), split, split="dev", resamples=0)
    assert Signature.parse(scores["image_r1"].signature)["images"] == "2"
    assert len(scores["image_r1"].per_image) == 2


def test_intervals_are_seeded_and_widen_with_doubt(planted):
    split = table([1] * 6)
    planted.captions = [image[0] for image in split.references]
    planted(np.eye(6) * [1, 1, 1, -1, -1, -1])

    def intervals(seed):
        found = retrieve(toys.captioner(), split, split="dev", resamples=3, seed=seed)
        return [score.interval for score in found.values()]

    assert intervals(0) == intervals(0)
    assert len({str(intervals(seed)) for seed in range(8)}) > 4
    first = retrieve(toys.captioner(), split, split="dev")
    assert first["image_r1"].value == 0.5
    low, high = first["image_r1"].interval
    assert 0 <= low < 0.5 < high <= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    config = toys.config(folder, epochs=20)
    train(config, folder / "run", device="cpu")
    return folder, config


def test_a_trained_model_finds_its_colours(trained):
    from captioner.models.captioner import Captioner

    folder, config = trained
    captioner = Captioner.load(folder / "run", "cpu")
    result = evaluate(captioner, config, folder / "out", split="dev", retrieval=2, say=lambda _: 0)
    found = result.retrieval
    assert Signature.parse(found["image_r1"].signature)["captions"] == "12"
    assert found["image_r1"].value > 0.6  # by chance 1 in 6
    assert found["image_rank"].value <= 2
    stored = json.loads((folder / "out" / "scores.json").read_text())
    assert stored["image_r1"] == json.loads(json.dumps(found["image_r1"].as_dict()))
    assert set(found).isdisjoint(result.scores)
    matrix = captioner.score(
        [e.image for e in result.table.examples], [f"a {colour} square" for colour in toys.COLOURS]
    )
    names = [e.captions[0].split()[1] for e in result.table.examples]
    best = [list(toys.COLOURS)[i] for i in matrix.argmax(1).tolist()]
    assert sum(a == b for a, b in zip(names, best, strict=True)) >= 4
    assert Counter(best).most_common(1)[0][1] <= 3


def test_without_being_asked_nothing_is_retrieved(trained):
    from captioner.models.captioner import Captioner

    folder, config = trained
    captioner = Captioner.load(folder / "run", "cpu")
    result = evaluate(captioner, config, folder / "plain", split="dev", say=lambda _: 0)
    assert result.retrieval == {}
    assert "image_r1" not in json.loads((folder / "plain" / "scores.json").read_text())
    assert math.isfinite(result.scores["bleu_1"].value)
