"""Multi30k: lists of images, and files whose lines are captions of these images, by language.

Task 1 has one translated caption of each image (`train.txt`, `train.de`), task 2 five independent
ones (`train_images.txt`, `train.1.de` to `train.5.de`).

Source: D. Elliott et al., "Multi30K: multilingual English-German image descriptions", 2016.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from captioner.data.dataset import Dataset, Options, split_in
from captioner.data.formats.collect import (
    Collector,
    annotation_files,
    listed,
    picture_folders,
)
from captioner.data.formats.columns import headless
from captioner.errors import DataError
from captioner.system.foreign import excerpt
from captioner.system.text_files import is_utf8, read_lines, text_head

LOOKS_FOR = (
    "a list of images train.txt or train_images.txt (or in image_splits/), and captions train.en "
    "or train.1.en (or in raw/) with as many lines"
)

_PARTS = ("", "data/task1", "data/task2", "task1", "task2")  # of the repository
_LISTS, _TEXTS = ("", "image_splits"), ("", "raw")
_LANGUAGE = re.compile(r"(?:\.\d+)?\.([a-z]{2})(\.gz)?", re.IGNORECASE)
_NUMBER = re.compile(r"#\d+\Z")  # of a caption in COCO, in the list of test_2017_mscoco


def recognise(root: Path) -> bool:
    """Return whether a folder holds a list of images and parallel captions."""
    return root.is_dir() and bool(_lists(root)[1])


def load(root: Path, options: Options) -> Dataset:
    """Read the captions of one language; `caption_column` names it if there are several."""
    base, lists = _lists(root)
    texts = {file: _texts(base, _stem(file)) for file in lists}
    languages = sorted({language for found in texts.values() for language in found})
    language = options.caption_column or (languages[0] if len(languages) == 1 else None)
    if language not in languages:
        given = "" if language is None else f"no captions in {excerpt(language)}; "
        raise DataError(
            f"{root}: {given}holds captions in {listed(languages)}; choose one, such as "
            f"data.caption_column={languages[0]}"
        )
    folders = picture_folders(root, options.images)
    inner = picture_folders(base, options.images) if base != root else []
    collector = Collector(root, "multi30k", dict.fromkeys([*folders, *inner]))
    tests = [file for file in lists if split_in(_stem(file)) == "test"]
    for file in lists:
        stem = _stem(file)
        split = stem if file in tests[1:] else split_in(stem) or stem
        _read_split(collector, file, split, texts[file].get(language, []))
    if len(tests) > 1:
        others = listed(map(_stem, tests[1:]))
        collector.notes.append(f"test is {_stem(tests[0])}; splits of their own: {others}")
    return collector.dataset()


def _read_split(collector: Collector, file: Path, split: str, texts: list[Path]) -> None:
    """Join the lines of a list of images with those of files of captions."""
    place = collector.place(file)
    collector.expect(split, place)
    names = read_lines(file)
    for text in texts:
        if text.suffix.lower() == ".gz":
            raise DataError(f"{text}: compressed; unpack it: gunzip {text.parent}/*.gz")
        lines = read_lines(text)
        if len(lines) != len(names):
            raise DataError(
                f"{text}: {len(lines):,} lines, but {file} has {len(names):,}; which caption is "
                f"of which image cannot be told"
            )
        for number, (name, line) in enumerate(zip(names, lines, strict=True), start=1):
            where = f"{collector.place(text)}:{number}"
            image = _NUMBER.sub("", name.strip())
            if not image:
                collector.problem("caption without image", where, excerpt(line.strip()))
            elif not is_utf8(name):
                collector.not_utf8(f"{place}:{number}", image)
            else:
                entry = collector.entries.get(image)
                if entry is None or entry.split != split:
                    entry = collector.add(image, image, split, f"{place}:{number}")
                if entry:
                    collector.caption(entry, line.strip(), where)
    if not texts:
        collector.problem("empty split", place, "no captions in the language of this split")


def _lists(root: Path) -> tuple[Path, list[Path]]:
    """Return the folder of the first part that has lists of images with captions, and the lists."""
    for part in _PARTS:
        base = root / part
        files = [file for inner in _LISTS for file in annotation_files(base / inner, "*.txt")]
        found = [file for file in files if file.is_file() and _texts(base, _stem(file))]
        if any(map(_is_list, found)):  # a damaged list is named when it is read
            return base, found
    return root, []


def _is_list(file: Path) -> bool:
    """Return whether the first line of a file is only the name of an image."""
    return headless(text_head(file).partition("\n")[0]) == ""


def _stem(file: Path) -> str:
    return file.stem.removesuffix("_images")


def _texts(base: Path, stem: str) -> dict[str, list[Path]]:
    """Return the files of captions of a list, by language; unpacked ones, if there are both."""
    found: dict[str, list[Path]] = defaultdict(list)
    for inner in _TEXTS:
        for file in annotation_files(base / inner, f"{stem}.*"):
            match = _LANGUAGE.fullmatch(file.name[len(stem) :])
            if match and not (match[2] and file.with_suffix("").exists()):
                found[match[1].lower()].append(file)
    return found
