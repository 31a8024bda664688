"""Statistics and flags of the captions in a report, and the rows of the gallery."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from captioner.data.dataset import Dataset
from captioner.errors import ImageError
from captioner.images.decode import read_image
from captioner.text import Vocabulary, tokenize

if TYPE_CHECKING:
    from captioner.evaluation.evaluate import Evaluation

THUMBNAIL = 256  # pixels of the longer side
QUALITY = 70  # JPEG quality; a photograph of that size takes about 10 KB
MAX_REPEATED = 5  # repeated captions in the list

FLAGS = {
    "unk": "<unk>",
    "repetition": "repetition",
    "unfinished": "unfinished",
    "verbatim": "verbatim",
    "untrue": "untrue",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """Statistics and flags of the captions of a split.

    Attributes:
        flags: flags of each image's caption, keys of `FLAGS`.
        known: the flags that this data set allows, with a description.
        lengths: words of each caption.
        reference_lengths: words of each reference.
        words: number of distinct words in the captions.
        vocabulary_size: number of words in the vocabulary.
        distinct: number of distinct captions.
        repeated: the most frequent captions, each with its number of images.
    """

    flags: list[list[str]]
    known: dict[str, str]
    lengths: list[int]
    reference_lengths: list[int]
    words: int
    vocabulary_size: int
    distinct: int
    repeated: list[tuple[str, int]]

    def count(self, flag: str) -> int:
        """Return the number of captions with a flag."""
        return sum(flag in flags for flags in self.flags)


def find(result: Evaluation, vocabulary: Vocabulary, split_train: str) -> Findings:
    """Compute the statistics and flags of a split's captions.

    Args:
        result: result of `evaluate`.
        vocabulary: vocabulary of the model.
        split_train: name of the training split.
    """
    dataset = result.dataset
    texts = [captions[0].text for captions in result.captions]
    tokens = [tokenize(text) for text in texts]
    training = training_captions(dataset, split_train)
    known = {
        "unk": "with the unknown word <unk>",
        "repetition": "with a word, two words or three words repeated",
        "unfinished": "cut off at the maximum length",
    }
    if training is not None:
        known["verbatim"] = f"equal to a caption in the {split_train} split of {dataset.name}"
    if dataset.judge is not None:
        known["untrue"] = "wrong about at least one attribute of the image"
    flags = []
    rows = zip(result.table.examples, result.captions, tokens, strict=True)
    for example, captions, words in rows:
        best = captions[0]
        holds = {
            "unk": "<unk>" in best.text.split(),
            "repetition": repeats(words),
            "unfinished": not best.finished,
            "verbatim": training is not None and tuple(words) in training,
            "untrue": dataset.judge is not None and not dataset.judge(example.image_id, best.text),
        }
        flags.append([flag for flag in known if holds[flag]])
    counts = Counter(texts)
    return Findings(
        flags=flags,
        known=known,
        lengths=[len(words) for words in tokens],
        reference_lengths=[len(words) for image in result.table.references for words in image],
        words=len({word for words in tokens for word in words}),
        vocabulary_size=len(vocabulary.words),
        distinct=len(counts),
        repeated=[(text, n) for text, n in counts.most_common(MAX_REPEATED) if n > 1],
    )


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


def training_captions(dataset: Dataset, split: str) -> frozenset[tuple[str, ...]] | None:
    """Return the tokens of every training caption; None if the data set has no such split."""
    if split not in dataset.splits:
        return None
    return frozenset(
        tuple(tokenize(caption)) for example in dataset.split(split) for caption in example.captions
    )


def gallery_rows(result: Evaluation, findings: Findings) -> list[dict[str, Any]]:
    """Return the gallery's data of each image, for JSON."""
    columns = [score.per_image.tolist() for score in result.scores.values()]
    return [
        {
            "name": example.image.name,
            "captions": [[c.text, _finite(c.log_prob), c.finished] for c in captions],
            "references": example.captions,
            "scores": [_finite(column[i]) for column in columns],
            "flags": findings.flags[i],
        }
        for i, (example, captions) in enumerate(
            zip(result.table.examples, result.captions, strict=True)
        )
    ]


def thumbnails(paths: Sequence[Path]) -> Iterator[str]:
    """Yield each image as a small JPEG in base64; "" if it cannot be read."""
    with ThreadPoolExecutor() as pool:
        jpegs = pool.map(_thumbnail, paths)
        yield from tqdm(jpegs, desc="report", total=len(paths), unit="image", disable=None)


def _thumbnail(path: Path) -> str:
    try:
        picture = read_image(path)
    except ImageError:
        return ""
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _finite(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return round(value, 4) if math.isfinite(value) else None
