"""kohya's metadata: JSON that maps images to captions and tags, made by its fine-tuning scripts.

A key is the name of an image without its ending, its path below the folder, or a full path.

Source: kohya-ss, sd-scripts, `finetune/merge_captions_to_metadata.py`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import (
    Collector,
    annotation_files,
    is_hidden,
    picture_folders,
    texts_of_images,
)
from captioner.data.formats.image_texts import split_of_folder
from captioner.errors import DataError
from captioner.images.decode import SUFFIXES
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import text_head

LOOKS_FOR = (
    "meta_lat.json, meta_clean.json, meta_cap_dd.json, meta_cap.json or metadata.json of kohya, in "
    "a folder or beside the folder of its images"
)

# The last step first: each file holds what those after it in this list hold.
_NAMES = ("meta_lat", "meta_clean", "meta_cap_dd", "meta_cap", "metadata")
_ENTRY = re.compile(
    r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"(?:caption|tags|train_resolution|image_size)"'
)
_PEEK = 1 << 16  # bytes


def recognise(root: Path) -> bool:
    """Return whether this is such a file, or a folder with one in it or beside it."""
    return _file(root) is not None


def load(root: Path, options: Options) -> Dataset:
    """Read the captions, or what `caption_column` names, such as tags; a folder may be a split."""
    file = _file(root) or root
    beside = root.is_dir() and file.parent != root
    folders = picture_folders(root if beside else file.parent, options.images)
    base = options.images or (root if beside else file.parent)
    collector = Collector(root, "kohya", [base] if folders else [])
    document = collector.read_json(file)
    if not isinstance(document, dict):
        raise DataError(f"{file}: not kohya's metadata: expected {{image: {{caption, tags}}}}")
    collector.note_others([file])
    known = _images(base) if folders else {}
    place, column = collector.place(file), options.caption_column or "caption"
    only_tags = 0
    for key, fields in document.items():
        where = f"{place}: {plain(key)}"
        if not isinstance(fields, dict):
            collector.problem("malformed line", where, f"not an object: {excerpt(fields)}")
            continue
        found = _find(known, key)
        if len(found) > 1:
            names = f"{found[0]} and {found[1]}"
            collector.problem("duplicate id", where, f"may be {names}; the key must tell one")
            continue
        name = found[0] if found else key
        entry = collector.add(name, name, split_of_folder(name), where)
        if entry is None:
            continue
        for caption in _captions(fields, column):
            collector.caption(entry, caption, where)
        only_tags += not entry.captions and bool(fields.get("tags"))
    if only_tags:
        collector.notes.append(
            f"{place}: {only_tags:,} images have tags and no caption; data.caption_column=tags "
            f"reads the tags"
        )
    return collector.dataset(report_unnamed=root.is_dir())


def _captions(fields: dict[str, Any], column: str) -> list[object]:
    value = fields.get(column)
    if column == "tags" and isinstance(value, list):
        return [", ".join(map(str, value))]
    return value if isinstance(value, list) else [] if value is None else [value]


def _file(root: Path) -> Path | None:
    """Return the file of a folder with the most steps; or that beside a folder of images."""
    if root.is_file():
        return root if root.stem.lower() in _NAMES and _is_metadata(root) else None
    if not root.is_dir():
        return None
    if found := _in(root):
        return found
    beside = _in(root.absolute().parent) if any(map(_is_image, sorted(root.glob("*.*")))) else None
    return beside if beside and not texts_of_images(root)[0] else None


def _in(folder: Path) -> Path | None:
    files = [file for name in _NAMES for file in annotation_files(folder, f"{name}.json")]
    return next((file for file in files if file.is_file() and _is_metadata(file)), None)


def _is_metadata(file: Path) -> bool:
    return file.suffix.lower() == ".json" and bool(_ENTRY.match(text_head(file, _PEEK).lstrip()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def _images(base: Path) -> dict[str, list[str]]:
    """Return the images below a folder, by name and by path, each with and without ending."""
    known: dict[str, list[str]] = defaultdict(list)
    for path in sorted(base.rglob("*.*")):
        if _is_image(path) and path.is_file():
            name = path.relative_to(base).as_posix()
            stem = os.path.splitext(name)[0]  # noqa: PTH122
            for key in {name, stem, path.name, path.stem}:
                known[key].append(name)
    return known


def _find(known: dict[str, list[str]], key: str) -> list[str]:
    """Return the images that a key may name: of all ends of its path, by the longest known."""
    parts = PurePosixPath(key.replace("\\", "/")).parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((known[end] for end in ends if end in known), [])
