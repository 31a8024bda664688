"""Writes a data set as JSON Lines that `train` reads back to the same images and captions."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from tqdm import tqdm

from captioner.data.dataset import Dataset, Example
from captioner.data.formats.collect import Pictures, picture_folders
from captioner.errors import ConfigError, DataError, ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import SUFFIXES, read_file, read_header
from captioner.system.escapes import to_json
from captioner.system.files import whole_file, whole_folder
from captioner.system.foreign import excerpt
from captioner.system.ownership import check, mark
from captioner.system.text_files import is_missing, is_utf8

COLUMNS = ("file_name", "image_id", "split", "captions")
ENDINGS = (".jsonl", ".ndjson")


def check_export(path: Path) -> None:
    """Refuse a path that `train` would not take for JSON Lines, or a file of somebody else.

    Raises:
        ConfigError: if the path may not be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{path}: the name of JSON Lines must end with {' or '.join(ENDINGS)}")
    check(path, "export")


def export(dataset: Dataset, path: Path) -> int:
    """Write a data set, one image a line, in its order; return the number of pictures written.

    Paths are relative to the file's folder. Where another picture would be found by such a path,
    it is absolute. Pictures that are no files, such as members of archives, are written into the
    folder `NAME-images` beside the file.

    Raises:
        ConfigError: if a file or folder that captioner did not write is in the way.
        DataError: if an image cannot be read, or could not be read back from JSON Lines.
    """
    check_export(path)
    for example in dataset.examples:
        _check(example)
    contents = [each.image for each in dataset.examples if not isinstance(each.image, Path)]
    files = _write_pictures(list(dict.fromkeys(contents)), path.with_name(f"{path.stem}-images"))
    names = _Names(path.parent)
    with whole_file(path, "export") as aside, aside.open("w", encoding="utf-8") as file:
        for example in dataset.examples:
            image = example.image if isinstance(example.image, Path) else files[example.image]
            values = (names.name_of(image), example.image_id, example.split, example.captions)
            file.write(to_json(dict(zip(COLUMNS, values, strict=True))) + "\n")
    return len(files)


class _Names:
    """Gives each example's image a name under which `train` finds it, and no other image."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._pictures = Pictures(picture_folders(self.folder, None))
        self._folders: dict[Path, Path] = {}
        self._taken: set[str] = set()

    def name_of(self, image: Path) -> str:
        """Return a name that no earlier example has."""
        parent = self._real(image.parent)
        real = parent / image.name
        name = real.as_posix()
        try:
            relative = PurePath(os.path.relpath(parent, self.folder), image.name).as_posix()
        except ValueError:  # another drive of Windows
            relative = name
        found = self._pictures.find(relative)
        if isinstance(found, Path) and self._real(found.parent) / found.name == real:
            name = relative
        while name in self._taken:  # rows with the same name would become one image
            folder, _, file = name.rpartition("/")
            name = f"{folder or '.'}/./{file}"
        if not is_utf8(name):
            raise DataError(f"{excerpt(str(image))}: the path is not UTF-8; rename its folder")
        self._taken.add(name)
        return name

    def _real(self, folder: Path) -> Path:
        if folder not in self._folders:
            self._folders[folder] = folder.resolve()
        return self._folders[folder]


def _check(example: Example) -> None:
    """Refuse what a table cannot say, as a cell such as `nan` is no value."""
    for role, value in (("image id", example.image_id), ("split", example.split)):
        if is_missing(value):
            raise DataError(
                f"{example.image}: JSON Lines cannot hold the {role} {excerpt(value)}, which reads "
                f"as a missing value; rename it"
            )


def _write_pictures(contents: list[ImageFile], folder: Path) -> dict[ImageFile, Path]:
    """Write contents as files of a folder; return the file of each."""
    if not contents:
        return {}
    files: dict[ImageFile, Path] = {}
    with whole_folder(folder, "pictures") as new:
        mark(new, "pictures")
        for number, (image, data) in enumerate(_read(contents)):
            name = f"{number:06d}{_ending(image, data)}"
            (new / name).write_bytes(data)
            files[image] = folder / name
    return files


def _read(contents: list[ImageFile]) -> Iterator[tuple[ImageFile, bytes]]:
    for image in tqdm(contents, desc="export", unit="image", disable=None):
        try:
            yield image, read_file(image)
        except ImageError as error:
            raise DataError(f"{image}: {error}") from error


def _ending(image: ImageFile, data: bytes) -> str:
    suffix = PurePath(str(image)).suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    try:
        return f".{read_header(io.BytesIO(data)).format.lower()}"
    except ImageError:
        return ".img"
