"""Reads a data set of any format; an unusable item is a `Problem` with file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from captioner.data import scenes
from captioner.data.dataset import Dataset, Options, refuse_problems, typing_errors
from captioner.data.formats import (
    coco,
    delimited,
    flickr,
    huggingface,
    image_texts,
    jsonl,
    karpathy,
    kohya,
    multi30k,
    parquet,
    webdataset,
)
from captioner.data.formats.collect import caption_files, listed
from captioner.data.streams import is_stream
from captioner.errors import ConfigError, DataError, checked_names, must_be
from captioner.hub import is_hub_data
from captioner.system.files import not_text, read_head
from captioner.system.foreign import excerpt, plain
from captioner.system.plugins import guarded, load, names, plugin, tell_unused
from captioner.system.text_encodings import bad_encoding, reading_as


class Format(Protocol):
    """A format of data sets: a module."""

    LOOKS_FOR: str  # the expected folder or file, for error messages

    def recognise(self, root: Path, /) -> bool:
        """Return whether a folder or file seems to have this format; fast."""

    def load(self, root: Path, options: Options, /) -> Dataset:
        """Read a file, or a folder that `recognise` accepts.

        Raises:
            DataError: if a file is unreadable or has another format, or no image is usable.
        """


# In the order of recognition: the more specific first.
FORMATS: dict[str, Format] = {
    "scenes": scenes,
    "huggingface": huggingface,
    "karpathy": karpathy,
    "coco": coco,
    "multi30k": multi30k,
    "flickr": flickr,
    "kohya": kohya,
    "webdataset": webdataset,
    "parquet": parquet,
    "jsonl": jsonl,
    "csv": delimited,
    "sidecars": image_texts,
}


@checked_names
def load_dataset(
    root: str | Path,
    *,
    format: str = "auto",
    images: Path | Literal[False] | None = None,
    restval: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str = "split",
    holdout: float = 0.05,
    encoding: str | None = None,
    splits: Sequence[str] = (),
    strict: bool = False,
) -> Dataset:
    """Read a data set from a folder or an annotation file.

    Args:
        root: the folder or file, or `hf:OWNER/NAME[@REVISION][:CONFIG]` on the Hub.
        format: a key of `FORMATS`, the name of a plug-in's format, or "auto" to recognise it.
        images: image folder; None: next to the annotations; False: read only the annotations.
        restval: Karpathy splits only: add "restval" to "train".
        image_column: tables: column of the images, or of their file names; None: guessed.
        caption_column: tables: column of the caption or captions; None: guessed.
        split_column: tables: column of the split.
        holdout: without a dev split, this fraction of the train images becomes "dev", 0 to 1.
        encoding: Python's name of the encoding of texts without a byte order mark; None: UTF-8.
        splits: names of splits in use; one such as `val-{0..9}.tar` is the split of these shards.
        strict: raise an error if the data set has problems.

    Raises:
        ConfigError: if `root` is not a path, `holdout` not a number, or `encoding` unknown.
        DataError: if the data set does not exist, is unreadable, has an unknown format or no
            usable image, or has problems in strict mode.
    """
    must_be("root", root, str, Path)
    must_be("holdout", holdout, int, float)
    root = Path(root)
    options = Options(images, restval, image_column, caption_column, split_column, splits)
    must_be("encoding", encoding, str, type(None))
    if encoding is not None and (problem := bad_encoding(encoding)):
        raise ConfigError(f"encoding: {problem}, given {excerpt(encoding, 60)}")
    with reading_as(encoding) as reading:
        dataset = _choose(root, format).load(root, options)
    if strict:
        refuse_problems(dataset)
    typos = typing_errors(dataset.splits)
    notes = (
        f"{typo}; correct it, or set data.split_train, .split_dev or .split_test, else its "
        f"{dataset.splits[split]:,} images are not used"
        for split, typo in typos.items()
    )
    utf8 = [
        f"{len(reading.utf8):,} files are valid UTF-8, but data.encoding is {encoding} (first: "
        f"{plain(first)}); is it right?"
        for first in [*reading.utf8][:1]
    ]
    dataset = replace(dataset, notes=(*dataset.notes, *notes, *utf8))
    return _hold_out(dataset, holdout)


def recognised(root: Path, format: str = "auto") -> Format | None:
    """Return the first format that recognises a file or folder, or None.

    Raises:
        DataError: if a file cannot be read.
    """
    chosen = FORMATS.values() if format == "auto" else [_format_named(format)]
    try:
        return next((known for known in chosen if known.recognise(root)), None)
    except OSError as error:
        place = error.filename or root
        raise DataError(f"{place}: cannot be read: {error.strerror}") from error


class _OfPlugin:
    """A plug-in's format; what fails in it is one line that names the package."""

    def __init__(self, name: str):
        who = plugin("datasets", name)
        assert who
        self._who = who
        self._format: Format = load("datasets", name, ("LOOKS_FOR", "recognise", "load"))
        with guarded(who, DataError):
            self.LOOKS_FOR = str(self._format.LOOKS_FOR)

    def recognise(self, root: Path, /) -> bool:
        with guarded(self._who, DataError):
            return bool(self._format.recognise(root))

    def load(self, root: Path, options: Options, /) -> Dataset:
        with guarded(self._who, DataError):
            dataset = self._format.load(root, options)
            if not isinstance(dataset, Dataset):
                raise TypeError(f"load returns no Dataset but {type(dataset).__name__}")
        note = f"read by the {self._who}"
        return replace(dataset, format=self._who.name, notes=(note, *dataset.notes))


def _format_named(name: str) -> Format:
    """Return the format of a name in `FORMATS` or of a plug-in.

    Raises:
        DataError: if there is none.
        ConfigError: if a plug-in cannot be used.
    """
    if name in FORMATS:
        tell_unused("datasets", name)
        return FORMATS[name]
    if plugin("datasets", name):
        return _OfPlugin(name)
    known = ", ".join(["auto", *FORMATS, *names("datasets")])
    raise DataError(f"data.format {excerpt(name)} is none of: {known}")


def _choose(root: Path, format: str) -> Format:
    formats = FORMATS if format == "auto" else {format: _format_named(format)}
    if is_hub_data(root) and format in ("auto", "huggingface"):
        return huggingface
    try:
        if is_stream(root):
            raise DataError(
                f"{root}: a configuration starts no command; type it, as --set "
                f"'data.root=pipe:COMMAND' or --data 'pipe:COMMAND'"
            )
        if not root.exists() and not webdataset.is_pattern(root):
            raise DataError(f"{root}: no such file or folder; set data.root")
        if root.is_file() and format != "auto":
            return formats[format]
        if known := recognised(root, format):
            return known
        files = caption_files(root) if root.is_dir() else []
        texts = (
            file for file in files or [root] if file.is_file() and file.suffix.lower() != ".parquet"
        )
        faults = {file: what for file in texts if (what := _fault(read_head(file)))}
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error.strerror}") from error
    if not files and root.is_dir() and (tars := webdataset.tars_in(root)):
        raise DataError(
            f"{root}: no captions in the first tar files ({tars[0].name}); to learn from shards, "
            f"put NAME.txt, .caption or .json with NAME.jpg in uncompressed ones"
        )
    if faults and len(faults) >= len(files):
        raise DataError("; ".join(f"{file}: {what}" for file, what in faults.items()))
    expected = [f"  {name}: {known.LOOKS_FOR}" for name, known in formats.items()]
    if format == "auto" and (added := names("datasets")):
        expected.append(f"  set data.format to use a plug-in's: {', '.join(added)}")
    if files and format == "auto":
        raise DataError(
            f"{root}: no data set of a known format; found {listed(file.name for file in files)}; "
            f"name one, as data.root={files[0]}, or call them train and dev"
        )
    raise DataError(f"{root}: no data set of a known format; expected one of", *expected)


def _fault(head: bytes) -> str | None:
    """Return why a file holds no captions in a known format, from its first bytes, if they tell."""
    return not_text(head) if head.strip() else "empty file"


def _hold_out(dataset: Dataset, holdout: float) -> Dataset:
    """Move a fraction of train to dev if the data set has no dev split, and add a note."""
    has_dev = "dev" in dataset.splits or "dev" in dataset.empty_splits
    if has_dev or "train" not in dataset.splits or not holdout:
        return dataset
    ids = sorted((e.image_id for e in dataset.split("train")), key=_position)
    count = sum(_position(image_id) < holdout for image_id in ids)
    dev = set(ids[: min(max(count, 2), len(ids) - 1)])  # neither split is empty
    examples = tuple(replace(e, split="dev") if e.image_id in dev else e for e in dataset.examples)
    train = dataset.splits["train"]
    note = (
        f"the data set has no dev split: {len(dev):,} of {train:,} train images become dev "
        f"(data.holdout {holdout:g})"
    )
    return replace(dataset, examples=examples, notes=(*dataset.notes, note))


def _position(image_id: str) -> float:
    """Return a number in [0, 1) from the id alone: new images do not move old ones."""
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
