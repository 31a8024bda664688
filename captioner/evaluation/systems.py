"""The captions of any system, and what they are compared with, as people keep them in files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from captioner.datasets.reading import (
    excerpt,
    guess_delimiter,
    is_utf8,
    read_json,
    read_lines,
    read_rows,
)
from captioner.datasets.table import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS
from captioner.errors import DataError
from captioner.metrics import Signature
from captioner.text import tokenize

PREDICTIONS = "predictions.jsonl"
REFERENCES = "references"  # of a prediction, in the same JSON object
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
        return self.ids[image] if self.ids else f"line {image + 1}"

    def about(self, key: str) -> str | None:
        """Return a field of the stored signature, such as `decode`; None where nobody knows."""
        return dict(self.signature.fields).get(key) if self.signature else None


@dataclass(frozen=True, slots=True)
class Row:
    """One line, row or object of a file."""

    where: str
    captions: tuple[str, ...]
    image_id: str | None = None
    file: str | None = None
    references: tuple[str, ...] | None = None


def read_hypotheses(path: Path) -> CaptionSet:
    """Read the captions of a system: one for each image.

    Args:
        path: JSON Lines, COCO results JSON, CSV, TSV or text; or a folder of `captioner evaluate`
            or the run around it.

    Raises:
        DataError: if it cannot be read, or an image has two captions or none.
    """
    path = _predictions(path)
    rows = list(_rows(path))
    found = _gather(path, rows)
    for image, captions in enumerate(found.captions):
        if len(captions) != 1:
            raise DataError(
                f"{path}: {len(captions)} captions for {found.label(image)}; a system gives one"
            )
    own = [row.references for row in rows if row.references]
    references = tuple(own) if len(own) == len(rows) else None
    signature = _stored_signature(path, len(rows))
    return CaptionSet(
        str(path), found.captions, found.ids, found.files, references, signature
    )


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
            for row in _rows(path)
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
    there = there or sorted(path.glob(f"evaluation/*/{PREDICTIONS}"))
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


def _rows(path: Path) -> Iterator[Row]:
    """Read a file by what its ending says it is."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _json_rows(path, read_json(path))
        return
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not is_utf8(line):
            raise DataError(f"{path}:{number}: not UTF-8: {excerpt(line)}")
    if suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object_row(f"{path}:{number}", _parse(f"{path}:{number}", line))
    elif suffix in (".csv", ".tsv"):
        yield from _table_rows(path, lines)
    else:
        yield from _text_rows(path, lines)


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _json_rows(path: Path, document: Any) -> Iterator[Row]:
    match document:
        case list(results):
            for index, result in enumerate(results):
                yield _object_row(f"{path}: [{index}]", result)
        case {"annotations": list(annotations), **rest}:
            images = rest.get("images")
            files = {
                str(image["id"]): image.get("file_name")
                for image in (images if isinstance(images, list) else [])
                if isinstance(image, dict) and "id" in image
            }
            for index, annotation in enumerate(annotations):
                where = f"{path}: annotations[{index}]"
                # An annotation's own `id` is not an image's.
                row = _object_row(where, annotation, id_columns=("image_id",))
                file = files.get(row.image_id or "")
                yield Row(where, row.captions, row.image_id, file)
        case _:
            raise DataError(
                f"{path}: neither COCO results ([{{image_id, caption}}, ...]) nor COCO captions "
                f"({{images, annotations}})"
            )


def _table_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    header: list[str] = []
    delimiter = guess_delimiter(lines[0]) if lines else ","
    for number, cells in read_rows(lines, delimiter):
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, the first line names {len(header)}")
        yield _object_row(where, dict(zip(header, map(_cell, cells), strict=True)))


def _cell(text: str) -> object:
    """A cell may hold a JSON list of captions."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _text_rows(path: Path, lines: Sequence[str]) -> Iterator[Row]:
    """One caption a line; or an image, a tab and its caption, as `captioner caption` writes."""
    texts = [line.rstrip("\r\n") for line in lines]
    with_images = bool(texts) and all("\t" in text for text in texts)
    for number, text in enumerate(texts, start=1):
        image, _, caption = text.partition("\t") if with_images else ("", "", text)
        # Flickr's token files number the captions of a picture: name.jpg#0
        name, _, count = image.rpartition("#")
        file = name if name and count.isdecimal() else image
        yield Row(f"{path}:{number}", (caption,), file=file or None)


def _object_row(
    where: str, values: object, *, id_columns: tuple[str, ...] = ID_COLUMNS
) -> Row:
    """Read one JSON object or one row of a table, by the usual names of its fields."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: not an object with a caption: {excerpt(values)}")
    fields = {str(name).lower(): value for name, value in values.items()}
    image_id = _first(fields, id_columns)
    file = _first(fields, IMAGE_COLUMNS)
    own = fields.get(REFERENCES)
    references = None if own is None else _captions(where, own)
    caption = _first(fields, CAPTION_COLUMNS)
    if caption is None and not references:
        raise DataError(f"{where}: no caption; fields: {', '.join(fields) or 'none'}")
    return Row(
        where,
        () if caption is None else _captions(where, caption),
        None if image_id in (None, "") else str(image_id),
        None if file in (None, "") else str(file),
        references,
    )


def _first(fields: Mapping[str, object], names: Sequence[str]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _captions(where: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: a caption must be text, was {excerpt(text)}")
        if not is_utf8(text):
            raise DataError(f"{where}: not UTF-8: {excerpt(text)}")
    return tuple(texts)


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
    return ", ".join(keys[:LISTED]) + more
