"""Finds what some metrics read besides captions: pictures, train captions, pretrained models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from captioner.data.load import load_dataset, recognised
from captioner.errors import DataError
from captioner.images.decode import SUFFIXES, read_image
from captioner.metrics import MetricInputs
from captioner.scoring.caption_rows import Row, any_path, base_name
from captioner.scoring.systems import CaptionSet, listed, name_of, read_references
from captioner.text import words_of


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where some metrics read: options of `captioner score` and `captioner compare`."""

    images: Path | None = None  # folder of the pictures; None: where the captions say they are
    train: Path | None = None  # data set, or file of captions, that the system learnt from
    clip: str | None = None  # see `embedding.clip.Clip`; None: the paper's
    bert: str | None = None  # see `embedding.bert.Bert`; None: the usual one
    device: str = "auto"  # of CLIP and BERT


def gather(
    sources: MetricSources,
    metrics: Sequence[str],
    system: CaptionSet,
    truth: CaptionSet,
    tokenizer: str,
    references: Sequence[Path] = (),
) -> MetricInputs:
    """Find what the metrics need; folders of references are also searched for pictures.

    Raises:
        DataError: if pictures or train captions are missing.
        ConfigError: if a pretrained model is unknown.
        ModelError: if a file holds no such model.
        ImageError: if a picture cannot be read.
    """
    words = words_of(tokenizer)
    inputs = MetricInputs(
        references=[[text for text in row.captions if words(text)] for row in truth.images],
        train=[*map(words, _train_captions(sources.train))] if sources.train else (),
    )
    if not {"clip_score", "bert_score"} & {*metrics}:
        return inputs
    folders = [sources.images] if sources.images else references
    found: list[Path] = []
    if "clip_score" in metrics:
        found = find_pictures(system, truth, [*filter(Path.is_dir, folders)])

    def pictures() -> Iterator[Image]:
        return map(read_image, found)

    from captioner.embedding.models import with_models

    models = {"clip": sources.clip, "bert": sources.bert}
    return with_models(inputs, metrics, pictures, device=sources.device, **models)


def find_pictures(system: CaptionSet, truth: CaptionSet, folders: Sequence[Path]) -> list[Path]:
    """Return the file of each image: as the captions name it, or by its name in the folders.

    Raises:
        DataError: if a picture is missing, or several files have its name.
    """
    known: dict[str, set[Path]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                for name in (path.name, path.stem):
                    known.setdefault(name, set()).add(path)
    found = []
    missing = []
    for number, rows in enumerate(zip(system.images, truth.images, strict=True)):
        place = next(_places(rows, folders, known), None)
        if place:
            found.append(place)
        else:
            missing.append(system.label(number))
    if missing:
        raise DataError(
            f"clip_score reads the pictures; no file, or several of the name, for "
            f"{listed(missing)}; name their folder with --images"
        )
    return found


def _places(
    rows: Sequence[Row], folders: Sequence[Path], known: dict[str, set[Path]]
) -> Iterator[Path]:
    """Yield the files that an image may be, the likeliest first."""
    paths = [any_path(row.path) for row in rows if row.path]
    inside = (folder / path for folder in folders for path in paths)
    yield from filter(Path.is_file, (*inside, *map(Path, paths)))
    for row in rows:
        for name in (base_name(row.file), row.image_id, name_of(row)):
            if name and len(files := known.get(name, set())) == 1:
                yield from files


def _train_captions(path: Path) -> list[str]:
    """Return the captions of the train split of a data set, or all of a caption file.

    Raises:
        DataError: if there is none.
    """
    if not recognised(path):
        return [text for row in read_references([path]).images for text in row.captions]
    dataset = load_dataset(path, images=False, holdout=0)
    return [text for example in dataset.split("train") for text in example.captions]
