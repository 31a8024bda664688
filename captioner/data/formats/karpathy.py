"""Karpathy splits: one JSON file with images, sentences and splits.

Source: A. Karpathy, L. Fei-Fei, "Deep visual-semantic alignments for generating image
descriptions", 2015.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector, annotation_files, picture_folders
from captioner.errors import DataError
from captioner.system.foreign import excerpt
from captioner.system.text_files import text_head

LOOKS_FOR = "a JSON file (dataset_*.json in a folder) with images[].sentences[]"

_OTHERS = ("dataset_info", "dataset_infos")  # of Hugging Face
_PEEK = 1 << 16  # bytes, enough for the first image; the file may have 150 MB


def recognise(root: Path) -> bool:
    """Return whether this is a JSON file of a Karpathy split, or a folder with one."""
    if root.is_dir():
        return bool(_files(root))
    return root.suffix.lower() == ".json" and _has_images(root, '"sentences"')


def load(root: Path, options: Options) -> Dataset:
    """Read a Karpathy split: a JSON file, or a folder with exactly one `dataset_*.json`."""
    files = [root] if root.is_file() else _files(root)
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{root}: expected one dataset_*.json, found {names}; name the file")
    [file] = files
    collector = Collector(root, "karpathy", picture_folders(file.parent, options.images))
    document = collector.read_json(file)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{file}: not a Karpathy split: expected images[].sentences[]")
    collector.note_others(files)
    place = collector.place(file)
    numbers: dict[str, str] = {}
    for index, image in enumerate(images):
        _read_image(collector, image, f"{place}: images[{index}]", options, numbers)
    dataset = collector.dataset()
    if kept := dataset.splits.get("restval"):
        note = f"{kept:,} restval images are not in train; data.restval=true adds them"
        return replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _files(root: Path) -> list[Path]:
    files = annotation_files(root, "dataset_*.json")
    return [file for file in files if file.stem not in _OTHERS and _has_images(file)]


def _has_images(path: Path, key: str = '"images"') -> bool:
    start = text_head(path, _PEEK)
    return key in start or '"sentences"' in start


def _read_image(
    collector: Collector, image: Any, where: str, options: Options, numbers: dict[str, str]
) -> None:
    """Add one element of `images`; `numbers` holds the earlier `imgid`s and their places."""
    match image:
        case {"filename": str(name), "split": str(split), "sentences": list(sentences)} if name:
            pass
        case _:
            collector.problem("malformed line", where, "needs filename, split and sentences")
            return
    number = str(image.get("imgid", where))
    if number in numbers:
        collector.problem("duplicate id", where, f"imgid {number} is already at {numbers[number]}")
        return
    numbers[number] = where
    folder = image.get("filepath")
    path = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    split = "train" if options.restval and split == "restval" else split
    entry = collector.add(str(image.get("cocoid", path)), path, split, where)
    if entry is None:
        return
    for index, sentence in enumerate(sentences):
        spot = f"{where}.sentences[{index}]"
        match sentence:
            case {"raw": raw} if raw is not None:
                collector.caption(entry, raw, spot)
            case {"tokens": [*tokens]} if all(isinstance(token, str) for token in tokens):
                collector.caption(entry, " ".join(tokens), spot)
            case _:
                collector.problem(
                    "malformed line", spot, f"neither raw nor tokens: {excerpt(sentence)}"
                )
