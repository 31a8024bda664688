"""The captions of any system, and what they are compared with, as people keep them in files."""

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
LISTED = 10  # images named in an error; the rest are counted


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Captions of N images.

    Attributes:
        name: file they come from, for messages.
        captions: of each image; a system gives one, references are several.
        ids: of the images; None where only the order says which is which.
        files: picture names without folders, else the ids; None with them.
        references: that came with a system's captions, if any did.
        signature: of the score that was stored beside them, if any was.
    """

    name: str
    captions: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] | None
    files: tuple[str, ...] | None
    references: tuple[tuple[str, ...], ...] | None = None
    signature: Signature | None = None

    def label(self, image: int) -> str:
        """Return what to call an image: its id, else its line."""
        return plain(self.ids[image], 100) if self.ids else f"line {image + 1}"

    def about(self, key: str) -> str | None:
        """Return a field of the stored signature, such as `decode`; None where nobody knows."""
        return dict(self.signature.fields).get(key) if self.signature else None


def read_hypotheses(path: Path) -> CaptionSet:
    """Read the captions of a system: one for each image.

    Args:
        path: JSON Lines, COCO results JSON, CSV, TSV or text; or a folder of `captioner evaluate`
            or the run around it.

    Raises:
        DataError: if it cannot be read, or an image has two captions or none.
    """
    path = _predictions(path)
    rows = list(read_captions(path))
    found = _gather(path, rows)
    for image, captions in enumerate(found.captions):
        if len(captions) != 1:
            raise DataError(
                f"{path}: {len(captions)} captions for {found.label(image)}; a system gives one"
            )
    own = [row.references for row in rows if row.references]
    references = tuple(own) if len(own) == len(rows) else None
    signature = _stored_signature(path, len(rows))
    return CaptionSet(str(path), found.captions, found.ids, found.files, references, signature)


def read_references(paths: Sequence[Path]) -> CaptionSet:
    """Read references: what one file says of an image joins what the others say of it.

    Args:
        paths: files as for `read_hypotheses`, COCO captions JSON as well. Text files without ids
            hold one reference for each image; where an image has fewer, its line is blank.

    Raises:
        DataError: if one cannot be read, or they do not fit each other.
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
        raise DataError("references: some files have image ids and some have not; give one kind")
    lengths = {found.name: len(found.captions) for found in sets}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{file} has {count:,}" for file, count in lengths.items())
        raise DataError(f"references: one line for each image is needed in every file; {counts}")
    columns = zip(*(found.captions for found in sets), strict=True)
    return CaptionSet(name, tuple(sum(column, ()) for column in columns), None, None)


def match(left: CaptionSet, right: CaptionSet, *, subset: bool = False) -> tuple[str, list[int]]:
    """Find for each image of `left` the same image in `right`.

    Args:
        left: every image of it must be in `right`.
        right: every image of it must be in `left`, unless `subset`.
        subset: images that only `right` has are passed over.

    Returns:
        How they were matched ("image id", "file name" or "line"), and N places in `right`.

    Raises:
        DataError: listing the images missing on either side.
    """
    if (left.ids is None) != (right.ids is None):
        with_ids, without = (left, right) if left.ids else (right, left)
        raise DataError(
            f"{with_ids.name} has image ids and {without.name} has none; give both with ids, or "
            f"both with one caption a line in the same order"
        )
    if left.ids is None or right.ids is None:
        if len(left.captions) != len(right.captions):
            raise DataError(
                f"{left.name} has {len(left.captions):,} lines and {right.name} "
                f"{len(right.captions):,}; without image ids they must go together line by line"
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
            continue  # pictures of different folders share a name, which then says nothing
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
    """Tokenise the references of some images; those without a word are left out, as in training.

    Args:
        found: references.
        places: images wanted, in this order.

    Raises:
        DataError: if an image has no reference left.
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
    """Return the references that came with a system's captions, as a set of their own."""
    if found.references is None:
        return None
    return CaptionSet(found.name, found.references, found.ids, found.files)


def _predictions(path: Path) -> Path:
    """Return the file itself, or the predictions in an evaluation's or a run's folder."""
    if not path.is_dir():
        return path
    direct = [path / PREDICTIONS, path / "evaluation" / PREDICTIONS]
    there = [file for file in direct if file.is_file()][:1]
    there = there or sorted(filter(Path.is_file, path.glob(f"evaluation/*/{PREDICTIONS}")))
    if not there:
        raise DataError(f"{path}: no {PREDICTIONS} in it; write one with `captioner evaluate`")
    if len(there) > 1:
        raise DataError(f"{path}: holds several, name one: {', '.join(map(str, there))}")
    return there[0]


def _gather(path: Path, rows: Sequence[Row]) -> CaptionSet:
    """Join the rows of each image."""
    if not rows:
        raise DataError(f"{path}: holds no caption")
    named = [row for row in rows if row.image_id or row.file]
    if not named:
        return CaptionSet(str(path), tuple(row.captions for row in rows), None, None)
    if len(named) < len(rows):
        bare = next(row for row in rows if not (row.image_id or row.file))
        raise DataError(f"{bare.where}: no image id or file name here, though other rows have one")
    captions: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    for row in rows:
        name = PurePath(row.file).name if row.file else ""
        key = row.image_id or name
        captions[key] = captions.get(key, ()) + row.captions
        files.setdefault(key, name or key)
    return CaptionSet(str(path), tuple(captions.values()), tuple(captions), tuple(files.values()))


def _stored_signature(path: Path, images: int) -> Signature | None:
    """Read how the predictions were made from the `scores.json` that was written with them."""
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
