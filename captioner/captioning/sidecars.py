"""Captions in a text file next to each image, and a journal of them in the folder of the images.

The journal says which texts captioner wrote, and from what content. A text file that is not in it,
or that was edited since, is the user's: captioner never replaces it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from captioner.captioning.records import Record, digest_of
from captioner.captioning.sources.item import Item, failure
from captioner.errors import ConfigError, DataError, ImageError
from captioner.images.decode import read_file
from captioner.system.disk import is_full, writing
from captioner.system.escapes import to_json
from captioner.system.files import no_stream, write_text
from captioner.system.foreign import plain

JOURNAL = ".captioner-texts.jsonl"
FIELDS = ("text", "text_digest", "image", "image_digest")
ADVICE = "choose jsonl or csv"  # formats in which two images may share a name


@dataclass(frozen=True, slots=True)
class _Origin:
    """The image that a text was written from: its name without folder, and its digest in hex."""

    image: str
    digest: str


class Sidecars:
    """The text files next to images, with the journals of their folders."""

    def __init__(self, extension: str = ".txt", *, overwrite: bool = False):
        self.extension, self.overwrite = extension, overwrite
        self.journals: dict[Path, dict[tuple[str, str], _Origin]] = {}
        self.read_to: dict[Path, int] = {}  # bytes of each journal
        self.written: set[Path] = set()
        self.skipped = 0  # images whose text is up to date
        self.kept: list[Path] = []  # the user's text files

    def missing(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the images whose text is missing or outdated, and a failure for each refused one.

        Images with a current text are counted in `skipped`, texts of the user in `kept`.
        """
        for item in items:
            place, reason = self._place(item.name), None
            if not isinstance(item.source, Path | ImageError):
                reason = "archive members get no text file; choose another --format"
            elif place == Path(item.name):
                reason = "its caption would replace the image itself; choose another --extension"
            elif isinstance(item.source, Path) and os.path.lexists(place):
                origin = self._origin(place)
                if origin is None and not self.overwrite and place.is_file():
                    self.kept.append(place)
                    continue
                reason = self._refusal(place, item.source, origin)
                if not reason and not self.overwrite and self._is_current(item.source, origin):
                    self.skipped += 1
                    continue
            yield failure(item.name, reason, "place_taken") if reason else item

    def write(self, record: Record) -> str | None:
        """Write the caption of an image; return why it would replace another text, or None.

        Raises:
            ConfigError: if a file with the name of the journal is not captioner's.
            DataError: if the text or the journal cannot be written.
        """
        place, image = self._place(record.file_name), Path(record.file_name)
        if place in self.written:
            return f"another image has the same text file, {place}; {ADVICE}"
        if os.path.lexists(place) and (reason := self._refusal(place, image, self._origin(place))):
            return reason
        self.written.add(place)
        text = record.caption + "\n"
        try:
            # The journal first: after a kill in between, the old text still counts as captioner's.
            self._note(place, text, _Origin(image.name, record.digest.hex()))
            write_text(place, text, "sidecar")
        except OSError as error:
            remedy = (
                "free some space" if is_full(error, place.parent) else "choose another --format"
            )
            raise DataError(f"{place}: cannot be written: {error.strerror}; {remedy}") from error
        return None

    def orphans(self) -> list[Path]:
        """Return the texts whose image is gone, from the folders of this run."""
        return sorted(
            {
                folder / text
                for folder, known in self.journals.items()
                for (text, _), origin in [*known.items()]
                if not (folder / origin.image).exists() and self._origin(folder / text) == origin
            }
        )

    def _place(self, name: str) -> Path:
        return Path(name).with_suffix(self.extension)

    def _refusal(self, place: Path, image: Path, origin: _Origin | None) -> str | None:
        if origin is None:
            return (
                f"its caption would replace {place}, which captioner did not write or which was "
                f"edited since; move that away, or choose another --extension"
            )
        # A renamed image may replace the text of its old name.
        other = image.with_name(origin.image)
        if origin.image != image.name and other.exists() and not self.overwrite:
            return f"{place} is the text file of another image, {other}; {ADVICE}"
        return None

    def _is_current(self, image: Path, origin: _Origin | None) -> bool:
        try:
            return origin is not None and digest_of(read_file(image)).hex() == origin.digest
        except ImageError:
            return False  # captioning reports the error

    def _origin(self, place: Path) -> _Origin | None:
        """Return what a text was written from; None if captioner did not write it."""
        try:
            with open(place, "rb", opener=no_stream) as file:
                content = file.read()
        except OSError:
            return None
        return self._journal(place.parent).get((place.name, digest_of(content).hex()))

    def _journal(self, folder: Path) -> dict[tuple[str, str], _Origin]:
        """Return the journal of a folder, with what other jobs added since.

        Lines that a power failure cut are ignored.

        Raises:
            ConfigError: if the file is not a journal.
            DataError: if the file cannot be read.
        """
        path, rows = folder / JOURNAL, []
        start, known = self.read_to.get(folder, 0), self.journals.setdefault(folder, {})
        try:
            with open(path, "rb", opener=no_stream) as file:
                file.seek(start)
                lines = file.read().splitlines(keepends=True)
        except (FileNotFoundError, NotADirectoryError):
            lines = []
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({plain(error)}); move it away") from error
        for line in lines:
            start += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and all(isinstance(row.get(key), str) for key in FIELDS):
                rows.append([row[key] for key in FIELDS])
                self.read_to[folder] = start  # another job may still write what follows
        if lines and not (rows or known):
            raise ConfigError(f"{path}: not a journal of captioner; move it away")
        known.update({(text, of): _Origin(*image) for text, of, *image in rows})
        return known

    def _note(self, place: Path, text: str, origin: _Origin) -> None:
        key = (place.name, digest_of(text.encode()).hex())
        path, known = place.parent / JOURNAL, self._journal(place.parent)
        row = dict(zip(FIELDS, (*key, origin.image, origin.digest), strict=True))
        try:
            with writing(path), path.open("ab") as file:
                # A line feed in front ends a line that a power failure cut.
                file.write(f"\n{to_json(row)}".encode())
        except OSError:
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()
            raise
        known[key] = origin
