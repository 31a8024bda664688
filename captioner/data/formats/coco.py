"""COCO captions: JSON files with `images` and `annotations`, joined by image id.

Source: X. Chen et al., "Microsoft COCO captions: data collection and evaluation server", 2015.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from captioner.data.dataset import SPLIT_NAMES, Dataset, Options
from captioner.data.formats.collect import Collector, picture_folders
from captioner.errors import DataError
from captioner.system.foreign import excerpt
from captioner.system.text_files import read_json

LOOKS_FOR = "a JSON file (captions_*.json in a folder or its annotations/) with images, annotations"


def recognise(root: Path) -> bool:
    """Whether this is a JSON file, or a folder with COCO captions."""
    return bool(_files(root)) if root.is_dir() else root.suffix == ".json"


def load(root: Path, options: Options) -> Dataset:
    """Read COCO captions; the split of each file is the one its name says, else train.

    Args:
        root: one JSON file, or a folder with `captions_*.json` in it or in `annotations/`.
        options: `images` is used: the folder of the pictures, or of `train2014/` and `val2014/`.

    Raises:
        DataError: if there is no such file, or it is not JSON, or of another kind.
    """
    files = _files(root)
    if not files:
        raise DataError(f"{root}: not COCO captions: expected {LOOKS_FOR}")
    base = files[0].parent.parent if files[0].parent.name == "annotations" else files[0].parent
    folders = picture_folders(base, options.images)
    parts = [_part(file) for file in files]
    inner = [folder / part for folder in folders for part in parts if (folder / part).is_dir()]
    found = Collector(root, "coco", [*inner, *folders])
    for file in files:
        _read_file(found, file)
    return found.dataset()


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(root.glob("annotations/captions_*.json")) or sorted(root.glob("captions_*.json"))


def _part(file: Path) -> str:
    """`captions_val2014.json` goes with the folder `val2014`."""
    return file.stem.removeprefix("captions_")


def _split(found: Collector, file: Path) -> str:
    for word in re.findall("[a-z]+", file.stem.lower()):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    found.notes.append(f"{found.place(file)} names no split; its images are taken as train")
    return "train"


def _read_file(found: Collector, file: Path) -> None:
    document = read_json(file)
    match document:
        case {"images": list(images), "annotations": list(annotations)}:
            pass
        case _:
            raise DataError(
                f"{file}: neither COCO captions (images, annotations) nor Karpathy's (sentences)"
            )
    place, split = found.place(file), _split(found, file)
    found.expect(split, place)
    for index, image in enumerate(images):
        where = f"{place}: images[{index}]"
        match image:
            case {"id": int() | str() as number, "file_name": str(name)} if name:
                found.add(str(number), name, split, where)
            case _:
                found.problem("malformed line", where, "needs id and file_name")
    seen: set[object] = set()
    for index, annotation in enumerate(annotations):
        _read_annotation(found, annotation, f"{place}: annotations[{index}]", seen)


def _read_annotation(found: Collector, annotation: Any, where: str, seen: set[object]) -> None:
    """Add one element of `annotations`; `seen` holds the annotation ids so far."""
    match annotation:
        case {"image_id": int() | str() as number, "caption": caption}:
            pass
        case _:
            found.problem("malformed line", where, "needs image_id and caption")
            return
    key = annotation.get("id")
    if isinstance(key, int | str):
        if key in seen:
            found.problem("duplicate id", where, f"annotation {key} is there already")
            return
        seen.add(key)
    entry = found.get(str(number))
    if entry:
        found.caption(entry, caption, where)
    else:
        found.problem("caption without image", where, f"image {number}: {excerpt(caption)}")
