"""The oracle of n-best lists: it picks the best caption of each, and says that it is one."""

from __future__ import annotations

import math

from captioner.evaluation.coverage import oracle
from captioner.metrics import PreparedReferences, Signature, compatible, score_captions

REFERENCES = [
    [["a", "dog", "runs", "over", "the", "grass"], ["a", "brown", "dog", "runs"]],
    [["two", "men", "play", "ball", "on", "a", "field"]],
    [["a", "child", "on", "a", "swing", "laughs"]],
]
RIGHT = [of_image[0] for of_image in REFERENCES]
WRONG = [["a", "car"], ["a", "red", "boat", "sails"], ["the", "sea"]]


def found(n_best):
    return oracle(n_best, PreparedReferences(REFERENCES), decode="beam3", split="dev")


def test_the_best_caption_is_found_wherever_it_stands():
    first, second = RIGHT[0], WRONG[0]
    lists = [[first, second], [WRONG[1], WRONG[2], RIGHT[1]], [RIGHT[2]]]
    scores = found(lists)
    wanted = score_captions(RIGHT, REFERENCES, metrics=["bleu", "cider"])
    assert set(scores) == {"oracle_bleu_4", "oracle_cider"}
    for name in ("bleu_4", "cider"):
        assert math.isclose(scores[f"oracle_{name}"].value, wanted[name].value)
    assert scores["oracle_bleu_4"].value == 1


def test_lists_of_one_caption_score_as_the_captions_do():
    captions = [RIGHT[0], WRONG[1], WRONG[2]]
    plain = score_captions(captions, REFERENCES, metrics=["cider"])["cider"].value
    assert found([[caption] for caption in captions])["oracle_cider"].value == plain


def test_longer_lists_are_never_worse():
    assert (
        found([[wrong, right] for wrong, right in zip(WRONG, RIGHT, strict=True)])[
            "oracle_cider"
        ].value
        > found([[wrong] for wrong in WRONG])["oracle_cider"].value
    )


def test_nobody_takes_it_for_a_score_of_a_system():
    score = found([[caption] for caption in RIGHT])["oracle_cider"]
    plain = score_captions(RIGHT, REFERENCES, metrics=["cider"], split="dev")["cider"]
    assert score.name == "oracle_cider"
    assert Signature.parse(score.signature)["decode"] == "beam3,n1"
    assert not compatible(score.signature, plain.signature)
