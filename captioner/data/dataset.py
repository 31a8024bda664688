"""The in-memory form of a data set, the same for all formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.errors import DataError
from captioner.system.foreign import excerpt

Kind = Literal[
    "missing image",
    "caption without image",
    "image without captions",
    "empty caption",
    "duplicate id",
    "not UTF-8",
    "malformed line",
    "empty split",
]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One image and its captions.

    Attributes:
        image: the image file.
        captions: as annotated, without surrounding white space; at least one.
        split: "train", "dev", "test" or another name used by the data set.
        image_id: unique in the data set.
    """

    image: Path
    captions: tuple[str, ...]
    split: str
    image_id: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One unusable item of a data set.

    Attributes:
        kind: category of the problem.
        where: "captions.txt:12" or "dataset.json: images[3]".
        detail: the item, or the reason.
    """

    kind: Kind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a data set; a format ignores options of other formats.

    Attributes:
        images: image folder; None: next to the annotations.
        restval: Karpathy splits only: add "restval" to "train".
        image_column: CSV and JSONL: column of the image's file name; None: guessed.
        caption_column: CSV and JSONL: column of the caption; None: guessed.
        split_column: CSV and JSONL: column of the split, if there is one.
    """

    images: Path | None = None
    restval: bool = False
    image_column: str | None = None
    caption_column: str | None = None
    split_column: str = "split"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples and the problems of a data set.

    Attributes:
        name: short name for display, from the folder or file.
        format: name of the format.
        root: folder or file of the data set.
        examples: in the order of the annotations.
        problems: unusable items; an error in strict mode.
        judge: (image_id, caption) -> whether the caption is true of the image; drawn scenes only.
        notes: decisions of the reader, one sentence each; not problems.
        empty_splits: splits of the annotations without a usable image.
    """

    name: str
    format: str
    root: Path
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    judge: Callable[[str, str], bool] | None = None
    notes: tuple[str, ...] = ()
    empty_splits: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, int]:
        """Images per split: train, dev and test first, then the data set's own."""
        counts = Counter(example.split for example in self.examples)
        known = [split for split in ("train", "dev", "test") if split in counts]
        return {split: counts[split] for split in [*known, *sorted(counts.keys() - known)]}

    def split(self, name: str) -> tuple[Example, ...]:
        """Return the examples of one split, in order.

        Args:
            name: any usual name of the split ("val" is "dev").

        Raises:
            DataError: if the split has no example.
        """
        wanted = split_name(name)
        chosen = tuple(example for example in self.examples if example.split == wanted)
        if not chosen:
            splits = ", ".join(f"{split} ({count:,})" for split, count in self.splits.items())
            raise DataError(
                f"{self.root}: no images in split {excerpt(name)}; splits: {splits or 'none'}"
            )
        return chosen


def split_name(name: str) -> str:
    """Return the canonical name of a split, such as "dev" for "val" and "validation"."""
    name = name.strip()
    return SPLIT_NAMES.get(name.lower(), name)
