"""The journal of the captions beside images, one in each folder: `.captioner-texts.jsonl`.

It says which texts captioner wrote, from what image, and which texts of the user they hold.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.captioning.records import digest_of
from captioner.errors import ConfigError, DataError
from captioner.system.disk import writing
from captioner.system.escapes import to_json
from captioner.system.files import no_stream
from captioner.system.foreign import plain

JOURNAL = ".captioner-texts.jsonl"
FIELDS = ("text", "text_digest", "image", "image_digest")
# Fields that a row has if they are not empty.
MORE = ("wording", "existing", "user")
Texts = tuple[str, ...]  # of one file; a text file holds one, XMP two


@dataclass(frozen=True, slots=True)
class Origin:
    """What the texts of a file were written from."""

    image: str  # its name without folder
    digest: str  # of its content, in hex
    wording: str = ""  # see `Wording.key`
    existing: str = ""  # how the caption was joined to the user's texts: append or prepend
    user: Texts = ()  # the user's texts, without the caption


class SidecarJournal:
    """The journals of all folders of a run, each with what other jobs add meanwhile."""

    def __init__(self) -> None:
        self.known: dict[Path, dict[tuple[str, str], Origin]] = {}
        self.read_to: dict[Path, int] = {}  # bytes of each journal

    def origin(self, place: Path, texts: Texts) -> Origin | None:
        """Return what texts were written from; None if captioner did not write them."""
        return self.of(place.parent).get((place.name, _digest(texts)))

    def of(self, folder: Path) -> dict[tuple[str, str], Origin]:
        """Return the journal of a folder: the origin of each (file name, digest of its texts).

        Lines that a power failure cut are ignored.

        Raises:
            ConfigError: if the file is not a journal.
            DataError: if the file cannot be read.
        """
        path, rows = folder / JOURNAL, {}
        start, known = self.read_to.get(folder, 0), self.known.setdefault(folder, {})
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
            if _is_row(row):
                text, text_digest, image, digest = (row[key] for key in FIELDS)
                wording, existing = row.get("wording", ""), row.get("existing", "")
                user = tuple(row.get("user", ()))
                rows[text, text_digest] = Origin(image, digest, wording, existing, user)
                self.read_to[folder] = start  # another job may still write what follows
        if lines and not (rows or known):
            raise ConfigError(f"{path}: not a journal of captioner; move it away")
        known.update(rows)
        return known

    def note(self, place: Path, texts: Texts, origin: Origin) -> None:
        """Add what the texts of a file are written from."""
        key = (place.name, _digest(texts))
        path, known = place.parent / JOURNAL, self.of(place.parent)
        if known.get(key) == origin:
            return
        row: dict[str, object] = dict(zip(FIELDS, (*key, origin.image, origin.digest), strict=True))
        row |= {name: value for name in MORE if (value := getattr(origin, name))}
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


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in FIELDS)
        and all(isinstance(row.get(key, ""), str) for key in MORE[:2])
        and isinstance(user := row.get("user", []), list)
        and all(isinstance(text, str) for text in user)
    )


def _digest(texts: Texts) -> str:
    return digest_of("\0".join(texts).encode("utf-8", "surrogateescape")).hex()
