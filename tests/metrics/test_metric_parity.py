"""Our scores are those of pycocoevalcap, nltk and sacrebleu on the same tokens."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from captioner.metrics import Bleu, Cider, CiderD, RougeL, score_captions

Caption = list[str]

REFERENCES = [
    [c.split() for c in captions]
    for captions in (
        ["a brown dog runs on the grass", "the dog is running across green grass", "a dog runs"],
        ["two men play football in a park", "men playing soccer on a field"],
        [
            "a girl smiles",
            "a little girl is smiling at the camera",
            "the girl smiles at the camera",
            "a girl",
        ],
        ["a man rides a red bike down the street"],
    )
]
HYPOTHESES = [
    c.split()
    for c in (
        "a brown dog is running on the grass",
        "two men play soccer",
        "a girl",
        "a man rides a red bike on the street",
    )
]
# What pycocoevalcap 1.2 answered for the captions above: Bleu(4), Rouge() and Cider()
# .compute_score on the same tokens joined with spaces.
OFFICIAL = {
    "bleu_1": 0.9158249606814229,
    "bleu_2": 0.8320202235718569,
    "bleu_3": 0.7070683127675027,
    "bleu_4": 0.5393372806005722,
    "rouge_l": 0.8046274414498972,
    "cider": 3.5008237126043054,
}
OFFICIAL_PER_IMAGE = {
    "bleu_1": [0.9999999998750002, 0.6065306594093685, 0.9999999990000008, 0.8888888886913584],
    "rouge_l": [0.80973451, 0.51988636, 1.0, 0.88888889],
    "cider": [2.5710865423347857, 2.117946966642462, 2.5314730521837205, 6.782788289256253],
}


def random_captions(
    seed: int, images: int, lengths: tuple[int, int], vocabulary: int, references: int | None = None
) -> tuple[list[Caption], list[list[Caption]]]:
    """Draw captions of few words, so that they share n-grams of every length."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(vocabulary)]

    def caption(shortest: int) -> Caption:
        return rng.choices(words, k=rng.randint(shortest, max(shortest, lengths[1])))

    hypotheses = [caption(lengths[0]) for _ in range(images)]
    truths = [
        [caption(max(1, lengths[0])) for _ in range(references or rng.randint(1, 5))]
        for _ in range(images)
    ]
    # Unseen words must not be confused with each other.
    unseen = [rng.choices(["new1", "new2"], k=2 * (i % 5 == 0)) for i in range(images)]
    return [a + b for a, b in zip(hypotheses, unseen, strict=True)], truths


# Short captions (some empty), ordinary ones, long ones; one reference, several.
CASES = [
    random_captions(0, images=30, lengths=(0, 3), vocabulary=3),
    random_captions(1, images=40, lengths=(0, 8), vocabulary=4),
    random_captions(2, images=40, lengths=(4, 14), vocabulary=5),
    random_captions(3, images=2, lengths=(1, 9), vocabulary=2),
    random_captions(4, images=25, lengths=(5, 12), vocabulary=9, references=5),
    random_captions(5, images=25, lengths=(0, 12), vocabulary=3, references=1),
    (HYPOTHESES, REFERENCES),
]


def joined(
    hypotheses: list[Caption], references: list[list[Caption]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Write captions as the official scorers take them: references, then hypotheses."""
    truths = {i: [" ".join(c) for c in captions] for i, captions in enumerate(references)}
    return truths, {i: [" ".join(caption)] for i, caption in enumerate(hypotheses)}


def assert_equal_where_matched(ours: np.ndarray, official: np.ndarray, matched: np.ndarray) -> None:
    """Compare BLEU; where no n-gram of an order matches, the official 1e-15 must not show."""
    defined = np.cumprod(matched > 0, axis=-1).astype(bool)
    np.testing.assert_allclose(ours[defined], official[defined], rtol=0, atol=1e-6)
    assert (ours[~defined] == 0).all()


@pytest.mark.parametrize("case", range(len(CASES)))
def test_bleu_equals_pycocoevalcap(case: int) -> None:
    official = pytest.importorskip("pycocoevalcap.bleu.bleu")
    hypotheses, references = CASES[case]
    corpus, per_image = official.Bleu(4).compute_score(*joined(hypotheses, references), verbose=0)
    metric = Bleu(references)
    statistics = metric.statistics(hypotheses)
    totals = statistics.sum(axis=0)
    assert_equal_where_matched(metric.combine(totals), np.array(corpus), totals[4:8])
    assert_equal_where_matched(
        metric.combine(statistics), np.array(per_image).T, statistics[:, 4:8]
    )


@pytest.mark.parametrize("case", range(len(CASES)))
def test_rouge_equals_pycocoevalcap(case: int) -> None:
    official = pytest.importorskip("pycocoevalcap.rouge.rouge")
    hypotheses, references = CASES[case]
    corpus, per_image = official.Rouge().compute_score(*joined(hypotheses, references))
    ours = score_captions(hypotheses, references, metrics=["rouge_l"])["rouge_l"]
    assert ours.value == pytest.approx(corpus, abs=1e-6)
    np.testing.assert_allclose(ours.per_image, per_image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_cider_equals_pycocoevalcap(case: int) -> None:
    official = pytest.importorskip("pycocoevalcap.cider.cider")
    hypotheses, references = CASES[case]
    corpus, per_image = official.Cider().compute_score(*joined(hypotheses, references))
    ours = score_captions(hypotheses, references, metrics=["cider", "cider_d"])
    for score in ours.values():
        assert score.value == pytest.approx(corpus, abs=1e-6)
        np.testing.assert_allclose(score.per_image, per_image, rtol=0, atol=1e-6)


def test_known_scores_hold_without_the_official_scorers() -> None:
    ours = score_captions(HYPOTHESES, REFERENCES)
    for name, value in OFFICIAL.items():
        assert ours[name].value == pytest.approx(value, abs=1e-6), name
    for name, values in OFFICIAL_PER_IMAGE.items():
        np.testing.assert_allclose(ours[name].per_image, values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [2, 4])
def test_bleu_equals_nltk_where_every_caption_has_four_tokens(case: int) -> None:
    from nltk.translate.bleu_score import corpus_bleu

    hypotheses, references = CASES[case]
    assert min(map(len, hypotheses)) >= 4
    ours = score_captions(hypotheses, references, metrics=["bleu"])
    for order in range(1, 5):
        expected = corpus_bleu(references, hypotheses, weights=[1 / order] * order)
        assert ours[f"bleu_{order}"].value == pytest.approx(expected, abs=1e-6)


def test_nltk_counts_an_ngram_that_does_not_exist() -> None:
    from nltk.translate.bleu_score import corpus_bleu

    hypotheses, references = [["a", "b", "c", "d", "e"], ["a"]], [[["a", "b", "c", "d", "e"]]] * 2
    ours = Bleu(references).combine(Bleu(references).statistics(hypotheses).sum(axis=0))[3]
    assert ours == pytest.approx(math.exp(1 - 10 / 6), abs=1e-12)
    assert corpus_bleu(references, hypotheses) < ours


@pytest.mark.parametrize("case", [4, 5])
def test_bleu_equals_sacrebleu(case: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = CASES[case]
    expected = sacrebleu.corpus_bleu(
        [" ".join(caption) for caption in hypotheses],
        [[" ".join(caption) for caption in column] for column in zip(*references, strict=True)],
        smooth_method="none",
        tokenize="none",
        force=True,
    )
    ours = score_captions(hypotheses, references, metrics=["bleu"])["bleu_4"]
    assert ours.value > 0
    assert ours.value == pytest.approx(expected.score / 100, abs=1e-6)


def slow_cider(hypotheses: list[Caption], references: list[list[Caption]]) -> list[float]:
    """Write CIDEr-D down as in the paper, one n-gram at a time."""

    def grams(caption: Caption, n: int) -> list[tuple[str, ...]]:
        return [tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)]

    def vector(caption: Caption, n: int) -> dict[tuple[str, ...], float]:
        found = grams(caption, n)
        return {g: found.count(g) * math.log(len(references) / frequency(g)) for g in found}

    def frequency(gram: tuple[str, ...]) -> int:
        return max(1, sum(any(gram in grams(c, len(gram)) for c in r) for r in references))

    def norm(v: dict[tuple[str, ...], float]) -> float:
        return math.sqrt(sum(x * x for x in v.values()))

    scores = []
    for hypothesis, truths in zip(hypotheses, references, strict=True):
        total = 0.0
        for truth in truths:
            penalty = math.exp(-((len(hypothesis) - len(truth)) ** 2) / 72)
            for n in range(1, 5):
                h, r = vector(hypothesis, n), vector(truth, n)
                dot = sum(min(h[g], r[g]) * r[g] for g in h if g in r)
                total += penalty * dot / (norm(h) * norm(r)) if norm(h) and norm(r) else 0.0
        scores.append(10 * total / 4 / len(truths))
    return scores


@pytest.mark.parametrize("metric", [CiderD, Cider])
def test_cider_is_the_papers_formula(metric: type[CiderD]) -> None:
    for hypotheses, references in (CASES[1], CASES[4]):
        expected = slow_cider(hypotheses, references)
        ours = metric(references).score(hypotheses)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_rouge_is_the_papers_formula() -> None:
    def lcs(a: Caption, b: Caption) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + lcs(a[:-1], b[:-1])
        return max(lcs(a[:-1], b), lcs(a, b[:-1]))

    hypotheses, references = random_captions(6, images=20, lengths=(0, 6), vocabulary=3)
    scores = RougeL(references).statistics(hypotheses)[:, 0]
    for hypothesis, truths, score in zip(hypotheses, references, scores, strict=True):
        common = [lcs(hypothesis, truth) for truth in truths]
        precision = max(common) / max(1, len(hypothesis))
        recall = max(c / len(t) for c, t in zip(common, truths, strict=True))
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if recall else 0.0
        assert score == pytest.approx(expected, abs=1e-12)
