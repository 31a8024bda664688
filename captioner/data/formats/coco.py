"""COCO captions: JSON files with `images` and `annotations`, joined by image id.

Source: X. Chen et al., "Microsoft COCO captions: data collection and evaluation server", 2015.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from captioner.data.dataset import SPLIT_NAMES, Dataset, Options, split_in
from captioner.data.formats.collect import Collector, annotation_files, picture_folders
from captioner.data.formats.columns import is_rows, is_table
from captioner.errors import DataError
from captioner.system.foreign import excerpt
from captioner.system.text_files import text_head

LOOKS_FOR = (
    "a JSON file (captions_*.json or a single one in a folder or its annotations/) with images, "
    "annotations"
)
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def recognise(root: Path) -> bool:
    """Return whether this is a JSON file, or a folder with COCO captions."""
    if root.is_dir():
        return bool(_files(root))
    return root.suffix.lower() == ".json" and not is_rows(root)


def load(root: Path, options: Options) -> Dataset:
    """Read COCO captions; the split of each file is in its name, otherwise train.

    The images are in the image folder, or in its `train2014/` and `val2014/`.
    """
    files = _files(root)
    base = files[0].parent.parent if files[0].parent.name == "annotations" else files[0].parent
    folders = picture_folders(base, options.images)
    names = [file.stem.removeprefix("captions_") for file in files]
    inner = [folder / name for folder in folders for name in names if (folder / name).is_dir()]
    collector = Collector(root, "coco", [*inner, *folders])
    collector.note_others(files)
    several = len(files) > 1
    for file in files:
        document = collector.read_json(file)
        if several and _has_no_captions(document):
            collector.notes.append(f"{collector.place(file)} holds no annotations; passed over")
        else:
            _read_file(collector, file, document)
    return collector.dataset()


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    for folder in ("annotations/", ""):
        files = annotation_files(root, f"{folder}captions_*.json")
        if not all(is_rows(file, surely=True) for file in files):
            return files
    # nocaps_val_4500_captions.json; STAIR Captions
    files = annotation_files(root, "*captions*.json")
    if named := [f for f in files if "_tokenized" not in f.stem and _looks_like_coco(f)]:
        return named
    files = annotation_files(root, "annotations/*.json")  # VizWiz: train.json, val.json
    if named := [f for f in files if f.stem.lower() in SPLIT_NAMES and not is_rows(f, surely=True)]:
        return named
    files = [] if is_table(root, _TABLES) else annotation_files(root, "*.json") or files
    return files if len(files) == 1 and _looks_like_coco(files[0]) else []


def _looks_like_coco(file: Path) -> bool:
    return {'"images"', '"file_name"'} <= set(re.findall('"[a-z_]+"', text_head(file, 1 << 16)))


def _split(collector: Collector, file: Path) -> str:
    if split := split_in(file.stem):
        return split
    collector.notes.append(f"{collector.place(file)} names no split; its images become train")
    return "train"


def _has_no_captions(document: Any) -> bool:
    """Return whether this is a file of results, or of images to caption."""
    match document:
        case [*_]:
            return True
        case {"images": [*_], **others}:
            return "annotations" not in others
    return False


def _read_file(collector: Collector, file: Path, document: Any) -> None:
    match document:
        case {"images": list(images), "annotations": list(annotations)}:
            pass
        case _:
            if isinstance(document, dict) and _has_no_captions(document):
                raise DataError(
                    f"{file}: holds no captions to learn from; to caption its images: captioner "
                    f"caption {file} --output results.json"
                )
            raise DataError(
                f"{file}: neither COCO captions (images, annotations) nor Karpathy's (sentences)"
            )
    place, split = collector.place(file), _split(collector, file)
    collector.expect(split, place)
    for index, image in enumerate(images):
        where = f"{place}: images[{index}]"
        match image:
            case {"id": int() | str() as number, "file_name": str(name)} if name:
                collector.add(str(number), name, split, where)
            case _:
                collector.problem("malformed line", where, "needs id and file_name")
    refused = [a for a in annotations if is_refused(a)]
    if refused:
        note = f"{place}: {len(refused):,} rejected or precanned captions are left out (VizWiz)"
        collector.notes.append(note)
    seen: set[object] = set()
    for index, annotation in enumerate(annotations):
        if not is_refused(annotation):
            _read_annotation(collector, annotation, f"{place}: annotations[{index}]", seen)


def is_refused(annotation: Any) -> bool:
    """Return whether VizWiz marks a caption as rejected or precanned."""
    fields = annotation if isinstance(annotation, dict) else {}
    return bool(fields.get("is_rejected") or fields.get("is_precanned"))


def _read_annotation(collector: Collector, annotation: Any, where: str, seen: set[object]) -> None:
    """Add one element of `annotations`; `seen` holds the ids of earlier annotations."""
    match annotation:
        case {"image_id": int() | str() as number, "caption": caption}:
            pass
        case _:
            collector.problem("malformed line", where, "needs image_id and caption")
            return
    key = annotation.get("id")
    if isinstance(key, int | str):
        if key in seen:
            collector.problem("duplicate id", where, f"annotation {key} exists already")
            return
        seen.add(key)
    entry = collector.entries.get(str(number))
    if entry:
        collector.caption(entry, caption, where)
    else:
        collector.problem("caption without image", where, f"image {number}: {excerpt(caption)}")
