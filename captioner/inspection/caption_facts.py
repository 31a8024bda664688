"""Counts the captions of a data set: lengths, words, scripts, and captions that come again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from captioner.config import Config
from captioner.data.dataset import Dataset, Example
from captioner.data.prepare import suggestions
from captioner.text import Tokenizer, Vocabulary, make_tokenizer
from captioner.text.languages import scripts

MIN_COUNTS = (1, 2, 3, 5, 10)
MOST_REPEATED = 5  # captions in the list
MOST_FREQUENT = 40  # words in the list


@dataclass(frozen=True, slots=True)
class Range:
    """The least, the median and the most of whole numbers."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Range:
        """Return the range of values; there is at least one."""
        return cls(min(values), quantile(values, 0.5), max(values))


@dataclass(slots=True)
class SplitFacts:
    """The captions of one split."""

    per_image: Range  # captions
    lengths: list[int] = field(default_factory=list)  # tokens of each caption that has a word
    longest: str = ""  # the image id of the longest caption
    counts: Counter[str] = field(default_factory=Counter)  # of each token
    wordless: int = 0  # captions without a token, which train leaves out
    same_in_image: int = 0  # captions with the tokens of an earlier one of their image
    in_train: float | None = None  # share of captions whose tokens are a caption in train

    @property
    def captions(self) -> int:
        """The number of captions, those without a word included."""
        return len(self.lengths) + self.wordless

    @property
    def quartiles(self) -> tuple[int, int, int]:
        """The tokens that a quarter, half and three quarters of the captions do not exceed."""
        first, second, third = (quantile(self.lengths, part) for part in (0.25, 0.5, 0.75))
        return first, second, third


@dataclass(frozen=True, slots=True)
class Coverage:
    """A vocabulary, and what it does not cover."""

    min_count: int
    entries: int  # with the four special tokens, as train says it
    unknown: dict[str, float]  # share of the tokens of each split, 0 to 1


@dataclass(frozen=True, slots=True)
class CaptionFacts:
    """The captions of a data set."""

    tokenizer: str  # a value of `text.tokenizer`
    base: str  # the split whose words are the vocabulary
    splits: dict[str, SplitFacts]
    scripts: dict[str, float]  # share of the letters of all captions
    coverage: list[Coverage]
    frequent: list[tuple[str, int]]  # the words of `base`, as captions show them
    repeated: list[tuple[str, int]]  # the captions that stand most often in the data set
    repeated_captions: int  # different captions that stand more than once
    suggestions: list[str]  # settings that fit better, as train says it

    @property
    def total(self) -> int:
        """The captions of all splits."""
        return sum(split.captions for split in self.splits.values())

    @property
    def wordless(self) -> int:
        """The captions of all splits without a token."""
        return sum(split.wordless for split in self.splits.values())

    @property
    def same_in_image(self) -> int:
        """The captions of all splits with the tokens of an earlier one of their image."""
        return sum(split.same_in_image for split in self.splits.values())


def count_captions(dataset: Dataset, config: Config) -> CaptionFacts:
    """Count the captions of a data set in one pass, with the tokeniser of a config.

    The vocabulary is that of the train split; without one, that of the first split.

    Raises:
        ConfigError: if a library of the tokeniser is missing.
    """
    names = list(dataset.splits)
    train = config.data.split_train
    base = train if train in names else names[0]
    by_split = {name: dataset.split(name) for name in sorted(names, key=base.__ne__)}
    text = config.text
    tokenizer = make_tokenizer(text.tokenizer, captions_of(by_split[base]), text.vocab_size)
    known: set[str] = set()  # the captions of the base split, as tokens
    found = {name: _count(by_split[name], tokenizer, known, name == base) for name in by_split}
    frequency = Counter(captions_of(dataset.examples))
    twice = [pair for pair in frequency.most_common(MOST_REPEATED) if pair[1] > 1]
    counts = found[base].counts
    levels = sorted({*MIN_COUNTS, text.min_count}) if text.tokenizer != "bpe" else [1]
    return CaptionFacts(
        tokenizer=text.tokenizer,
        base=base,
        splits={name: found[name] for name in names},
        scripts=scripts(captions_of(dataset.examples)),
        coverage=[_coverage(level, counts, found, tokenizer) for level in levels],
        frequent=[(tokenizer.shown(word), n) for word, n in counts.most_common(MOST_FREQUENT)],
        repeated=twice,
        repeated_captions=sum(n > 1 for n in frequency.values()),
        suggestions=suggestions(config, captions_of(by_split[base]), found[base].lengths),
    )


def captions_of(examples: Iterable[Example]) -> Iterable[str]:
    """Return all captions of examples."""
    return chain.from_iterable(example.captions for example in examples)


def quantile(values: Sequence[int], part: float) -> int:
    """Return the least value that a part of the values does not exceed; 0 without values."""
    return int(np.quantile(values, part, method="inverted_cdf")) if len(values) else 0


def _count(
    examples: Sequence[Example], tokenizer: Tokenizer, known: set[str], is_base: bool
) -> SplitFacts:
    """Count the captions of a split; those of the base split become known."""
    found = SplitFacts(Range.of([len(example.captions) for example in examples]))
    most = old = 0
    for example in examples:
        of_image: set[str] = set()
        for caption in example.captions:
            tokens = tokenizer.tokenize(caption)
            if not tokens:
                found.wordless += 1
                continue
            found.lengths.append(len(tokens))
            found.counts.update(tokens)
            if len(tokens) > most:
                most, found.longest = len(tokens), example.image_id
            spelled = " ".join(tokens)
            found.same_in_image += spelled in of_image
            of_image.add(spelled)
            old += spelled in known
        if is_base:
            known |= of_image
    if not is_base and found.lengths:
        found.in_train = old / len(found.lengths)
    return found


def _coverage(
    min_count: int, counts: Counter[str], splits: dict[str, SplitFacts], tokenizer: Tokenizer
) -> Coverage:
    vocabulary = Vocabulary.of_counts(counts, min_count, tokenizer=tokenizer)
    unknown = {}
    for name, split in splits.items():
        rare = sum(n for word, n in split.counts.items() if word not in vocabulary)
        unknown[name] = rare / max(1, split.counts.total())
    return Coverage(min_count, len(vocabulary), unknown)
