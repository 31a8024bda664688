"""Captions in a file next to each image, and a journal of them in the folder of the images.

The journal says which texts captioner wrote, and from what content. Any other text, also one that
was edited since, is the user's: captioner passes its image over, unless `existing` asks for more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from captioner.captioning.records import Record, digest_of
from captioner.captioning.sidecar_files import (
    UnusableError,
    joined,
    own_texts,
    place_of,
    read_texts,
    write_texts,
)
from captioner.captioning.sidecar_journal import Origin, SidecarJournal, Texts
from captioner.captioning.sources.item import Item, failure
from captioner.errors import DataError, ImageError
from captioner.images.decode import read_file
from captioner.system.disk import is_full

ADVICE = "choose jsonl or csv"  # formats in which two images may share a name
Existing: TypeAlias = Literal["skip", "replace", "append", "prepend"]
EXISTING: tuple[str, ...] = get_args(Existing)


@dataclass(frozen=True, slots=True)
class Found:
    """What is in the place of a caption.

    Attributes:
        place: the file next to the image.
        texts: its texts; None if there is no file.
        origin: what captioner wrote them from; None if it did not.
    """

    place: Path
    texts: Texts | None
    origin: Origin | None

    @property
    def is_users(self) -> bool:
        """Whether the file holds a text that captioner did not write."""
        return self.origin is None and any(text.strip() for text in self.texts or ())

    @property
    def user(self) -> Texts:
        """The texts of the user."""
        return self.origin.user if self.origin else (self.texts or ())


class Sidecars:
    """The files with captions next to images, with the journals of their folders."""

    def __init__(
        self,
        form: str = "txt",
        *,
        existing: Existing = "skip",
        overwrite: bool = False,
        wording: str = "",
    ):
        """Set what to write.

        Args:
            form: of `sidecar_files.FORMS`.
            existing: what becomes of texts that captioner did not write.
            overwrite: caption images again whose texts are up to date.
            wording: the `Wording.key` of the captions; texts of another wording are outdated.
        """
        self.form, self.existing, self.overwrite = form, existing, overwrite
        self.wording, self.journal = wording, SidecarJournal()
        self.written: set[Path] = set()
        self.skipped = 0  # images whose text is up to date
        self.kept: list[Path] = []  # files with a text of the user

    def missing(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the images whose text is missing or outdated, and a failure for each refused one.

        Images with a current text are counted in `skipped`, texts of the user in `kept`.
        """
        for item in items:
            if isinstance(item.source, ImageError):
                yield item
            elif not isinstance(item.source, Path):
                reason = "archive members get no text file; choose another --format"
                yield failure(item.name, reason, "place_taken")
            elif isinstance(found := self.look(Path(item.name)), str):
                yield failure(item.name, found, "place_taken")
            elif found.is_users and self.existing == "skip":
                self.kept.append(found.place)
            elif not self.overwrite and self._is_current(item.source, found):
                self.skipped += 1
            else:
                yield item

    def look(self, image: Path) -> Found | str:
        """Return what is in the place of an image's caption, or why none can be written there."""
        place = place_of(image, self.form)
        if place == image:
            return "its caption would replace the image itself; choose another --format"
        try:
            texts = read_texts(place, self.form)
        except UnusableError as error:
            return _unusable(place, error)
        origin = None if texts is None else self.journal.origin(place, texts)
        if origin and origin.image != image.name and not self.overwrite:
            # A renamed image may replace the text of its old name.
            other = image.with_name(origin.image)
            if other.exists():
                return f"{place} is the text file of another image, {other}; {ADVICE}"
        return Found(place, texts, origin)

    def change(self, name: str) -> str:
        """Return what an image of `missing` changes: new, again, or `existing`; or why nothing.

        The next image with the same file is refused, as in `write`.
        """
        found = self.look(Path(name))
        if isinstance(found, str):
            return found
        if found.place in self.written:
            return _taken(found.place)
        self.written.add(found.place)
        return self.existing if found.is_users else "again" if found.origin else "new"

    def texts(self, caption: str, found: Found) -> Texts:
        """Return the texts of a file with a caption in it.

        Raises:
            UnusableError: if the caption cannot be joined to the user's text.
        """
        how, user = self._kept(found)
        return joined(caption, user, how, self.form) if user else own_texts(caption, self.form)

    def write(self, record: Record) -> str | None:
        """Write the caption of an image; return why it would replace another text, or None.

        Raises:
            ConfigError: if a file with the name of the journal is not captioner's.
            DataError: if the text or the journal cannot be written.
        """
        image = Path(record.file_name)
        place = place_of(image, self.form)
        if place in self.written:
            return _taken(place)
        if isinstance(found := self.look(image), str):
            return found
        if found.is_users and self.existing == "skip":
            return (
                f"its caption would replace {place}, which captioner did not write or which was "
                f"edited since; see --existing"
            )
        try:
            texts = self.texts(record.caption, found)
            self.written.add(place)
            origin = Origin(image.name, record.digest.hex(), self.wording, *self._kept(found))
            # The journal first: after a kill in between, the old text still counts as captioner's.
            self.journal.note(place, texts, origin)
            if texts != found.texts:
                write_texts(place, self.form, texts)
        except UnusableError as error:
            return _unusable(place, error)
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
                for folder, known in self.journal.known.items()
                for (text, _), origin in [*known.items()]
                if text.endswith(f".{self.form}")
                and not (folder / origin.image).exists()
                and self._origin(folder / text) == origin
            }
        )

    def _origin(self, place: Path) -> Origin | None:
        try:
            texts = read_texts(place, self.form)
        except UnusableError:
            return None
        return None if texts is None else self.journal.origin(place, texts)

    def _kept(self, found: Found) -> tuple[str, Texts]:
        """Return how a caption joins the texts of the user, and these; blank texts are none."""
        as_before = self.existing == "skip" and found.origin
        how = as_before.existing if as_before else self.existing
        keeps = how in ("append", "prepend") and any(text.strip() for text in found.user)
        return (how, found.user) if keeps else ("", ())

    def _is_current(self, image: Path, found: Found) -> bool:
        origin = found.origin
        if origin is None or origin.wording != self.wording:
            return False
        if (origin.existing, origin.user) != self._kept(found):
            return False
        try:
            return digest_of(read_file(image)).hex() == origin.digest
        except ImageError:
            return False  # captioning reports the error


def _unusable(place: Path, reason: UnusableError) -> str:
    return (
        f"its caption cannot go into {place}: {reason}; mend that file, move it away, or choose "
        f"another --format"
    )


def _taken(place: Path) -> str:
    return f"another image has the same text file, {place}; {ADVICE}"
