"""What every metric promises on any captions, and its answers at the edges."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import captioner
from captioner.errors import ConfigError, DataError
from captioner.metrics import (
    METRICS,
    OF_WORDS,
    Bleu,
    CiderD,
    PreparedReferences,
    RougeL,
    bootstrap,
    compare_captions,
    score_captions,
)
from captioner.metrics.scores import Comparison, Score

JAVA_FREE = ("bleu", "rouge_l", "cider", "cider_d")
HIGHEST = {"cider": 10.0, "cider_d": 10.0}

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)
IMAGES = st.lists(
    st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=4)), min_size=2, max_size=6
)


def split(images):
    return [hypothesis for hypothesis, _ in images], [references for _, references in images]


@given(IMAGES, st.randoms())
def test_order_of_images_does_not_matter(images, rng) -> None:
    before = score_captions(*split(images), metrics=JAVA_FREE)
    order = list(range(len(images)))
    rng.shuffle(order)
    after = score_captions(*split([images[i] for i in order]), metrics=JAVA_FREE)
    for name, score in before.items():
        assert after[name].value == pytest.approx(score.value, abs=1e-12)
        np.testing.assert_allclose(after[name].per_image, score.per_image[order], atol=1e-12)


@given(IMAGES, st.randoms())
def test_order_of_references_does_not_matter(images, rng) -> None:
    hypotheses, references = split(images)
    shuffled = [rng.sample(captions, len(captions)) for captions in references]
    before = score_captions(hypotheses, references, metrics=JAVA_FREE)
    after = score_captions(hypotheses, shuffled, metrics=JAVA_FREE)
    for name, score in before.items():
        np.testing.assert_allclose(after[name].per_image, score.per_image, atol=1e-12)


@given(IMAGES)
def test_scores_stay_in_their_range(images) -> None:
    for name, score in score_captions(*split(images), metrics=JAVA_FREE).items():
        for value in (score.value, *score.per_image):
            assert 0 <= value <= HIGHEST.get(name, 1.0) + 1e-12


@given(
    st.lists(
        st.lists(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=9), min_size=1),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
def test_a_hypothesis_equal_to_a_reference_is_perfect(references, rng) -> None:
    hypotheses = [rng.choice(captions) for captions in references]
    scores = score_captions(hypotheses, references, metrics=["bleu", "rouge_l"])
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        dict.fromkeys(scores, 1.0), abs=1e-12
    )


def test_captions_equal_to_their_only_reference_get_ten() -> None:
    captions = [list("abcde"), list("fghi"), list("jklmn")]
    for name in ("cider", "cider_d"):
        score = score_captions(captions, [[c] for c in captions], metrics=[name])[name]
        assert score.value == pytest.approx(10.0)


@given(IMAGES, st.integers(1, 12))
def test_an_irrelevant_reference_touches_only_the_reference_length(images, length) -> None:
    hypotheses, references = split(images)
    more = [[*captions, ["zzz"] * length] for captions in references]
    before, after = (Bleu(r).statistics(hypotheses) for r in (references, more))
    assert (after[:, :8] == before[:, :8]).all()
    lengths = [{len(c) for c in captions} for captions in more]
    for hypothesis, statistics, choice in zip(hypotheses, after, lengths, strict=True):
        closest = min(abs(n - len(hypothesis)) for n in choice)
        assert statistics[8] == min(n for n in choice if abs(n - len(hypothesis)) == closest)
    # A reference no closer than the ones there already changes nothing at all.
    unchanged = after[:, 8] == before[:, 8]
    scores = [Bleu(r).combine(s) for r, s in ((references, before), (more, after))]
    assert (scores[0][unchanged] == scores[1][unchanged]).all()


@given(IMAGES)
def test_another_reference_never_takes_matches_away(images) -> None:
    hypotheses, references = split(images)
    more = [[*captions, hypothesis or ["a"]] for hypothesis, captions in images]
    before, after = (Bleu(r).statistics(hypotheses) for r in (references, more))
    assert (after[:, 4:8] >= before[:, 4:8]).all()
    before, after = (RougeL(r).statistics(hypotheses) for r in (references, more))
    assert (after[:, 0] >= before[:, 0] - 1e-12).all()


@given(IMAGES)
def test_per_image_scores_are_scores_of_one_image(images) -> None:
    hypotheses, references = split(images)
    scores = score_captions(hypotheses, references, metrics=["bleu", "rouge_l"])
    for i, (hypothesis, captions) in enumerate(images):
        alone = score_captions([hypothesis], [captions], metrics=["bleu", "rouge_l"])
        for name, score in alone.items():
            assert scores[name].per_image[i] == score.value


@given(IMAGES, st.data())
def test_rewards_are_the_scores_of_the_chosen_images(images, data) -> None:
    hypotheses, references = split(images)
    reward = CiderD(references)
    chosen = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=8))
    captions = [data.draw(WORDS) for _ in chosen]
    got = reward.score(captions, chosen)
    assert got.shape == (len(chosen),)
    for caption, image, value in zip(captions, chosen, got, strict=True):
        whole = hypotheses.copy()
        whole[image] = caption
        assert value == pytest.approx(reward.score(whole)[image], abs=1e-12)


def test_cider_d_does_not_reward_repetition_and_wrong_length() -> None:
    references = [[c.split()] for c in ("a dog runs fast", "two men play ball", "a red bike")]
    reward = CiderD(references)
    good, bad = reward.score([references[0][0], ["dog"] * 8], images=[0, 0])
    assert bad < 0.2 * good


# Edges


def test_empty_hypothesis_scores_nothing() -> None:
    references = [[["a", "b", "c", "d"]], [["e", "f", "g", "h"]]]
    scores = score_captions([[], ["e", "f", "g", "h"]], references, metrics=JAVA_FREE)
    for score in scores.values():
        assert score.per_image[0] == 0
        assert score.per_image[1] > 0
    for score in score_captions([[], []], references, metrics=JAVA_FREE).values():
        assert score.value == 0
        assert score.per_image.tolist() == [0, 0]


def test_empty_reference_is_allowed_and_matches_nothing() -> None:
    for score in score_captions([["a"], []], [[[]], [[]]], metrics=JAVA_FREE).values():
        assert score.per_image.tolist() == [0, 0]


def test_no_matching_four_gram_is_exactly_zero() -> None:
    scores = score_captions([list("abcxd")], [[list("abcd")]], metrics=["bleu"])
    assert scores["bleu_3"].value > 0
    assert scores["bleu_4"].value == 0.0


def test_captions_shorter_than_four_tokens() -> None:
    scores = score_captions([["a", "b", "c"]], [[["a", "b", "c"]]], metrics=["bleu"])
    assert [score.value for score in scores.values()] == [1.0, 1.0, 1.0, 0.0]


def test_equally_close_references_give_the_shorter_length() -> None:
    references = [[["a"] * 8, ["a"] * 4, ["a"] * 9]]
    assert Bleu(references).statistics([["a"] * 6])[0, 8] == 4


def test_long_captions_pay_no_brevity_penalty() -> None:
    metric = Bleu([[["a", "b"]]])
    assert metric.combine(metric.statistics([["a", "b", "c"]])[0])[0] == pytest.approx(2 / 3)
    assert metric.combine(metric.statistics([["a"]])[0])[0] == pytest.approx(math.exp(1 - 2))


def test_one_image_has_no_cider_and_says_why() -> None:
    scores = score_captions([["a", "b"]], [[["a", "b"]]], resamples=10)
    for name in ("cider", "cider_d"):
        assert math.isnan(scores[name].value)
        assert np.isnan(scores[name].per_image).all()
        assert scores[name].interval is None
        assert "one image" in scores[name].note
        assert "one image" in str(scores[name])
        assert scores[name].as_dict()["value"] is None
    assert scores["bleu_2"].value == 1
    assert scores["bleu_2"].interval is None


@pytest.mark.parametrize(
    ("hypotheses", "references", "complaint"),
    [
        ([], [], "no references"),
        ([["a"]], [[]], "image 0 .* has no reference"),
        ([["a"]], [[["a"]], [["b"]]], "1 hypotheses for 2 images"),
        (["a dog"], [[["a"]]], "a hypothesis is a string"),
        ("a", [[["a"]]], "a hypothesis is a string"),
        ([["a"]], [["a dog"]], "a reference of image 0 is a string"),
        ([["a"]], ["a dog"], "a reference of image 0 is a string"),
    ],
)
def test_captions_that_cannot_be_scored(hypotheses, references, complaint) -> None:
    with pytest.raises(DataError, match=complaint):
        score_captions(hypotheses, references)


def test_rewards_for_images_that_are_not_there() -> None:
    reward = CiderD([[["a"]], [["b"]]])
    for images in ([2], [-1]):
        with pytest.raises(DataError, match=r"image numbers must be in \[0, 2\)"):
            reward.score([["a"]], images)
    assert reward.score([], []).shape == (0,)


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown bleurt, x; choose from bleu, rouge_l"):
        score_captions([["a"]], [[["a"]]], metrics=["bleurt", "bleu", "x"])


# One set of scores


def captions_of(seed: int, images: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(60)]
    references = [
        [rng.choices(words, range(60, 0, -1), k=rng.randint(6, 14)) for _ in range(5)]
        for _ in range(images)
    ]
    hypotheses = [
        [word if rng.random() < 0.7 else rng.choice(words) for word in captions[0]]
        for captions in references
    ]
    return hypotheses, references


def test_score_captions_gives_all_scores_with_intervals_and_signatures() -> None:
    hypotheses, references = captions_of(0, 50)
    scores = score_captions(
        hypotheses, references, resamples=200, decode="beam5,lp0.0", split="dev"
    )
    assert list(scores) == [
        *("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
        *("rouge_l", "cider", "cider_d"),
    ]
    for name, score in scores.items():
        low, high = score.interval
        assert score.name == name
        assert low < score.value < high
        assert score.per_image.shape == (50,)
        assert f"{score.value:.3f} +- {(high - low) / 2:.3f} (95%)" == str(score)
        assert score.signature.startswith(name.replace("_", "") + "|refs:5|tok:ptb|case:lc|")
        assert "|decode:beam5,lp0.0|split:dev|n:50|v:" in score.signature
        assert score.as_dict()["value"] == score.value
    assert "|smooth:none|ref_len:closest|" in scores["bleu_4"].signature
    assert scores["cider"].value == scores["cider_d"].value


def test_intervals_depend_on_the_seed_and_only_on_it() -> None:
    hypotheses, references = captions_of(1, 30)
    first, again, other = (
        score_captions(hypotheses, references, resamples=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first["cider"].interval == again["cider"].interval != other["cider"].interval


def test_prepared_references_give_the_same_scores() -> None:
    hypotheses, references = captions_of(2, 20)
    plain = score_captions(hypotheses, references, metrics=JAVA_FREE)
    prepared = PreparedReferences(references)
    for _ in range(2):
        scores = score_captions(hypotheses, prepared, metrics=JAVA_FREE)
        assert {n: s.value for n, s in scores.items()} == {n: s.value for n, s in plain.items()}
    assert len(prepared) == 20


def test_signature_names_a_varying_number_of_references() -> None:
    scores = score_captions([["a"], ["b"]], [[["a"]], [["b"], ["c"], ["d"]]], metrics=["bleu"])
    assert "|refs:1-3|" in scores["bleu_1"].signature


def test_signatures_say_all_that_made_a_score() -> None:
    captions, references = [["a"], ["b"]], [[["a"]], [["b"], ["c"]]]
    labels = {"tokenizer": "none", "case": "cased", "split": "dev"}
    scores = score_captions(captions, references, metrics=JAVA_FREE, decode="beam5", **labels)
    formulas = {
        **{f"bleu_{order}": "smooth:none|ref_len:closest" for order in (1, 2, 3, 4)},
        "rouge_l": "beta:1.2",
        "cider": "formula:cider_d|sigma:6|df:refs",
        "cider_d": "formula:cider_d|sigma:6|df:refs",
    }
    signatures = {
        name: f"{name.replace('_', '')}|refs:1-2|tok:none|case:cased|{formula}"
        f"|decode:beam5|split:dev|n:2|v:{captioner.__version__}"
        for name, formula in formulas.items()
    }
    assert {name: score.signature for name, score in scores.items()} == signatures
    pairs = compare_captions(captions, captions, references, metrics=JAVA_FREE, **labels)
    assert {name: pair.signature for name, pair in pairs.items()} == {
        name: signature.replace("|decode:beam5", "") for name, signature in signatures.items()
    }
    plain = score_captions(captions, references, metrics=["bleu"])["bleu_1"].signature
    assert plain.startswith("bleu1|refs:1-2|tok:ptb|case:lc|smooth:none|ref_len:closest|n:2|v:")
    plain = compare_captions(captions, captions, references, metrics=["bleu"])["bleu_1"].signature
    assert plain.startswith("bleu1|refs:1-2|tok:ptb|case:lc|smooth:none|ref_len:closest|n:2|v:")


def test_scores_and_comparisons_as_files_and_people_read_them() -> None:
    score = Score("cider", 0.25, np.array([0.25]), (0.1, 0.6), "cider|n:1")
    assert score.as_dict() == {
        **{"value": 0.25, "interval": (0.1, 0.6), "signature": "cider|n:1", "note": ""},
    }
    assert str(score) == "0.250 +- 0.250 (95%)"
    assert str(replace(score, interval=None)) == "0.250"
    none = replace(score, value=math.nan, interval=None, note="one image")
    assert none.as_dict() == score.as_dict() | {
        "value": None,
        "interval": None,
        "note": "one image",
    }
    assert str(none) == "undefined (one image)"
    pair = Comparison(
        **{"name": "cider", "a": 0.5, "b": 0.75, "difference": 0.25, "interval": (0.1, 0.6)},
        **{"p_bootstrap": 0.01, "p_randomization": 0.02, "per_image": np.array([0.25])},
        signature="cider|n:1",
    )
    assert pair.as_dict() == {
        **{"a": 0.5, "b": 0.75, "difference": 0.25, "interval": (0.1, 0.6)},
        **{"p_bootstrap": 0.01, "p_randomization": 0.02, "signature": "cider|n:1", "note": ""},
    }
    assert str(pair) == "+0.250 +- 0.250 (95%), p = 0.020"
    numbers = ("a", "b", "difference", "p_bootstrap", "p_randomization")
    nothing = dict.fromkeys(numbers, math.nan)
    none = replace(pair, **nothing, interval=(math.nan, math.nan), note="one image")
    assert none.as_dict() == pair.as_dict() | dict.fromkeys(numbers) | {
        "interval": None,
        "note": "one image",
    }
    assert str(none) == "undefined (one image)"


def test_unless_told_otherwise_a_seed_of_0_and_a_thousand_resamples() -> None:
    good, references = captions_of(4, 40)
    bad = [["w0", *caption[1:-2]] for caption in good]
    scores, same, other = (
        score_captions(good, references, resamples=20, **seed)
        for seed in ({}, {"seed": 0}, {"seed": 1})
    )
    assert scores["cider"].interval == same["cider"].interval != other["cider"].interval
    statistics = CiderD(references).statistics(good)
    sums = bootstrap.resampled_sums(statistics, resamples=20, seed=0)
    [[low, high]] = bootstrap.interval(CiderD(references).combine(sums))
    assert scores["cider"].interval == (low, high)
    pair, same, other, fewer = (
        compare_captions(bad, good, references, metrics=["cider"], **options)["cider"]
        for options in ({}, {"seed": 0}, {"seed": 1}, {"resamples": 99})
    )
    assert pair.interval == same.interval != other.interval
    assert pair.p_bootstrap == pair.p_randomization == 1 / 1001
    assert fewer.p_bootstrap == fewer.p_randomization == 1 / 100


def test_every_metric_has_its_own_names() -> None:
    assert tuple(METRICS)[: len(OF_WORDS)] == OF_WORDS == (*JAVA_FREE, "meteor", "spice")
    prepared = PreparedReferences([[["a"]], [["b"]]])
    names = [name for make in METRICS.values() for name in make(prepared).names]
    assert len(set(names)) == len(names)
    for metric in (METRICS[name](prepared) for name in JAVA_FREE):
        statistics = metric.statistics([["a"], ["b"]])
        assert metric.combine(statistics).shape == (2, len(metric.names))
        assert metric.combine(statistics.sum(axis=0)).shape == (len(metric.names),)
        with pytest.raises(DataError, match="1 hypotheses for 2 images"):
            metric.statistics([["a"]])


# Two systems


def test_compare_captions_finds_the_better_system() -> None:
    good, references = captions_of(4, 120)
    bad = [["w0", *caption[1:-2]] for caption in good]
    comparisons = compare_captions(bad, good, references, resamples=300)
    scores_good, scores_bad = score_captions(good, references), score_captions(bad, references)
    for name, comparison in comparisons.items():
        assert comparison.a == scores_bad[name].value
        assert comparison.b == scores_good[name].value
        assert comparison.difference == pytest.approx(comparison.b - comparison.a)
        assert 0 < comparison.interval[0] < comparison.difference < comparison.interval[1]
        assert comparison.p_bootstrap <= 0.05
        assert comparison.p_randomization <= 0.05
        np.testing.assert_array_equal(
            comparison.per_image, scores_good[name].per_image - scores_bad[name].per_image
        )
        assert comparison.signature == scores_good[name].signature
        assert str(comparison).startswith(f"{comparison.difference:+.3f} +- ")


def test_comparing_one_image_is_refused() -> None:
    with pytest.raises(DataError, match="two images or more"):
        compare_captions([["a"]], [["b"]], [[["a"]]], metrics=["bleu"])
