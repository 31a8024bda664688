"""What every data set becomes, whatever format it was written in."""

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
    """One picture and everything people wrote about it.

    Attributes:
        image: file of the picture.
        captions: as annotated, surrounding white space removed; at least one.
        split: "train", "dev", "test" or another name used by the data set.
        image_id: unique in the data set.
    """

    image: Path
    captions: tuple[str, ...]
    split: str
    image_id: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing in the annotations that cannot be used.

    Attributes:
        kind: which of a small fixed set of mistakes.
        where: "captions.txt:12" or "dataset.json: images[3]".
        detail: what was found there.
    """

    kind: Kind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a data set; each format takes what concerns it.

    Attributes:
        images: folder of the pictures, or None to look beside the annotations.
        restval: Karpathy splits only: join "restval" to "train".
        image_column: CSV and JSONL: column with the picture's file name, or None to guess.
        caption_column: CSV and JSONL: column with the caption, or None to guess.
        split_column: CSV and JSONL: column with the split, used where there is one.
    """

    images: Path | None = None
    restval: bool = False
    image_column: str | None = None
    caption_column: str | None = None
    split_column: str = "split"


@dataclass(frozen=True, slots=True)
class Dataset:
    """All examples of a data set, and all that had to be left out.

    Attributes:
        name: short name for people, taken from the folder or file.
        format: name of the format it was read as.
        root: folder or file it was read from.
        examples: in the order of the annotations.
        problems: what could not be used; strict mode refuses them.
        judge: (image_id, caption) -> is it true of the picture; only drawn data sets know.
        notes: choices made while reading that are no mistakes, one sentence each.
        empty_splits: splits the data set names without one usable image in them.
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
        """Examples of one split, in order.

        Args:
            name: the split, under any of its usual names ("val" is "dev").

        Raises:
            DataError: if no example is in it.
        """
        wanted = split_name(name)
        chosen = tuple(example for example in self.examples if example.split == wanted)
        if not chosen:
            held = ", ".join(f"{split} ({count:,})" for split, count in self.splits.items())
            raise DataError(
                f"{self.root}: no images in split {excerpt(name)}; it has {held or 'none'}"
            )
        return chosen


def split_name(name: str) -> str:
    """One name per split: "val" and "validation" are "dev", "training" is "train"."""
    name = name.strip()
    return SPLIT_NAMES.get(name.lower(), name)
