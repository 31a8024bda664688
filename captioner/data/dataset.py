"""A data set in memory, the same for all formats, and its summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError
from captioner.images.content import ImageFile
from captioner.system.foreign import excerpt, plain

Kind = Literal[
    "missing image",
    "caption without image",
    "image without captions",
    "empty caption",
    "duplicate id",
    "not UTF-8",
    "malformed line",
    "empty split",
    "unreadable file",
    "refused member",
]

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development", "valset"), "dev"),
    **dict.fromkeys(("eval", "evaluation", "devset"), "dev"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_FILLERS = ("set", "split", "data", "images", "public", "private")  # Kaggle: PublicTest


@dataclass(frozen=True, slots=True)
class Example:
    """One image and its captions."""

    image: ImageFile
    captions: tuple[str, ...]  # as annotated, without surrounding white space; at least one
    split: str  # "train", "dev", "test" or another name used by the data set
    image_id: str  # unique in the data set


@dataclass(frozen=True, slots=True)
class Region:
    """Where a thing stands in an image, or several equal ones."""

    words: frozenset[str]  # that name its kind or its colour
    mask: NDArray[np.bool_]  # pixels of the image, (H, W)


@dataclass(frozen=True, slots=True)
class Problem:
    """One unusable item of a data set."""

    kind: Kind
    where: str  # such as "captions.txt:12" or "dataset.json: images[3]"
    detail: str  # the item, or the reason


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a data set, see `load_dataset`; a format ignores options of other formats."""

    images: Path | Literal[False] | None = None
    restval: bool = False
    image_column: str | None = None
    caption_column: str | None = None
    split_column: str = "split"
    splits: Sequence[str] = ()  # names in the settings, which may be those of tar shards


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples and the problems of a data set."""

    name: str  # short name for display, from the folder or file
    format: str
    root: Path  # folder or file of the data set
    examples: tuple[Example, ...]  # in the order of the annotations
    problems: tuple[Problem, ...]  # unusable items; an error in strict mode
    # (image_id, caption) -> whether the caption is true of the image; drawn scenes only
    judge: Callable[[str, str], bool] | None = None
    # image_id -> the things in the image; drawn scenes only
    regions: Callable[[str], list[Region]] | None = None
    notes: tuple[str, ...] = ()  # decisions of the reader, one sentence each; not problems
    empty_splits: tuple[str, ...] = ()  # splits of the annotations without a usable image

    def truth(self, examples: Sequence[Example], captions: Sequence[str]) -> float | None:
        """Return the fraction of captions that are true, one of each example; None: unknown."""
        if self.judge is None:
            return None
        pairs = zip(examples, captions, strict=True)
        return sum(self.judge(e.image_id, text) for e, text in pairs) / len(captions)

    @property
    def splits(self) -> dict[str, int]:
        """Images per split: train, dev and test first, then the data set's own."""
        counts = Counter(example.split for example in self.examples)
        known = [split for split in ("train", "dev", "test") if split in counts]
        return {split: counts[split] for split in [*known, *sorted(counts.keys() - known)]}

    def split(self, name: str) -> tuple[Example, ...]:
        """Return the examples of a split, by any of its usual names; a `DataError` without any."""
        wanted = split_name(name)
        chosen = tuple(example for example in self.examples if example.split == wanted)
        if not chosen:
            splits = ", ".join(f"{split} ({count:,})" for split, count in self.splits.items())
            hint = "; data.holdout takes dev images from two or more train images"
            hint = hint if wanted == "dev" else ""
            if skipped := _summary(self.problems):
                hint += f"; skipped: {'; '.join(skipped)}"
            hint += "".join(f"; {each}" for each in typing_errors([*self.splits, wanted]).values())
            raise DataError(
                f"{self.root}: no images in split {excerpt(name)}; splits: {splits or 'none'}{hint}"
            )
        return chosen


def split_name(name: str) -> str:
    """Return the canonical name of a split, such as "dev" for "val" and "validation"."""
    name = name.strip()
    return SPLIT_NAMES.get(name.lower()) or split_in(name, only=True) or name


def split_in(name: str, *, only: bool = False) -> str | None:
    """Return the one split that a file or folder name names, such as "dev" for "captions_val2014".

    With `only`, the name may hold nothing else but words such as "set" and a number.
    """
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if only and not set(words) <= {*SPLIT_NAMES, *_FILLERS}:
        return None
    return splits.pop() if len(splits) == 1 else None


def typing_errors(splits: Iterable[str]) -> dict[str, str]:
    """Return a sentence for each split whose name is almost a usual one."""
    sentences = {}
    for split in splits:
        name = split.lower()
        letters = [usual for usual in SPLIT_NAMES if sorted(usual) == sorted(name)]
        meant = [*letters, *get_close_matches(name, SPLIT_NAMES, n=1, cutoff=0.8)]
        if meant and split_name(split) not in SPLIT_NAMES.values():
            sentences[split] = f"split {excerpt(split)} looks like a typing error of {meant[0]}"
    return sentences


def describe(dataset: Dataset, extra: Sequence[tuple[str, str]] = ()) -> str:
    """Return a table with images and captions per split, problems by kind and notes.

    Below the counts stand further (label, text) rows, such as the vocabulary.
    """
    captions: Counter[str] = Counter()
    for example in dataset.examples:
        captions[example.split] += len(example.captions)
    counts = [(plain(split, 40), n, captions[split]) for split, n in dataset.splits.items()]
    counts.append(("total", len(dataset.examples), captions.total()))
    width = max(map(len, ["skipped", *(row[0] for row in counts), *(row[0] for row in extra)]))
    lines = [
        f"{'data':{width}}  {plain(dataset.name)} ({dataset.format}), {plain(dataset.root)}",
        f"{'':{width}}  {'images':>9}  {'captions':>9}",
        *(f"{label:{width}}  {images:>9,}  {texts:>9,}" for label, images, texts in counts),
        *(f"{label:{width}}  {plain(text)}" for label, text in extra),
        *(f"{'skipped':{width}}  {line}" for line in _summary(dataset.problems) or ["nothing"]),
        *(f"{'note':{width}}  {plain(note)}" for note in dataset.notes),
    ]
    return "\n".join(lines)


def refuse_problems(dataset: Dataset, most: int = 10) -> None:
    """Raise a `DataError` with the number of problems and the first `most`, if there are any."""
    problems = dataset.problems
    if problems:
        shown = [f"  {p.where}: {p.kind}: {p.detail}" for p in problems[:most]]
        shown += ["  ..."] if len(problems) > most else []
        head = f"{plain(dataset.root)}: {len(problems):,} problems in strict mode (data.strict)"
        raise DataError(head, *shown)


def _summary(problems: tuple[Problem, ...]) -> list[str]:
    """Return one line per kind, the most frequent first: count, kind, first problem."""
    first = {problem.kind: problem for problem in reversed(problems)}
    return [
        f"{count:,} {kind} (first at {first[kind].where}: {first[kind].detail})"
        for kind, count in Counter(problem.kind for problem in problems).most_common()
    ]
