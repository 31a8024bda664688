"""Gathers the images and captions of one data set, and everything that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from captioner.data.dataset import Dataset, Example, Kind, Problem, split_name
from captioner.errors import DataError
from captioner.images.decode import SUFFIXES
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import is_utf8

PICTURE_FOLDERS = (
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images",
    "flickr30k-images",
)


class Pictures:
    """Finds pictures by name with one listing per folder, however many pictures there are."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [str(folder) for folder in folders]
        self._listings: dict[str, frozenset[str]] = {}
        self._found: dict[str, set[str]] = {}

    def find(self, name: str) -> Path | None:
        """The picture's file in the first folder that has it, or None."""
        for folder in self.folders:
            inside, file = os.path.split(os.path.join(folder, name))  # noqa: PTH118
            if file in self._listing(inside):
                self._found.setdefault(inside, set()).add(file)
                return Path(inside, file)
        return None

    def unnamed(self) -> list[Path]:
        """Pictures nobody asked for in the folders where others were found, sorted."""
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
                    names = frozenset(entry.name for entry in entries if entry.is_file())
            except PermissionError as error:
                raise DataError(f"{folder}: not allowed to list the pictures there") from error
            except (OSError, ValueError):  # no such folder, or no possible name of one
                names = frozenset()
            self._listings[folder] = names
        return self._listings[folder]


@dataclass(slots=True)
class Entry:
    """One annotated image while its captions are being gathered."""

    image_id: str
    file: str
    split: str
    where: str
    captions: list[str] = field(default_factory=list)


class Collector:
    """Takes what a format finds, in any order, and turns it into a `Dataset`.

    Args:
        root: folder or file of the data set, as the user named it.
        format: name of the format.
        pictures: where the pictures may be.
    """

    def __init__(self, root: Path, format: str, pictures: Iterable[Path]) -> None:
        self.root = root
        self.format = format
        self.pictures = Pictures(pictures)
        self.notes: list[str] = []
        self._problems: list[Problem] = []
        self._entries: dict[str, Entry] = {}
        self._splits: dict[str, str] = {}

    def place(self, path: Path) -> str:
        """The file's name as reports show it: relative to the data set."""
        base = self.root if self.root.is_dir() else self.root.parent
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)

    def problem(self, kind: Kind, where: str, detail: str) -> None:
        """Count one thing that cannot be used."""
        self._problems.append(Problem(kind, plain(where), plain(detail)))

    def lines(self, path: Path, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
        """(where, text) of each line that is neither blank nor damaged."""
        place = self.place(path)
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if not is_utf8(text):
                self.problem("not UTF-8", f"{place}:{number}", excerpt(text))
            elif text.strip():
                yield f"{place}:{number}", text

    def expect(self, split: str, where: str) -> None:
        """Remember that the annotations name a split, so that an empty one is noticed."""
        self._splits.setdefault(split_name(split), where)

    def get(self, image_id: str) -> Entry | None:
        """The image with this id, if it is known."""
        return self._entries.get(image_id)

    def add(self, image_id: str, file: str, split: str, where: str) -> Entry | None:
        """Start an image, or count why it cannot be one and return None."""
        if not (is_utf8(image_id) and is_utf8(file) and is_utf8(split)):
            self.problem("not UTF-8", where, excerpt(file))
            return None
        self.expect(split, where)
        split = split_name(split)
        known = self._entries.get(image_id)
        if known:
            detail = f"{image_id} ({split}) is already at {known.where} ({known.split})"
            self.problem("duplicate id", where, detail)
            return None
        entry = self._entries[image_id] = Entry(image_id, file, split, where)
        return entry

    def caption(self, entry: Entry, text: object, where: str) -> None:
        """Give an image a caption, or count why it cannot be one."""
        if text is None:
            text = ""
        if not isinstance(text, str):
            self.problem("malformed line", where, f"the caption is no text: {excerpt(text)}")
        elif not is_utf8(text):
            self.problem("not UTF-8", where, excerpt(text))
        elif stripped := text.strip():
            entry.captions.append(stripped)
        else:
            self.problem("empty caption", where, entry.image_id)

    def dataset(self, *, report_unnamed: bool = False) -> Dataset:
        """Everything gathered.

        Args:
            report_unnamed: also count pictures in the data set's folders that it never names.

        Raises:
            DataError: if not one usable image is left.
        """
        examples = [example for entry in self._entries.values() if (example := self._check(entry))]
        if report_unnamed:
            for path in self.pictures.unnamed():
                self.problem("image without captions", self.place(path), "no caption names it")
        filled = {example.split for example in examples}
        empty = tuple(split for split in self._splits if split not in filled)
        for split in empty:
            self.problem("empty split", self._splits[split], f"no usable image in {split}")
        if not examples:
            first = "".join(f"; {p.kind} at {p.where}: {p.detail}" for p in self._problems[:1])
            raise DataError(f"{self.root}: no usable image with a caption ({self.format}){first}")
        name = self.root.resolve().stem if self.root.is_file() else self.root.resolve().name
        return Dataset(
            name=name,
            format=self.format,
            root=self.root,
            examples=tuple(examples),
            problems=tuple(self._problems),
            notes=tuple(self.notes),
            empty_splits=empty,
        )

    def _check(self, entry: Entry) -> Example | None:
        image = self.pictures.find(entry.file)
        if not entry.captions:
            self.problem("image without captions", entry.where, entry.file)
        if image is None:
            folders = " or ".join(self.pictures.folders)
            self.problem("missing image", entry.where, f"no {entry.file} in {folders}")
        if image is None or not entry.captions:
            return None
        return Example(image, tuple(entry.captions), entry.split, entry.image_id)


def picture_folders(base: Path, images: Path | None) -> list[Path]:
    """Where a data set's pictures may be: the named folder, else the usual ones that exist.

    Raises:
        DataError: if the named folder does not exist.
    """
    if images is None:
        return [*(base / name for name in PICTURE_FOLDERS if (base / name).is_dir()), base]
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures; set data.images")
    return [images]
