"""Finds out what a data set holds: one call for the text, the JSON and the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.config import Config
from captioner.data.dataset import Dataset, Example
from captioner.data.prepare import open_dataset
from captioner.errors import DataError
from captioner.images.content import ImageFile
from captioner.inspection.caption_facts import CaptionFacts, Range, SplitFacts, count_captions
from captioner.inspection.picture_facts import PictureFacts, look_at_pictures


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a data set holds."""

    dataset: Dataset
    min_count: int  # `text.min_count`
    captions: CaptionFacts
    pictures: PictureFacts

    def place(self, image: ImageFile) -> str:
        """Return the name of a picture, relative to the data set where it is inside."""
        return place_of(image, self.dataset.root)

    def as_json(self) -> dict[str, Any]:
        """Return all findings, for JSON."""
        dataset, captions, pictures = self.dataset, self.captions, self.pictures
        return {
            "name": dataset.name,
            "format": dataset.format,
            "root": str(dataset.root),
            "splits": {
                name: {"images": dataset.splits[name]} | _split(split)
                for name, split in captions.splits.items()
            },
            "problems": [
                {"kind": each.kind, "where": each.where, "detail": each.detail}
                for each in dataset.problems
            ],
            "notes": [*dataset.notes],
            "tokenizer": captions.tokenizer,
            "suggestions": captions.suggestions,
            "scripts": captions.scripts,
            "vocabulary": {
                "split": captions.base,
                "coverage": [
                    {
                        "min_count": row.min_count,
                        "entries": row.entries,
                        "unknown": row.unknown,
                    }
                    for row in captions.coverage
                ],
                "frequent": [{"word": word, "count": n} for word, n in captions.frequent],
            },
            "repeated_captions": {
                "different": captions.repeated_captions,
                "most_frequent": [{"caption": text, "count": n} for text, n in captions.repeated],
            },
            "pictures": {
                "files": pictures.count,
                "decoded": pictures.decoded,
                "formats": pictures.formats,
                "modes": pictures.modes,
                "width": pictures.width and _range(pictures.width),
                "height": pictures.height and _range(pictures.height),
                "broken": [
                    {"image": self.place(image), "reason": reason}
                    for image, reason in pictures.broken
                ],
                "blank": [*map(self.place, pictures.blank)],
                "same_content": [*map(self._group, pictures.same)],
                "look_the_same": [*map(self._group, pictures.alike)],
            },
        }

    def _group(self, group: Iterable[Example]) -> list[dict[str, str]]:
        return [
            {"image_id": each.image_id, "split": each.split, "image": self.place(each.image)}
            for each in group
        ]


def inspect_dataset(config: Config, *, decode: bool = False) -> Inspection:
    """Read the data set of a config and find out what it holds.

    With `decode`, every picture is decoded; otherwise only its header is read.

    Raises:
        DataError: if the data set cannot be used, or has problems in strict mode.
        ConfigError: if a library of the tokeniser is missing.
    """
    dataset = open_dataset(config.data)
    captions = count_captions(dataset, config)
    if not any(split.lengths for split in captions.splits.values()):
        raise DataError(f"{dataset.root}: no caption has a word")
    pictures = look_at_pictures(dataset.examples, decode=decode)
    return Inspection(dataset, config.text.min_count, captions, pictures)


def place_of(image: ImageFile, root: Path) -> str:
    """Return the name of a picture, relative to a data set's folder where it is inside."""
    folder = root if root.is_dir() else root.parent
    if isinstance(image, Path) and image.is_relative_to(folder):
        return image.relative_to(folder).as_posix()
    return str(image).removeprefix(f"{folder}/")


def _range(numbers: Range) -> dict[str, int]:
    return {"least": numbers.least, "median": numbers.median, "most": numbers.most}


def _split(split: SplitFacts) -> dict[str, Any]:
    return {
        "captions": split.captions,
        "captions_per_image": _range(split.per_image),
        "tokens": {
            "quartiles": [*split.quartiles],
            "longest": max(split.lengths, default=0),
            "longest_at": split.longest,
        },
        "captions_without_a_word": split.wordless,
        "captions_again_in_their_image": split.same_in_image,
        "captions_word_for_word_in_train": split.in_train,
    }
