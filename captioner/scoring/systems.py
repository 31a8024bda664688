"""Read the captions of a system and reference captions from files, and match their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from captioner.errors import DataError
from captioner.metrics import Signature
from captioner.scoring.caption_rows import Row, read_captions
from captioner.system.foreign import plain
from captioner.system.text_files import read_json
from captioner.text import tokenize

PREDICTIONS = "predictions.jsonl"
LISTED = 10  # images listed in an error


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Captions of N images.

    Attributes:
        name: the file, for messages.
        captions: captions of each image; one of a system, one or more references.
        ids: image ids; None: only the order identifies the images.
        files: file names of the images without folders, or their ids; None if ids is None.
        references: references in a system's caption file, if any.
        signature: signature in the `scores.json` next to the captions, if any.
    """

    name: str
    captions: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] | None
    files: tuple[str, ...] | None
    references: tuple[tuple[str, ...], ...] | None = None
    signature: Signature | None = None

    def label(self, image: int) -> str:
        """Return the id of an image, or its line number without ids."""
        return plain(self.ids[image], 100) if self.ids else f"line {image + 1}"

    def about(self, key: str) -> str | None:
        """Return a field of the stored signature, such as `decode`; None if unknown."""
        return self.signature.fields.get(key) if self.signature else None


def read_hypotheses(path: Path) -> CaptionSet:
    """Read the captions of a system: one for each image.

    Args:
        path: JSON Lines, COCO results JSON, CSV, TSV or text; or an output folder of
            `captioner evaluate`; or a run folder that holds one.

    Raises:
        DataError: if the file cannot be read, or an image has no caption or several.
    """
    path = _predictions(path)
    rows = list(read_captions(path))
    found = _gather(path, rows)
    for image, captions in enumerate(found.captions):
        if len(captions) != 1:
            raise DataError(
                f"{path}: {len(captions)} captions for {found.label(image)}; give one for each "
                f"image"
            )
    complete = [row.references for row in rows if row.references]
    references = tuple(complete) if len(complete) == len(rows) else None
    signature = _stored_signature(path, len(rows))
    return CaptionSet(str(path), found.captions, found.ids, found.files, references, signature)


def read_references(paths: Sequence[Path]) -> CaptionSet:
    """Read references from one or more files; an image may have references in each file.

    Args:
        paths: files as for `read_hypotheses`, or COCO captions JSON. A text file without ids has
            one line for each image; a blank line is no reference.

    Raises:
        DataError: if a file cannot be read, or the files do not fit each other.
    """
    sets = []
    for path in map(_predictions, paths):
        rows = [
            Row(row.where, row.references or row.captions, row.image_id, row.file)
            for row in read_captions(path)
        ]
        sets.append(_gather(path, rows))
    name = sets[0].name if len(sets) == 1 else f"{len(sets)} reference files"
    if all(found.ids for found in sets):
        joined = [
            Row(found.name, captions, image_id, file)
            for found in sets
            for captions, image_id, file in zip(
                found.captions, found.ids or (), found.files or (), strict=True
            )
        ]
        return _gather(Path(name), joined)
    if any(found.ids for found in sets):
        raise DataError("references: some files have image ids and some have none; use one kind")
    lengths = {found.name: len(found.captions) for found in sets}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{file} has {count:,}" for file, count in lengths.items())
        raise DataError(f"references: every file must have one line for each image; {counts}")
    columns = zip(*(found.captions for found in sets), strict=True)
    return CaptionSet(name, tuple(sum(column, ()) for column in columns), None, None)


def match(left: CaptionSet, right: CaptionSet, *, subset: bool = False) -> tuple[str, list[int]]:
    """Match the images of two caption sets.

    Args:
        left: N images; each must be in `right`.
        right: each image must be in `left`, unless `subset`.
        subset: ignore images that only `right` has.

    Returns:
        The kind of match ("image id", "file name" or "line"), and for each image of `left` the
        index of the image in `right`.

    Raises:
        DataError: if an image is missing in one of the sets; the message lists the images.
    """
    if (left.ids is None) != (right.ids is None):
        with_ids, without = (left, right) if left.ids else (right, left)
        raise DataError(
            f"{with_ids.name} has image ids and {without.name} has none; use ids in both files, or "
            f"one caption a line in the same order in both"
        )
    if left.ids is None or right.ids is None:
        if len(left.captions) != len(right.captions):
            raise DataError(
                f"{left.name} has {len(left.captions):,} lines and {right.name} "
                f"{len(right.captions):,}; without image ids the lines must match one by one"
            )
        return "line", list(range(len(left.captions)))
    ways = {"image id": (left.ids, right.ids), "file name": (left.files, right.files)}
    failures = []
    for how, (ours, theirs) in ways.items():
        assert ours is not None
        assert theirs is not None
        places = {key: place for place, key in enumerate(theirs)}
        missing = [key for key in ours if key not in places]
        known = set(ours)
        extra = [] if subset else [key for key in theirs if key not in known]
        if len(known) < len(ours) or len(places) < len(theirs):
            continue  # images in different folders have equal names, so names identify nothing
        if not missing and not extra:
            return how, [places[key] for key in ours]
        failures.append((len(missing) + len(extra), how, missing, extra))
    _, how, missing, extra = min(failures, key=lambda failure: failure[0])
    sides = [
        f"{len(keys):,} only in {name}: {_listed(keys)}"
        for keys, name in ((missing, left.name), (extra, right.name))
        if keys
    ]
    raise DataError(f"the files name different images (by {how}): {'; '.join(sides)}")


def reference_tokens(found: CaptionSet, places: Sequence[int]) -> list[list[list[str]]]:
    """Tokenise the references of some images; leave out references without a word.

    Args:
        found: references.
        places: indices of the images.

    Raises:
        DataError: if an image has no reference with a word.
    """
    tokens = [
        [words for caption in found.captions[place] if (words := tokenize(caption))]
        for place in places
    ]
    bare = [found.label(place) for place, kept in zip(places, tokens, strict=True) if not kept]
    if bare:
        raise DataError(f"{found.name}: no reference caption for {_listed(bare)}")
    return tokens


def own_references(found: CaptionSet) -> CaptionSet | None:
    """Return the references in a system's caption file as a CaptionSet."""
    if found.references is None:
        return None
    return CaptionSet(found.name, found.references, found.ids, found.files)


def _predictions(path: Path) -> Path:
    """Return the path of the file, or of `predictions.jsonl` in an evaluation or run folder."""
    if not path.is_dir():
        return path
    direct = [path / PREDICTIONS, path / "evaluation" / PREDICTIONS]
    files = [file for file in direct if file.is_file()][:1]
    files = files or sorted(filter(Path.is_file, path.glob(f"evaluation/*/{PREDICTIONS}")))
    if not files:
        raise DataError(f"{path}: no {PREDICTIONS} in it; write one with `captioner evaluate`")
    if len(files) > 1:
        raise DataError(f"{path}: several {PREDICTIONS}; choose one: {', '.join(map(str, files))}")
    return files[0]


def _gather(path: Path, rows: Sequence[Row]) -> CaptionSet:
    """Join the rows of each image."""
    if not rows:
        raise DataError(f"{path}: no caption in the file")
    named = [row for row in rows if row.image_id or row.file]
    if not named:
        return CaptionSet(str(path), tuple(row.captions for row in rows), None, None)
    if len(named) < len(rows):
        bare = next(row for row in rows if not (row.image_id or row.file))
        raise DataError(f"{bare.where}: no image id or file name, but other rows have one")
    captions: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    for row in rows:
        name = PurePath(row.file).name if row.file else ""
        key = row.image_id or name
        captions[key] = captions.get(key, ()) + row.captions
        files.setdefault(key, name or key)
    return CaptionSet(str(path), tuple(captions.values()), tuple(captions), tuple(files.values()))


def _stored_signature(path: Path, images: int) -> Signature | None:
    """Read the signature in the `scores.json` next to the predictions."""
    if path.name != PREDICTIONS:
        return None
    try:
        scores = read_json(path.with_name("scores.json"))
        signature = Signature.parse(scores["bleu_4"]["signature"])
        return signature if signature["n"] == str(images) else None
    except (DataError, KeyError, TypeError, AttributeError):
        return None


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - LISTED:,} more" if len(keys) > LISTED else ""
    return ", ".join(plain(key, 60) for key in keys[:LISTED]) + more
