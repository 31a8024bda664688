"""What a report says about captions: flags, lengths, words, and a row for each image."""

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
QUALITY = 70  # of a JPEG: about 10 KB for a photograph of that size
MOST_REPEATED = 5  # captions listed

FLAGS = {
    "unk": "<unk>",
    "repetition": "repetition",
    "unfinished": "unfinished",
    "verbatim": "verbatim",
    "untrue": "untrue",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the captions of a split are like.

    Attributes:
        flags: of each image's caption, names out of `FLAGS`.
        known: the flags that could be decided, and what each means, for people.
        lengths: words of each caption.
        reference_lengths: words of each reference.
        words: distinct words the captions use.
        vocabulary_size: words the model could use.
        distinct: captions that differ.
        repeated: the captions given to most images, and to how many.
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
        """Return how many captions have a flag."""
        return sum(flag in flags for flags in self.flags)


def find(result: Evaluation, vocabulary: Vocabulary, split_train: str) -> Findings:
    """Look at the captions of a split.

    Args:
        result: of `evaluate`.
        vocabulary: the model's.
        split_train: name of the training split of the data set.
    """
    dataset = result.dataset
    texts = [captions[0].text for captions in result.captions]
    tokens = [tokenize(text) for text in texts]
    training = training_captions(dataset, split_train)
    known = {
        "unk": "with a word the model could not name",
        "repetition": "with a word twice in a row, two words again at once, or three words twice",
        "unfinished": "cut at the longest length, before their end",
    }
    if training is not None:
        known["verbatim"] = f"word for word in the {split_train} split of {dataset.name}"
    if dataset.judge is not None:
        known["untrue"] = "wrong in some attribute of the drawn picture"
    flags = []
    rows = zip(result.table.examples, result.captions, tokens, strict=True)
    for example, captions, words in rows:
        best = captions[0]
        has = {
            "unk": "<unk>" in best.text.split(),
            "repetition": repeats(words),
            "unfinished": not best.finished,
            "verbatim": training is not None and tuple(words) in training,
            "untrue": dataset.judge is not None and not dataset.judge(example.image_id, best.text),
        }
        flags.append([flag for flag in known if has[flag]])
    counts = Counter(texts)
    return Findings(
        flags=flags,
        known=known,
        lengths=[len(words) for words in tokens],
        reference_lengths=[len(words) for image in result.table.references for words in image],
        words=len({word for words in tokens for word in words}),
        vocabulary_size=len(vocabulary.words),
        distinct=len(counts),
        repeated=[(text, n) for text, n in counts.most_common(MOST_REPEATED) if n > 1],
    )


def repeats(words: Sequence[str]) -> bool:
    """Say whether a caption repeats itself.

    That is a word twice in a row, two words again at once or after one more ("a dog and a dog"),
    or three words in a row twice anywhere. Two words that merely occur twice are no fault: "a
    large star above a large circle".
    """
    pairs = list(pairwise(words))
    stutters = any(a == b for a, b in pairs)
    near = any(pair in pairs[i + 2 : i + 4] for i, pair in enumerate(pairs))
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return stutters or near or len(set(threes)) < len(threes)


def training_captions(dataset: Dataset, split: str) -> frozenset[tuple[str, ...]] | None:
    """Return the tokens of every training caption; None where the data set has no such split."""
    if split not in dataset.splits:
        return None
    return frozenset(
        tuple(tokenize(caption)) for example in dataset.split(split) for caption in example.captions
    )


def gallery_rows(result: Evaluation, findings: Findings) -> list[dict[str, Any]]:
    """Return what the gallery shows of each image, ready for JSON."""
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
    """Yield each picture as a small JPEG in base64; empty where it cannot be read."""
    with ThreadPoolExecutor() as pool:
        made = pool.map(_thumbnail, paths)
        yield from tqdm(made, desc="report", total=len(paths), unit="image", disable=None)


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
    """Return None for what JSON does not have."""
    return round(value, 4) if math.isfinite(value) else None
