"""Collects the images, captions and problems of one data set."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from captioner.data.dataset import Dataset, Example, Kind, Problem, split_in, split_name
from captioner.errors import DataError
from captioner.images.content import ImageFile
from captioner.images.decode import SUFFIXES
from captioner.system.foreign import excerpt, plain
from captioner.system.text_encodings import advice
from captioner.system.text_files import is_missing, is_utf8, read_json

PICTURE_FOLDERS = (
    *("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images"),
    "flickr30k-images",
)

MOST_FOREIGN = 100  # texts that are not UTF-8, to tell the encoding from
SHOWN_FOREIGN = 60  # characters of the first of them

# Files that may hold captions, and JSON that likely does.
_MAY_HOLD = (
    *("*.csv", "*.tsv", "*.jsonl", "*.ndjson", "*.parquet", "*.json", "captions.txt"),
    *("*.token.txt", "*.token"),
)
_LIKELY = re.compile(r"caption|metadata|\Adataset_(?!infos?\.)", re.IGNORECASE)


class Pictures:
    """Finds image files by name; lists every folder only once."""

    def __init__(self, folders: Iterable[Path], splits: Iterable[Path] | None = None) -> None:
        """Start with the folders to search, and those whose folders of splits are searched."""
        self.folders = [str(folder) for folder in folders]
        self._of_splits = self.folders if splits is None else [str(folder) for folder in splits]
        self._listings: dict[str, frozenset[str]] = {}
        self._found: dict[str, set[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}
        self._almost: dict[str, str] = {}
        self._by_split: dict[str, list[str]] | None = None

    def find(self, name: str) -> Path | None:
        """Return the image file in the first folder that holds it, or None."""
        for folder in self.folders:
            inside, file = os.path.split(os.path.join(folder, name))  # noqa: PTH118
            if file in self._listing(inside):
                self._found.setdefault(inside, set()).add(file)
                return Path(inside, file)
        return None

    def in_split(self, name: str, split: str) -> Path | None:
        """Return the file of this base name in a folder named after the split, or None.

        Such as `train2014/` or `train_images/`; then in the only one of all splits' folders.
        """
        if self._by_split is None:
            self._by_split = _split_folders(self._of_splits)
        file = os.path.basename(name.replace("\\", "/"))  # noqa: PTH119
        has_ending = os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122
        names = [file] if has_ending else [f"{file}{ending}" for ending in sorted(SUFFIXES)]

        def holding(folders: Iterable[str]) -> list[tuple[str, str]]:
            return [(f, name) for f in folders for name in names if name in self._listing(f)]

        others = [inside for folders in self._by_split.values() for inside in folders]
        found = holding(self._by_split.get(split, []))[:1] or holding(others)
        if len(found) != 1:
            return None
        [(inside, file)] = found
        self._found.setdefault(inside, set()).add(file)
        return Path(inside, file)

    def resembling(self, name: str) -> Path | None:
        r"""Return the one file with almost this name, or None.

        It may differ in `\` for `/`, case and Unicode form, lack its ending, or lie in another of
        the folders.
        """
        name = name.replace("\\", "/")
        has_ending = os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
        for tail in (name, name.rpartition("/")[2]):
            for folder in self.folders:
                parent, file = os.path.split(tail)
                inside = self._resembling_folder(folder, parent)
                if inside not in self._folded:
                    self._folded[inside] = {}
                    for known in self._listing(inside):
                        self._folded[inside].setdefault(_fold(known), []).append(known)
                        stem, ending = os.path.splitext(known)  # noqa: PTH122
                        if ending.lower() in SUFFIXES:
                            self._folded[inside].setdefault(f"{_fold(stem)}/", []).append(known)
                found = self._folded[inside].get(_fold(file), [])
                if not found and not has_ending:
                    found = self._folded[inside].get(f"{_fold(file)}/", [])
                if file in found or len(found) == 1:
                    file = file if file in found else found[0]
                    self._found.setdefault(inside, set()).add(file)
                    return Path(inside, file)
        return None

    def _resembling_folder(self, folder: str, inner: str) -> str:
        """Return a folder inside another; case and Unicode form of `inner` may differ."""
        path = os.path.join(folder, inner)  # noqa: PTH118
        if path not in self._almost:
            self._almost[path] = path
            with suppress(OSError, ValueError):
                for part in () if Path(path).is_dir() else Path(inner).parts:
                    with os.scandir(folder) as entries:
                        found = [e.name for e in entries if _fold(e.name) == _fold(part)]
                    folder = os.path.join(folder, found[0] if len(found) == 1 else part)  # noqa: PTH118
                    self._almost[path] = folder
        return self._almost[path]

    def unnamed(self) -> list[Path]:
        """Return the unused images, sorted, from folders in which `find` found an image."""
        return [
            Path(folder, name)
            for folder, names in sorted(self._found.items())
            for name in sorted(self._listing(folder) - names)
            if os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
        ]

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    names = frozenset(
                        e.name for e in entries if e.is_file() and not is_hidden(e.name)
                    )
            except PermissionError as error:
                raise DataError(f"{folder}: no permission to list the images") from error
            except (OSError, ValueError):  # no such folder, or an impossible name
                names = frozenset()
            self._listings[folder] = names
        return self._listings[folder]


@dataclass(slots=True)
class Entry:
    """One annotated image and the captions collected so far."""

    image_id: str
    file: str
    split: str
    where: str
    image: ImageFile | None = None  # None: the file is looked for
    captions: list[str] = field(default_factory=list)


class Collector:
    """Collects images and captions in any order, and builds a `Dataset`."""

    def __init__(self, root: Path, format: str, pictures: Iterable[Path]) -> None:
        """Start with the folders to search for pictures."""
        self.root = root
        self.format = format
        self.pictures = Pictures(pictures)
        self.notes: list[str] = []
        self._problems: list[Problem] = []
        self.entries: dict[str, Entry] = {}  # by image id
        self._splits: dict[str, str] = {}
        self._foreign: list[str] = []  # the first texts that are not UTF-8
        self._first_foreign = 0  # the problem of the first

    def place(self, path: Path) -> str:
        """Return the file's name relative to the data set, for messages."""
        base = self.root if self.root.is_dir() else self.root.parent
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)

    def problem(self, kind: Kind, where: str, detail: str) -> None:
        """Add a problem."""
        self._problems.append(Problem(kind, plain(where), plain(detail)))

    def not_utf8(self, where: str, text: str | Sequence[str]) -> None:
        """Add a problem with a text, or with the cells of a row, that has lone surrogates."""
        if not self._foreign:
            self._first_foreign = len(self._problems)
        self.problem("not UTF-8", where, excerpt(text))
        whole = text if isinstance(text, str) else " ".join(text)
        if len(self._foreign) < MOST_FOREIGN:
            self._foreign.append(whole)

    def read_json(self, file: Path) -> Any:
        """Return the JSON of a file; a key that an object holds again is a problem.

        Raises:
            DataError: if the file cannot be read, is empty, or is not JSON.
        """
        repeated: list[str] = []
        document = read_json(file, repeated)
        self.repeated(self.place(file), repeated)
        return document

    def repeated(self, where: str, keys: Iterable[str]) -> None:
        """Add a problem for each key that an object of JSON holds again."""
        for key in keys:
            detail = f"an object holds the key {excerpt(key, 60)} again; the first value is read"
            self.problem("duplicate id", where, detail)

    def lines(self, file: Path | str, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
        """Yield (where, text) of each line that is not blank or damaged, of a file or place."""
        place = file if isinstance(file, str) else self.place(file)
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if not is_utf8(text):
                self.not_utf8(f"{place}:{number}", text)
            elif text.strip():
                yield f"{place}:{number}", text

    def expect(self, split: str, where: str) -> None:
        """Record that the annotations name a split, so that an empty split is a problem."""
        self._splits.setdefault(split_name(split), where)

    def add(
        self, image_id: str, file: str, split: str, where: str, image: ImageFile | None = None
    ) -> Entry | None:
        """Add an image, by its file or as it is; None, with a problem, if it is unusable."""
        if not (is_utf8(image_id) and is_utf8(file) and is_utf8(split)):
            self.not_utf8(where, file)
            return None
        self.expect(split, where)
        split = split_name(split)
        known = self.entries.get(image_id)
        if known:
            detail = f"{image_id} ({split}) is already at {known.where} ({known.split})"
            self.problem("duplicate id", where, detail)
            return None
        entry = self.entries[image_id] = Entry(image_id, file, split, where, image)
        return entry

    def caption(self, entry: Entry, text: object, where: str) -> None:
        """Add a caption to an image; add a problem if it is unusable."""
        if is_missing(text):
            self.problem("empty caption", where, f"{entry.image_id} {text or ''}".strip())
        elif not isinstance(text, str):
            self.problem("malformed line", where, f"the caption is not text: {excerpt(text)}")
        elif not is_utf8(text):
            self.not_utf8(where, text)
        elif any(map(str.isalnum, text)):
            entry.captions.append(text.strip())
        else:
            self.problem("empty caption", where, f"{entry.image_id} {text.strip()}")

    def note_others(self, read: Collection[Path]) -> None:
        """Note the files of a folder that may hold captions too, but are not read."""
        others = [
            file
            for file in caption_files(self.root)
            if file not in read and (file.suffix.lower() != ".json" or _LIKELY.search(file.name))
        ]
        if others:
            is_read, left_out = (listed(map(self.place, files)) for files in (read, others))
            self.notes.append(
                f"read: {is_read}; left out: {left_out}; data.root=FILE reads another"
            )

    def dataset(self, *, report_unnamed: bool = False) -> Dataset:
        """Build the data set; may report the images in the folders that no annotation names.

        Raises:
            DataError: if there is no usable image.
        """
        found = self._find_pictures()
        examples = [
            example
            for entry, path in zip(self.entries.values(), found, strict=True)
            if (example := self._check(entry, path))
        ]
        for path in self.pictures.unnamed() if report_unnamed else ():
            self.problem("image without captions", self.place(path), "no caption for this image")
        self._advise_encoding()
        filled = {example.split for example in examples}
        empty = tuple(split for split in self._splits if split not in filled)
        for split in empty:
            self.problem("empty split", self._splits[split], f"no usable image in {split}")
        if not examples:
            first = self.first_problem()
            kinds = {p.kind for p in self._problems}
            if "missing image" in kinds:
                first += "; data.images names the folder of the images"
            raise DataError(f"{self.root}: no usable image with a caption ({self.format}){first}")
        place = self.root.resolve()
        return Dataset(
            place.stem if place.is_file() else place.name,
            self.format,
            self.root,
            tuple(examples),
            tuple(self._problems),
            notes=tuple(self.notes),
            empty_splits=empty,
        )

    def first_problem(self) -> str:
        """Return the first problem as a part of a sentence, or an empty text."""
        self._advise_encoding()
        return "".join(f"; {p.kind} at {p.where}: {p.detail}" for p in self._problems[:1])

    def _advise_encoding(self) -> None:
        """Say at the first text that is not UTF-8 what to set, from all of them."""
        if self._foreign and (say := advice("\n".join(self._foreign))):
            first = self._problems[self._first_foreign]
            detail = f"{plain(first.detail, SHOWN_FOREIGN)}; {say}"
            self._problems[self._first_foreign] = replace(first, detail=plain(detail))
            self._foreign = []

    def _find_pictures(self) -> list[ImageFile | None]:
        """Return the file of each entry; a file with almost its name if only one entry wants it."""
        if not self.pictures.folders:  # only the annotations are read
            return [entry.image or Path(entry.file) for entry in self.entries.values()]
        found = [e.image or self.pictures.find(e.file) for e in self.entries.values()]
        for index, entry in enumerate(self.entries.values()):
            found[index] = found[index] or self.pictures.in_split(entry.file, entry.split)
        names = [entry.file for entry in self.entries.values()]
        almost = {
            index: path
            for index, name in enumerate(names)
            if found[index] is None and (path := self.pictures.resembling(name))
        }
        wanted = Counter(path for path in [*found, *almost.values()] if path)
        matched = {index: path for index, path in almost.items() if wanted[path] == 1}
        for index, path in matched.items():
            found[index] = path
        if matched:
            index, path = next(iter(matched.items()))
            self.notes.append(
                f"{len(matched):,} images have another spelling or folder on disk "
                f"(first: {plain(names[index])} is {plain(self.place(path))})"
            )
        return found

    def _check(self, entry: Entry, image: ImageFile | None) -> Example | None:
        if not entry.captions:
            self.problem("image without captions", entry.where, entry.file)
        if image is None:
            folders = " or ".join(self.pictures.folders)
            self.problem("missing image", entry.where, f"no {entry.file} in {folders}")
        if image is None or not entry.captions:
            return None
        return Example(image, tuple(entry.captions), entry.split, entry.image_id)


def _split_folders(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return the folders that are named after one split, by split, also inside one another."""
    by_split: dict[str, list[str]] = {}
    for folder in folders:
        for path in _folders_of_splits(Path(folder)):
            for inside in (path, *_folders_of_splits(path)):
                by_split.setdefault(split_in(inside.name) or "", []).append(str(inside))
    return by_split


def _folders_of_splits(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir() and split_in(e.name))
    except OSError:
        return []


def annotation_files(root: Path, pattern: str) -> list[Path]:
    """Return the files that match in any case, sorted, without hidden files and `errors.jsonl`.

    `captioner caption` writes its errors there.
    """
    pattern = re.sub("[a-zA-Z]", lambda c: f"[{c[0].lower()}{c[0].upper()}]", pattern)
    files = sorted(root.glob(pattern))
    return [file for file in files if not is_hidden(file.name) and file.name != "errors.jsonl"]


def is_hidden(name: str) -> bool:
    """Return whether a file is passed over, such as `._name.jpg`, which macOS writes."""
    return name.startswith(".")


def caption_files(folder: Path) -> list[Path]:
    """Return the files in a folder, or its `annotations/`, that may hold captions by their name."""
    patterns = [f"{inner}{pattern}" for inner in ("", "annotations/") for pattern in _MAY_HOLD]
    files = [file for pattern in patterns for file in annotation_files(folder, pattern)]
    # Flickr8k has a file with lemmatised captions, too.
    return [file for file in files if file.is_file() and ".lemma." not in file.name]


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first names, and the number of the others."""
    shown = list(map(plain, names))
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def texts_of_images(folder: Path) -> tuple[dict[Path, str], list[Path]]:
    """Return the texts below a folder, each with its image's path in it; and those without image.

    Without any image, each text is that of an image of its name, without ending. Of two images with
    one name, such as `1.jpg` and `1.png`, the text is that of the first.
    """
    files = [file for file in sorted(folder.rglob("[!.]*")) if file.is_file()]
    images: dict[Path, Path] = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            images.setdefault(file.with_suffix(""), file)
    of_image: dict[Path, str] = {}
    alone: list[Path] = []
    for file in files:
        if file.suffix.lower() in (".txt", ".caption"):
            image = images.get(file.with_suffix(""), None if images else file.with_suffix(""))
            if image:
                of_image[file] = image.relative_to(folder).as_posix()
            else:
                alone.append(file)
    return of_image, alone


def picture_folders(base: Path, images: Path | Literal[False] | None) -> list[Path]:
    """Return the folders to search for images: `images`, or else the usual ones that exist.

    The usual ones are in the folder of the annotations and beside it.
    """
    if images is False:
        return []
    if images is None:
        inner, beside = (
            [folder / name for name in PICTURE_FOLDERS if (folder / name).is_dir()]
            for folder in (base, base.parent)
        )
        return [*inner, base, *beside]
    if not images.is_dir():
        raise DataError(f"{images}: no such image folder; set data.images")
    return [images]
