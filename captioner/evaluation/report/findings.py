"""Statistics and flags of the captions in a report, and the rows of the gallery."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from captioner.data.dataset import Example
from captioner.evaluation.report.word_marks import WordMark, marks_of
from captioner.images.content import ImageFile
from captioner.images.thumbnails import thumbnail
from captioner.text import Caption, Tokenizer, Vocabulary

if TYPE_CHECKING:
    from captioner.evaluation.evaluate import Evaluation
    from captioner.evaluation.word_maps import WordMaps

MAX_REPEATED = 5  # repeated captions in the list
FLAGS = {"unk": "<unk>"} | {
    name: name for name in ("repetition", "unfinished", "verbatim", "untrue")
}

# A description, and whether the flag holds for an image, its best caption and the caption's words.
Check = tuple[str, Callable[[Example, Caption, list[str]], bool]]


@dataclass(frozen=True, slots=True)
class Findings:
    """Statistics and flags of the captions of a split."""

    flags: list[list[str]]  # of each image's caption, keys of `FLAGS`
    known: dict[str, str]  # the flags that this data set allows, with a description
    lengths: list[int]  # words of each caption
    reference_lengths: list[int]  # words of each reference
    vocabulary_size: int
    repeated: list[tuple[str, int]]  # the most frequent captions and their numbers of images

    def count(self, flag: str) -> int:
        """Return the number of captions with a flag."""
        return sum(flag in flags for flags in self.flags)


def find(result: Evaluation, vocabulary: Vocabulary, split_train: str) -> Findings:
    """Compute the statistics and flags of a split's captions."""
    best = [captions[0] for captions in result.captions]
    tokens = [vocabulary.tokenizer.words(caption.text) for caption in best]
    checks = _checks(result, split_train, vocabulary.tokenizer)
    counts = Counter(caption.text for caption in best)
    return Findings(
        flags=[
            [flag for flag, (_, holds) in checks.items() if holds(*row)]
            for row in zip(result.table.examples, best, tokens, strict=True)
        ],
        known={flag: description for flag, (description, _) in checks.items()},
        lengths=[len(words) for words in tokens],
        reference_lengths=[len(words) for image in result.table.references for words in image],
        vocabulary_size=len(vocabulary.words),
        repeated=[(text, n) for text, n in counts.most_common(MAX_REPEATED) if n > 1],
    )


def _checks(result: Evaluation, split_train: str, tokenizer: Tokenizer) -> dict[str, Check]:
    """Return the flags that the data set allows."""
    dataset = result.dataset
    checks: dict[str, Check] = {
        "unk": (
            "with the unknown word <unk>",
            lambda _, caption, __: "<unk>" in caption.text,
        ),
        "repetition": (
            "with a word, two words or three words repeated",
            lambda _, __, words: repeats(words),
        ),
        "unfinished": (
            "cut off at the maximum length",
            lambda _, caption, __: not caption.finished,
        ),
    }
    if split_train in dataset.splits:
        examples = dataset.split(split_train)
        training = {
            tuple(tokenizer.words(text)) for example in examples for text in example.captions
        }
        checks["verbatim"] = (
            f"equal to a caption in the {split_train} split of {dataset.name}",
            lambda _, __, words: tuple(words) in training,
        )
    if judge := dataset.judge:
        checks["untrue"] = (
            "wrong about at least one attribute of the image",
            lambda example, caption, _: not judge(example.image_id, caption.text),
        )
    return checks


def repeats(words: Sequence[str]) -> bool:
    """Return whether a caption repeats words.

    A repetition is a word twice in a row; two words that follow again at once or after one other
    word ("a dog and a dog"); or three words in a row that occur twice anywhere. Two words twice
    are no repetition in "a large star above a large circle".
    """
    bigrams = list(pairwise(words))
    doubled = any(a == b for a, b in bigrams)
    near = any(bigram in bigrams[i + 2 : i + 4] for i, bigram in enumerate(bigrams))
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return doubled or near or len(set(trigrams)) < len(trigrams)


def gallery_rows(result: Evaluation, findings: Findings) -> list[dict[str, Any]]:
    """Return the gallery's data of each image, for JSON."""
    columns = [score.per_image.tolist() for score in result.scores.values()]
    maps = result.maps or [None] * len(result.captions)
    rows = zip(result.table.examples, result.captions, findings.flags, maps, *columns, strict=True)
    return [
        {
            "name": PurePath(str(example.image)).name,
            "captions": [
                [c.text, _finite(c.log_prob), c.finished, _finite(c.score)] for c in captions
            ],
            "words": _marks(captions[0], found),
            **({"maps": found.packed(), "seen": found.seen} if found else {}),
            "references": example.captions,
            "scores": list(map(_finite, scores)),
            "flags": flags,
        }
        for example, captions, flags, found, *scores in rows
    ]


def _marks(caption: Caption, found: WordMaps | None) -> list[WordMark]:
    """Return the words of a caption, each with what the image adds if there are maps."""
    marks = marks_of(caption)
    for mark, nats in zip(marks, found.maps.sum((1, 2)).tolist() if found else (), strict=False):
        mark.hints.append(f"the image adds {nats:+.2f} nats")
    return marks


def thumbnails(images: Sequence[ImageFile]) -> Iterator[str]:
    """Yield each image as a small JPEG in base64; "" if it cannot be read."""
    with ThreadPoolExecutor() as pool:
        jpegs = pool.map(thumbnail, images)
        yield from tqdm(jpegs, desc="report", total=len(images), unit="image", disable=None)


def _finite(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return round(value, 4) if math.isfinite(value) else None
