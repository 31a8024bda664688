"""Data sets on disk, all to one `Example(image, captions, split, image_id)`.

One module per format; `load_dataset` finds the right one. Nothing is dropped silently: whatever
cannot be used is a `Problem` with file and line, and `describe` counts them.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.data import scenes
from captioner.data.dataset import Dataset, Example, Options, Problem
from captioner.data.formats import coco, delimited, flickr, jsonl, karpathy
from captioner.data.summary import describe, refuse_problems
from captioner.errors import DataError
from captioner.system.files import no_stream
from captioner.system.foreign import excerpt

__all__ = ["FORMATS", "Dataset", "Example", "Format", "Problem", "describe", "load_dataset"]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a data set.

    Attributes:
        looks_for: what a folder or file of this format has, for error messages.
        recognise: whether a folder or file seems to be of this format; cheap.
        load: reads it.
    """

    looks_for: str
    recognise: Callable[[Path], bool]
    load: Callable[[Path, Options], Dataset]


def _is_scenes(root: Path) -> bool:
    index = root / scenes.INDEX
    if not index.is_file():
        return False
    with open(index, "rb", opener=no_stream) as file:
        return b'"scene"' in file.readline()


# In the order they are tried: the more particular first.
FORMATS: dict[str, Format] = {
    "scenes": Format(
        f"a folder with drawn scenes in {scenes.INDEX}",
        _is_scenes,
        lambda root, _: scenes.load(root),
    ),
    "karpathy": Format(karpathy.LOOKS_FOR, karpathy.recognise, karpathy.load),
    "coco": Format(coco.LOOKS_FOR, coco.recognise, coco.load),
    "flickr": Format(flickr.LOOKS_FOR, flickr.recognise, flickr.load),
    "jsonl": Format(jsonl.LOOKS_FOR, jsonl.recognise, jsonl.load),
    "csv": Format(delimited.LOOKS_FOR, delimited.recognise, delimited.load),
}


def load_dataset(
    root: Path,
    *,
    format: str = "auto",
    images: Path | None = None,
    restval: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str = "split",
    holdout: float = 0.05,
    strict: bool = False,
) -> Dataset:
    """Read a data set from a folder or an annotation file.

    Args:
        root: the folder or file.
        format: a key of `FORMATS`, or "auto" to recognise it.
        images: folder of the pictures, when they are not beside the annotations.
        restval: Karpathy splits only: join "restval" to "train".
        image_column: CSV and JSONL: column with the picture's file name; None guesses.
        caption_column: CSV and JSONL: column with the caption or captions; None guesses.
        split_column: CSV and JSONL: column with the split.
        holdout: share of the train images, 0 to 1, that becomes "dev" where the data set names
            no dev split; 0 for none.
        strict: refuse a data set with problems.

    Raises:
        DataError: if it does not exist, is of no known format, cannot be read, holds not one
            usable example, or has problems in strict mode.
    """
    options = Options(images, restval, image_column, caption_column, split_column)
    with _no_garbage_collection():
        dataset = _choose(root, format).load(root, options)
    if strict:
        refuse_problems(dataset)
    return _hold_out(dataset, holdout)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Reading makes millions of objects and no cycles; looking for some takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _choose(root: Path, format: str) -> Format:
    if format not in ("auto", *FORMATS):
        raise DataError(f"data.format {excerpt(format)} is none of: auto, {', '.join(FORMATS)}")
    try:
        if not root.exists():
            raise DataError(f"{root}: no such file or folder; set data.root")
        for name, known in FORMATS.items():
            if format == name or (format == "auto" and known.recognise(root)):
                return known
    except OSError as error:
        raise DataError(f"{root}: cannot read it: {error.strerror}") from error
    sought = [f"  {name}: {known.looks_for}" for name, known in FORMATS.items()]
    raise DataError(f"{root}: no known data set there; looked for", *sought)


def _hold_out(dataset: Dataset, share: float) -> Dataset:
    """Move a share of train to dev where the data set names no dev split, and note it."""
    has_dev = "dev" in dataset.splits or "dev" in dataset.empty_splits
    if has_dev or "train" not in dataset.splits or not share:
        return dataset
    held = {e.image_id for e in dataset.split("train") if _position(e.image_id) < share}
    examples = tuple(replace(e, split="dev") if e.image_id in held else e for e in dataset.examples)
    train = dataset.splits["train"]
    note = (
        f"the data set names no dev split: {len(held):,} of {train:,} train images are dev "
        f"(data.holdout {share:g})"
    )
    return replace(dataset, examples=examples, notes=(*dataset.notes, note))


def _position(image_id: str) -> float:
    """A place in [0, 1) that depends on this id alone, so that no image moves when others come."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
