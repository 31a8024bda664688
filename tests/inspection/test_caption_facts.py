"""The numbers of a data set's captions, known in advance or those of training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from captioner.config import Config, load_config
from captioner.data.dataset import Dataset, Example
from captioner.inspection.caption_facts import CaptionFacts, Range, count_captions
from captioner.text import Vocabulary, tokenize

TRAIN = [["A dog runs .", "a dog runs"], ["a cat sits", "A dog runs ."], ["two dogs", "..."]]
DEV = [["A dog  runs!"], ["a bird sits", "two birds"]]


def data_set(**splits: Sequence[Sequence[str]]) -> Dataset:
    examples = [
        Example(Path(f"{split}{number}.png"), tuple(captions), split, f"{split}{number}")
        for split, images in splits.items()
        for number, captions in enumerate(images)
    ]
    return Dataset("toys", "csv", Path("toys"), tuple(examples), ())


def count(config: Config | None = None, **splits: Sequence[Sequence[str]]) -> CaptionFacts:
    return count_captions(data_set(**splits), config or Config())


def test_known_numbers() -> None:
    facts = count(train=TRAIN, dev=DEV)
    train, dev = facts.splits["train"], facts.splits["dev"]
    assert (facts.total, facts.wordless, facts.same_in_image) == (9, 1, 1)
    assert train.per_image == Range(2, 2, 2) and dev.per_image == Range(1, 1, 2)
    assert sorted(train.lengths) == [2, 3, 3, 3, 3]
    assert train.quartiles == (3, 3, 3) and dev.quartiles == (2, 3, 3)
    assert train.longest == "train0"
    assert train.in_train is None
    assert dev.in_train == pytest.approx(1 / 3)
    assert facts.repeated == [("A dog runs .", 2)]
    assert facts.repeated_captions == 1
    assert facts.frequent[:2] == [("a", 4), ("dog", 3)]
    assert facts.scripts == {"Latin": 1.0}


def test_the_vocabulary_is_that_of_training() -> None:
    facts = count(load_config(None, ["text.min_count=4"]), train=TRAIN, dev=DEV)
    assert [row.min_count for row in facts.coverage] == [1, 2, 3, 4, 5, 10]
    tokens = {
        name: [tokenize(text) for text in chain.from_iterable(images)]
        for name, images in (("train", TRAIN), ("dev", DEV))
    }
    for row in facts.coverage:
        vocabulary = Vocabulary.build(tokens["train"], row.min_count)
        assert row.entries == len(vocabulary)
        for name, split in tokens.items():
            assert row.unknown[name] == pytest.approx(1 - vocabulary.coverage(split))
    assert facts.coverage[0].unknown == {"train": 0, "dev": pytest.approx(2 / 8)}


def test_without_train_the_first_split_gives_the_words() -> None:
    facts = count(test=TRAIN, other=DEV)
    assert facts.base == "test"
    assert facts.coverage[0].unknown["test"] == 0
    assert facts.splits["other"].in_train == pytest.approx(1 / 3)
    named = count(load_config(None, ["data.split_train=other"]), test=TRAIN, other=DEV)
    assert named.base == "other"
    assert named.splits["test"].in_train == pytest.approx(3 / 5)
    assert list(named.splits) == ["test", "other"]  # as train lists them


def test_suggestions_are_those_of_training() -> None:
    chinese = [["红色的圆", "一个红色的圆"]]
    [found] = count(train=chinese, dev=chinese).suggestions
    assert "--set text.tokenizer=unicode" in found
    facts = count(load_config(None, ["text.tokenizer=unicode"]), train=chinese, dev=chinese)
    assert facts.suggestions == []
    assert facts.frequent[:2] == [("红", 2), ("色", 2)]
    assert facts.splits["train"].lengths == [4, 6]


def test_bpe_has_one_vocabulary() -> None:
    pytest.importorskip("tokenizers")
    facts = count(load_config(None, ["text.tokenizer=bpe"]), train=TRAIN, dev=DEV)
    assert [row.min_count for row in facts.coverage] == [1]
    assert facts.coverage[0].unknown == {"train": 0, "dev": 0}
