"""A text file beside each image, as `captioner caption --format txt`, kohya and taggui write."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

from captioner.data.dataset import Dataset, Options, split_name
from captioner.data.formats.collect import (
    Collector,
    listed,
    picture_folders,
    texts_of_images,
)
from captioner.errors import DataError
from captioner.system.text_files import read_lines

LOOKS_FOR = (
    "a folder, nested or not, of images with a .txt or .caption of the same name beside them"
)

_USUAL = ("train", "dev", "test")


def recognise(root: Path) -> bool:
    """Return whether a folder, or one below it, holds an image with a text beside it."""
    return root.is_dir() and any(Path(name).suffix for name in texts_of_images(root)[0].values())


def load(root: Path, options: Options) -> Dataset:
    """Read the texts, one caption a line; a folder named after a split is that split."""
    collector = Collector(root, "sidecars", picture_folders(root, options.images))
    of_image: dict[str, list[Path]] = defaultdict(list)
    texts, alone = texts_of_images(root)
    for text, image in texts.items():
        of_image[image].append(text)
    for image, files in of_image.items():
        entry = collector.add(image, image, split_of_folder(image), collector.place(files[0]))
        if entry is None:
            continue
        for file in files:
            try:
                lines = read_lines(file)
            except DataError as error:  # no text at all
                collector.problem(
                    "not UTF-8", collector.place(file), str(error).removeprefix(f"{file}: ")
                )
                continue
            for where, line in collector.lines(file, lines):
                collector.caption(entry, line, where)
    if alone:
        names = listed(map(collector.place, alone))
        collector.notes.append(f"{len(alone):,} text(s) without an image of their name: {names}")
    return collector.dataset(report_unnamed=True)


def split_of_folder(image: str) -> str:
    """Return the split that a folder of the path is named after; the innermost one, or train."""
    names = map(split_name, PurePosixPath(image).parts[-2::-1])
    return next((name for name in names if name in _USUAL), "train")
