"""Read the captions of a system and reference captions from files, and match their images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TypedDict

from captioner.data.formats.collect import texts_of_images
from captioner.data.load import recognised
from captioner.errors import DataError
from captioner.images.decode import SUFFIXES
from captioner.metrics import Signature, SystemCaptions, read_signature
from captioner.metrics.scores import metric_named
from captioner.scoring.caption_rows import (
    Row,
    any_path,
    base_name,
    read_captions,
)
from captioner.system.foreign import plain
from captioner.system.text_files import read_json
from captioner.text import PTB, UNICODE, words_of
from captioner.text.languages import TOKENIZERS, is_latin

PREDICTIONS = "predictions.jsonl"
LISTED = 10  # images listed in an error


class MetricOptions(TypedDict, total=False):
    """How to score: options of `metrics.score_captions` and `metrics.compare_captions`."""

    metrics: Sequence[str]
    resamples: int
    seed: int
    tokenizer: str


def reads_several(options: MetricOptions) -> bool:
    """Return whether a metric reads several captions of an image."""
    found = (metric_named(name) for name in options.get("metrics", ()))
    return any(metric and not metric.one_caption for metric in found)


def first_caption_note(systems: Sequence[CaptionSet], options: MetricOptions) -> tuple[str, ...]:
    """Return a note if some metrics read one caption of an image and others read several."""
    several = any(
        len(image.n_best or image.captions) > 1 for one in systems for image in one.images
    )
    single = [
        name
        for name in options.get("metrics", ())
        if (metric := metric_named(name)) and metric.one_caption
    ]
    if not (several and single and reads_several(options)):
        return ()
    return (f"{', '.join(single)}: of each image's first caption",)


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """The captions of N images: one row for each, and either all rows have a key or none has."""

    name: str  # the file, for messages
    images: tuple[Row, ...]
    signature: Signature = field(default_factory=dict)  # in the `scores.json` next to the captions
    notes: tuple[str, ...] = ()  # what is left out or assumed

    @property
    def named(self) -> bool:
        """Whether the images have ids or file names; otherwise only the order identifies them."""
        return bool(self.images[0].key)

    def label(self, image: int) -> str:
        """Return the id of an image, or its line number without ids."""
        return plain(self.images[image].key, 100) if self.named else f"line {image + 1}"

    def written(self, tokenizer: str) -> SystemCaptions:
        """Return the captions of each image, the best first."""
        texts = []
        for image in self.images:
            best, *others = image.captions
            listed = [*(image.n_best or others)]
            if image.n_best and best in listed:
                listed.remove(best)
            texts.append([best, *listed])
        return SystemCaptions(texts, words_of(tokenizer))


def read_hypotheses(path: Path, *, several: bool = False) -> CaptionSet:
    """Read the captions of a system: one for each image, or with `several` one or more.

    The path is a file of any format, an output folder of `captioner evaluate`, a run folder that
    holds one, a folder with a text for each image, or a data set.

    Raises:
        DataError: if the file cannot be read, or an image has no caption, or has several although
            it may have one only.
    """
    path, notes = _predictions(path), list[str]()
    images = _by_image(str(path), read_captions(path, notes))
    found = CaptionSet(str(path), images, _stored_signature(path, len(images)), tuple(notes))
    for number, image in enumerate(images):
        if len(image.captions) > 1 and not several:
            raise DataError(
                f"{path}: {len(image.captions)} captions for {found.label(number)}; give one for "
                f"each image, or ask for their diversity (--metrics diversity)"
            )
        if not image.captions:
            raise DataError(f"{path}: 0 captions for {found.label(number)}; give one or more")
    return found


def read_references(paths: Sequence[Path]) -> CaptionSet:
    """Read references from one or more files; an image may have references in each file.

    A text file without ids has one line for each image; a blank line is no reference. A
    folder is a data set.

    Raises:
        DataError: if a file cannot be read, or the files do not fit each other.
    """
    sets = []
    notes: list[str] = []
    for path in map(_predictions, paths):
        rows = (replace(r, captions=r.references or r.captions) for r in read_captions(path, notes))
        sets.append(CaptionSet(str(path), _by_image(str(path), rows)))
    name = sets[0].name if len(sets) == 1 else f"{len(sets)} reference files"
    if all(found.named for found in sets):
        images = _by_image(name, (row for found in sets for row in found.images))
        return CaptionSet(name, images, notes=tuple(notes))
    if any(found.named for found in sets):
        raise DataError("references: some files have image ids and some have none; use one kind")
    sets = cut_blank_ends(sets)
    if len({len(found.images) for found in sets}) > 1:
        counts = ", ".join(f"{found.name} has {len(found.images):,}" for found in sets)
        raise DataError(f"references: every file must have one line for each image; {counts}")
    lines = zip(*(found.images for found in sets), strict=True)
    return CaptionSet(name, tuple(map(_joined, lines)))


def references_for(systems: Sequence[CaptionSet], paths: Sequence[Path]) -> CaptionSet:
    """Return the references in the files; without files, those in the systems' own files.

    The systems have the same images in the same order.

    Raises:
        DataError: if no system has references for every image, or the systems' references differ.
    """
    if paths:
        return read_references(paths)
    own = [found for found in systems if all(image.references for image in found.images)]
    if not own:
        raise DataError(
            f"{systems[0].name}: no references in the file; give reference files "
            f"(`captioner compare`: with --references)"
        )
    for other in own[1:]:
        differing = [
            other.label(number)
            for number, (left, right) in enumerate(zip(own[0].images, other.images, strict=True))
            if sorted(left.references) != sorted(right.references)
        ]
        if differing:
            raise DataError(
                f"{own[0].name} and {other.name} hold different references for "
                f"{len(differing):,} image(s), such as {differing[0]}; give the right ones with "
                f"--references"
            )
    images = tuple(replace(image, captions=image.references) for image in own[0].images)
    return CaptionSet(own[0].name, images)


def match(left: CaptionSet, right: CaptionSet, *, subset: bool = False) -> tuple[str, CaptionSet]:
    """Return how the images match, a key of `_WAYS`, and `right` in the order of `left`.

    Images that only `right` has are ignored with `subset`, or if no image of `left` is in their
    split of a data set.

    Raises:
        DataError: if an image is missing in one of the sets; the message lists the images.
    """
    if left.named != right.named:
        with_ids, without = (left, right) if left.named else (right, left)
        raise DataError(
            f"{with_ids.name} has image ids and {without.name} has none; use ids in both files, or "
            f"one caption a line in the same order in both"
        )
    if not left.named:
        if len(left.images) != len(right.images):
            raise DataError(
                f"{left.name} has {len(left.images):,} lines and {right.name} "
                f"{len(right.images):,}; without image ids the lines must match one by one"
            )
        return "line", right
    failures = []
    for how in _WAYS:
        ours, theirs = _keys(left, how), _keys(right, how)
        missing = [key for key in ours if key not in theirs]
        splits = {theirs[key].split for key in ours if key in theirs}
        extra = [key for key in theirs if key not in ours and theirs[key].split in splits]
        extra = [] if subset else extra
        if len(ours) < len(left.images) or len(theirs) < len(right.images):
            continue  # images in different folders have equal names, so names identify nothing
        if not missing and not extra:
            if len(left.images) < len(right.images) and splits != {""}:
                name = f"{right.name} (split {', '.join(sorted(map(plain, splits)))})"
                right = replace(right, name=name)
            notes = _other_case(left.images, matched := tuple(theirs[key] for key in ours))
            return how, replace(right, images=matched, notes=(*right.notes, *notes))
        failures.append((how, missing, extra))
    how, missing, extra = min(failures, key=lambda failure: len(failure[1]) + len(failure[2]))
    sides = [
        f"{len(keys):,} only in {name}: {listed(keys)}"
        for keys, name in ((missing, left.name), (extra, right.name))
        if keys
    ]
    raise DataError(f"the files name different images (by {how}): {'; '.join(sides)}")


def reference_tokens(found: CaptionSet, tokenizer: str = PTB.name) -> list[list[list[str]]]:
    """Split the references of each image into words; leave out references without a word.

    Raises:
        DataError: if an image has no reference with a word.
    """
    words = words_of(tokenizer)
    tokens = [
        [kept for caption in image.captions if (kept := words(caption))] for image in found.images
    ]
    bare = [found.label(number) for number, kept in enumerate(tokens) if not kept]
    if bare:
        raise DataError(f"{found.name}: no reference caption for {listed(bare)}")
    return tokens


def tokenizer_for(systems: Sequence[CaptionSet]) -> str:
    """Return the tokeniser that the systems' own scores were computed with; `ptb` without any.

    Raises:
        DataError: if the systems have different ones.
    """
    own = {found.signature["tok"]: found.name for found in systems if "tok" in found.signature}
    own = {name: system for name, system in own.items() if name in TOKENIZERS}
    if len(own) > 1:
        each = ", ".join(f"{name} for {system}" for name, system in own.items())
        raise DataError(
            f"the scores beside the captions are of different tokenisers ({each}); choose one for "
            f"all with --tokenizer"
        )
    return next(iter(own), PTB.name)


def tokenizer_note(found: CaptionSet) -> tuple[str, ...]:
    """Return a note if references are not split well without `--tokenizer`."""
    captions = [caption for image in found.images for caption in image.captions]
    if is_latin(captions):
        return ()
    return (f"most letters of {found.name} are not Latin; --tokenizer {UNICODE.name} splits them",)


def cut_blank_ends(sets: Sequence[CaptionSet]) -> list[CaptionSet]:
    """Cut blank lines at the end of the longer sets, if images are matched by line."""
    if any(found.named for found in sets):
        return list(sets)
    shortest = min(len(found.images) for found in sets)
    return [
        replace(found, images=found.images[:shortest])
        if not any("".join(row.captions).strip() for row in found.images[shortest:])
        else found
        for found in sets
    ]


def _other_case(left: Sequence[Row], right: Sequence[Row]) -> list[str]:
    """Note the images whose names differ in upper and lower case."""
    names = [(name_of(one), name_of(two)) for one, two in zip(left, right, strict=True)]
    differing = [(a, b) for a, b in names if a != b and a.casefold() == b.casefold()]
    if not differing:
        return []
    first, second = map(plain, differing[0])
    return [f"{len(differing):,} images match in another case (first: {first} is {second})"]


def _predictions(path: Path) -> Path:
    """Return the path, or that of `predictions.jsonl` in an evaluation or run folder."""
    if not path.is_dir():
        return path
    folders = ("", "evaluation/", "evaluation/*/")
    found = (sorted(path.glob(f"{folder}{PREDICTIONS}")) for folder in folders)
    files = next(filter(None, found), [])
    is_run = (path / "checkpoints").exists() or (path / "model.safetensors").exists()
    if not files and not is_run and (recognised(path) or texts_of_images(path)[0]):
        return path
    if not files:
        raise DataError(
            f"{path}: no {PREDICTIONS} in it, which `captioner evaluate` writes"
            f"{'' if is_run else ', no texts with captions and no data set'}"
        )
    if len(files) > 1:
        raise DataError(f"{path}: several {PREDICTIONS}; choose one: {', '.join(map(str, files))}")
    return files[0]


def _by_image(name: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Join the rows of each image; rows without a key are one image each."""
    rows = list(rows)
    if not rows:
        raise DataError(f"{name}: no caption in the file")
    if _numbers_captions(rows):
        rows = [replace(row, image_id="") for row in rows]
    rows = _with_folders(rows)
    bare = [row for row in rows if not row.key]
    if len(bare) == len(rows):
        return tuple(rows)
    if bare:
        raise DataError(f"{bare[0].where}: no image id or file name, but other rows have one")
    images: dict[str, list[Row]] = {}
    for row in rows:
        images.setdefault(row.key, []).append(row)
    return tuple(map(_joined, images.values()))


def _joined(rows: Sequence[Row]) -> Row:
    """Return the first row with the captions of all."""
    captions, n_best = (
        tuple(text for row in rows for text in getattr(row, name))
        for name in ("captions", "n_best")
    )
    return replace(rows[0], captions=captions, n_best=n_best)


def _numbers_captions(rows: Sequence[Row]) -> bool:
    """Return whether the ids number the captions: each is unique and the images repeat."""
    ids = {row.image_id for row in rows}
    images = {row.path for row in rows}
    return "" not in ids | images and len(images) < len(ids) == len(rows)


def _with_folders(rows: list[Row]) -> list[Row]:
    """Name images with their folders if names repeat; drop ids that are such names."""
    paths = {row.path: any_path(row.path) for row in rows if row.path}
    if len({base_name(path) for path in paths}) == len(set(paths.values())):
        return rows
    rows = [replace(row, file=paths.get(row.path, row.file)) for row in rows]
    named = all(PurePath(row.file).stem == row.image_id for row in rows)
    return [replace(row, image_id="") for row in rows] if named else rows


def _keys(found: CaptionSet, how: str) -> dict[str, Row]:
    if how != "path":
        return {_WAYS[how](image): image for image in found.images}
    paths = [PurePath(any_path(image.path or image.key)).parts for image in found.images]
    levels = list(zip(*(path[:-1] for path in paths), strict=False))
    common = next((n for n, level in enumerate(levels) if len(set(level)) > 1), len(levels))
    inner = ("/".join(path[common:]) for path in paths)
    return dict(zip(inner, found.images, strict=True))


def name_of(image: Row) -> str:
    """Return the name of an image without its folder and ending."""
    return _ENDING.sub("", base_name(image.file or image.image_id))


def _bare_name(image: Row) -> str:
    """Return the name without its ending, `COCO_val2014_` and leading zeros, in lower case."""
    name = name_of(image).casefold()
    return re.sub(r"(?:coco_\w+_)?0*(\d+)", r"\1", name) if _NUMBERED.fullmatch(name) else name


_ENDING = re.compile(rf"\.({'|'.join(ending.strip('.') for ending in SUFFIXES)})\Z", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:coco_\w+_)?\d+", re.ASCII)
_WAYS: dict[str, Callable[[Row], str]] = {
    "image id": lambda image: any_path(image.key),
    "file name": lambda image: image.file or base_name(image.key),
    "file name without ending": _bare_name,
    "path": lambda image: image.path,  # within the folder that all images share
}


def _stored_signature(path: Path, images: int) -> Signature:
    """Read the signature in the `scores.json` next to the predictions."""
    if path.name != PREDICTIONS:
        return {}
    try:
        scores = read_json(path.with_name("scores.json"), [])
        signature = read_signature(scores["bleu_4"]["signature"])
        return signature if signature["n"] == str(images) else {}
    except (DataError, KeyError, TypeError, AttributeError):
        return {}


def listed(keys: Sequence[str]) -> str:
    """Return the first keys and the number of the others, for a message."""
    more = f" and {len(keys) - LISTED:,} more" if len(keys) > LISTED else ""
    return ", ".join(plain(key, 60) for key in keys[:LISTED]) + more
