"""Scores of several captions an image: values computed by hand, properties, second opinions."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import ConfigError, DataError
from captioner.metrics import (
    MetricInputs,
    SystemCaptions,
    compare_captions,
    read_signature,
    score_captions,
)

SETS = ("diversity", "self_cider", "novel")
NAMES = ("div_1", "div_2", "mbleu_4", "self_cider", "novel")
REFERENCES = [
    [list("abcd"), list("abce")],
    [list("fghij")],
    [list("klmn"), list("opqr")],
]
TRAIN = [list("abcd"), list("xyz")]
CAPTIONS = st.lists(
    st.lists(st.text("abcfgkz", min_size=0, max_size=7), min_size=2, max_size=5),
    min_size=3,
    max_size=3,
)


def system(*images: list[str]) -> SystemCaptions:
    """Captions whose letters are their words."""
    return SystemCaptions(images, words=list)


def scores_of(captions: SystemCaptions, **options):
    inputs = MetricInputs(train=TRAIN)
    return score_captions(captions, REFERENCES, metrics=SETS, inputs=inputs, **options)


def values(captions: SystemCaptions) -> dict[str, float]:
    return {name: score.value for name, score in scores_of(captions).items()}


def test_known_values() -> None:
    scores = scores_of(system(["abcd", "abce"], ["fghij", "fghij"], ["abcd", "wxyz", "wxyz"]))
    assert list(scores) == [*NAMES]
    # 5 words of 8 and 4 pairs of 8; 5 and 4 of 10; 8 and 6 of 12.
    np.testing.assert_allclose(scores["div_1"].per_image, [5 / 8, 5 / 10, 8 / 12])
    np.testing.assert_allclose(scores["div_2"].per_image, [4 / 8, 4 / 10, 6 / 12])
    assert scores["div_1"].value == pytest.approx(np.mean([5 / 8, 5 / 10, 8 / 12]))
    # Of abcd and abce each: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1.
    # fghij: all. Of the third image: wxyz twice, abcd nothing.
    np.testing.assert_allclose(scores["mbleu_4"].per_image, [0, 1, 2 / 3])
    matched = np.array([6 + 10 + 8, 4 + 8 + 6, 2 + 6 + 4, 0 + 4 + 2])
    possible = np.array([8 + 10 + 12, 6 + 8 + 9, 4 + 6 + 6, 2 + 4 + 3])
    expected = math.prod(matched / possible) ** (1 / 4)
    assert scores["mbleu_4"].value == pytest.approx(expected)
    np.testing.assert_allclose(scores["novel"].per_image, [1 / 2, 1, 2 / 3])
    assert scores["novel"].value == pytest.approx(5 / 7)


def test_self_cider_by_hand() -> None:
    # All n-grams of the references are in one image of three, unknown ones count as if they were:
    # each weighs log 3. The cosine of abcd and abce is 3/4, 2/3, 1/2 and 0 for n = 1 to 4.
    same = (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4
    roots = math.sqrt(1 + same), math.sqrt(1 - same)
    two = math.log(sum(roots) / roots[0], 2)
    # Of three captions, two are equal: eigenvalues 2, 1 and 0.
    three = math.log((math.sqrt(2) + 1) / math.sqrt(2), 3)
    scores = scores_of(system(["abcd", "abce"], ["fghij", "fghij"], ["abcd", "wxyz", "wxyz"]))
    np.testing.assert_allclose(scores["self_cider"].per_image, [two, 0, three], atol=1e-12)
    assert scores["self_cider"].value == pytest.approx((two + 0 + three) / 3)


def test_equal_captions_are_not_diverse() -> None:
    got = values(system(["fghij"] * 4, ["abcd"] * 3, ["klmnop"] * 2))
    assert got["div_1"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 2) / 3)
    assert got["mbleu_4"] == pytest.approx(1)
    assert got["self_cider"] == 0
    assert got["novel"] == pytest.approx(6 / 9)


def test_captions_without_a_common_word_are_as_diverse_as_can_be() -> None:
    got = values(system(["abcd", "efgh"], ["ijkl", "mnop", "qrst"], ["uvwx", "yz01"]))
    assert got["div_1"] == 1
    assert got["div_2"] == pytest.approx(3 / 4)  # a caption of four words has three pairs
    assert got["mbleu_4"] == 0
    assert got["self_cider"] == pytest.approx(1)


def test_captions_without_words() -> None:
    got = values(system(["", ""], ["", ""], ["", ""]))
    assert got == {"div_1": 0, "div_2": 0, "mbleu_4": 0, "self_cider": 0, "novel": 1}


@given(CAPTIONS, st.randoms())
def test_range_order_and_one_image_alone(images, rng) -> None:
    scores = scores_of(system(*images))
    shuffled = scores_of(system(*(rng.sample(each, len(each)) for each in images)))
    for name, score in scores.items():
        for value in (score.value, *score.per_image):
            assert -1e-12 <= value <= 1 + 1e-12
        np.testing.assert_allclose(shuffled[name].per_image, score.per_image, atol=1e-9)
        others = scores_of(system(images[0], ["k", "kk"], ["z", "zz"]))
        assert others[name].per_image[0] == pytest.approx(score.per_image[0], abs=1e-12)


@given(CAPTIONS)
def test_mbleu_is_bleu_against_the_other_captions(images) -> None:
    pairs = [
        (list(caption), [list(c) for c in each[:place] + each[place + 1 :]])
        for each in images
        for place, caption in enumerate(each)
    ]
    hypotheses, others = zip(*pairs, strict=True)
    bleu = score_captions(hypotheses, others, metrics=["bleu"])["bleu_4"].value
    assert values(system(*images))["mbleu_4"] == pytest.approx(bleu, abs=1e-12)


def test_self_cider_is_the_formula_computed_slowly() -> None:
    rng = random.Random(1)
    references = [[rng.choices("abcdefghij", k=8) for _ in range(3)] for _ in range(6)]
    images = [["".join(rng.choices("abcdefghijk", k=9)) for _ in range(4)] for _ in range(6)]
    got = score_captions(system(*images), references, metrics=["self_cider"])["self_cider"]

    def grams(text, n):
        return ["".join(text[i : i + n]) for i in range(len(text) - n + 1)]

    def vector(text, n):
        idf = {
            gram: math.log(6) - math.log(max(1, sum(
                any(gram in grams(caption, n) for caption in captions) for captions in references
            )))
            for gram in grams(text, n)
        }  # fmt: skip
        return {gram: grams(text, n).count(gram) * weight for gram, weight in idf.items()}

    def cosine(a, b):
        dot = sum(weight * b.get(gram, 0) for gram, weight in a.items())
        norms = math.prod(math.sqrt(sum(w * w for w in each.values())) for each in (a, b))
        return dot / norms if norms else 0

    for captions, value in zip(images, got.per_image, strict=True):
        kernel = np.zeros((4, 4))
        for (i, a), (j, b) in product(enumerate(captions), repeat=2):
            kernel[i, j] = np.mean([cosine(vector(a, n), vector(b, n)) for n in (1, 2, 3, 4)])
        roots = np.linalg.svd(kernel, compute_uv=False) ** 0.5
        assert value == pytest.approx(-math.log(roots.max() / roots.sum(), 4), abs=1e-9)


def test_intervals_and_signatures() -> None:
    captions = system(["abcd", "abce"], ["fghij", "fghik"], ["abcd", "wxyz", "wxyz"])
    scores = scores_of(captions, resamples=200, decode="sample,t0.7", split="dev")
    for name, score in scores.items():
        assert score.interval[0] <= score.value <= score.interval[1], name
        fields = read_signature(score.signature)
        assert fields["caps"] == "2-3"
        assert fields["decode"] == "sample,t0.7"
    assert read_signature(scores["mbleu_4"].signature)["smooth"] == "none"
    assert read_signature(scores["self_cider"].signature)["kernel"] == "cider"
    train = read_signature(scores["novel"].signature)["train"]
    assert train.startswith("2-")
    assert train != self_trained([*TRAIN, list("q")])
    assert train == self_trained([*TRAIN[::-1], TRAIN[0]])  # a set: neither order nor repeats


def self_trained(train: list[list[str]]) -> str:
    captions, inputs = system(["a"], ["b"], ["c"]), MetricInputs(train=train)
    score = score_captions(captions, REFERENCES, metrics=["novel"], inputs=inputs)["novel"]
    return read_signature(score.signature)["train"]


def test_one_caption_an_image_is_undefined_but_for_novel() -> None:
    scores = scores_of(system(["abcd"], ["fghij", "f"], ["q"]), resamples=10)
    for name in NAMES[:4]:
        assert math.isnan(scores[name].value)
        assert scores[name].interval is None
        assert scores[name].note == (
            "needs 2 captions or more for each image; 2 of 3 images have fewer"
        )
    assert scores["novel"].value == pytest.approx(3 / 4)


def test_what_is_missing_is_said() -> None:
    captions = system(["a", "b"], ["c", "d"], ["e", "f"])
    score = score_captions(captions, REFERENCES, metrics=["novel"])["novel"]
    assert score.note.startswith("needs the captions of the train split")
    score = score_captions(system(["a", "b"]), [[["a"]]], metrics=SETS)["self_cider"]
    assert score.note.startswith("one image only")
    with pytest.raises(ConfigError, match=r"^div_1: needs .* give SystemCaptions$"):
        score_captions([["a"]] * 3, REFERENCES, metrics=["diversity"])
    with pytest.raises(DataError, match="2 hypotheses for 3 images"):
        score_captions(system(["a", "b"], ["c", "d"]), REFERENCES, metrics=["diversity"])
    with pytest.raises(DataError, match=r"image 1 \(counting from 0\) has no caption"):
        system(["a"], [])
    with pytest.raises(ConfigError, match=r"^texts\[0\]: must be list or tuple, given 'abc'$"):
        SystemCaptions(["abc"])
    with pytest.raises(ConfigError, match=r"^a caption of image 0: must be str, given 1$"):
        SystemCaptions([[1]])
    with pytest.raises(ConfigError, match=r"^SystemCaptions: text: no such setting .*texts"):
        SystemCaptions(text=[["a"]])


def test_word_metrics_score_the_first_caption() -> None:
    first = [["abcd"], ["fghij"], ["klmx"]]
    more = [[*each, "zzz"] for each in first]
    tokens = [list(each[0]) for each in first]
    for metric in ("bleu", "rouge_l", "cider", "cider_d"):
        got = [
            {name: score.per_image.tolist() for name, score in scores.items()}
            for captions in (tokens, system(*first), system(*more))
            for scores in [score_captions(captions, REFERENCES, metrics=[metric])]
        ]
        assert got[0] == got[1] == got[2]


def test_two_systems_are_compared() -> None:
    a = system(["abcd", "abcd"], ["fghij", "fghij"], ["klmn", "klmn"])
    b = system(["abcd", "efgh"], ["fghij", "klmno"], ["klmn", "opqr", "stuv"])
    inputs = MetricInputs(train=TRAIN)
    pairs = compare_captions(a, b, REFERENCES, metrics=SETS, inputs=inputs, resamples=50)
    assert pairs["self_cider"].difference == pytest.approx(1)
    assert pairs["mbleu_4"].difference == pytest.approx(-1)
    assert pairs["novel"].a == pytest.approx(4 / 6)
    assert pairs["novel"].b == pytest.approx(6 / 7)
    assert read_signature(pairs["div_1"].signature)["caps"] == "2-3"
