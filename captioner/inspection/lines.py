"""The findings of a data set as rows of text, below the table that `train` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from captioner.data.dataset import Example, describe
from captioner.inspection.caption_facts import CaptionFacts, Range
from captioner.inspection.inspect import Inspection
from captioner.inspection.picture_facts import PictureFacts, in_several_splits
from captioner.system.foreign import plain

MOST = 5  # groups or broken pictures in a list
Row = tuple[str, str]


def to_text(found: Inspection) -> str:
    """Return the counts of a data set, the findings, the problems and the notes as a table."""
    rows = [*_captions(found.captions), *_words(found), *_again(found), *_pictures(found)]
    return describe(found.dataset, rows)


def spread(numbers: Range) -> str:
    """Return a range as text, such as "5" or "1 to 7 (median 5)"."""
    if numbers.least == numbers.most:
        return f"{numbers.least:,}"
    return f"{numbers.least:,} to {numbers.most:,} (median {numbers.median:,})"


def shares(parts: dict[str, float], most: int = MOST) -> str:
    """Return the largest shares as text, such as "Latin 99.2%, Greek 0.8%"."""
    shown = [f"{name} {percent(part)}" for name, part in [*parts.items()][:most]]
    return ", ".join(shown) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def percent(part: float) -> str:
    """Return a share as text; neither 0% nor 100% if it is only near."""
    if 0 < part < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= part < 1 else f"{part:.1%}"


def counted(parts: dict[str, int], most: int = MOST) -> str:
    """Return the largest counts as text, such as "JPEG 7,000, PNG 3"."""
    shown = [f"{name} {count:,}" for name, count in [*parts.items()][:most]]
    return ", ".join(shown) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def same_files(pictures: PictureFacts) -> str:
    """Return how many pictures have the content of another one."""
    return f"{pictures.copies:,} of {pictures.count:,} pictures have the content of an earlier one"


def group_line(found: Inspection, group: Sequence[Example], most: int = 4) -> str:
    """Return the pictures of a group; with their splits if these differ, one of each first."""
    several = in_several_splits(group)
    firsts = {each.split: each for each in reversed(group)}
    group = sorted(group, key=lambda each: firsts[each.split] is not each)
    names = [
        f"{found.place(each.image)}{f' ({each.split})' if several else ''}" for each in group[:most]
    ]
    more = f" and {len(group) - most:,} more" if len(group) > most else ""
    return " = ".join(plain(name, 60) for name in names) + more


def _captions(captions: CaptionFacts) -> Iterable[Row]:
    for number, (name, split) in enumerate(captions.splits.items()):
        first, median, third = split.quartiles
        yield (
            "" if number else "captions",
            f"{plain(name, 40)}: {spread(split.per_image)} an image; {first}, {median}, {third} "
            f"tokens at the quartiles, {max(split.lengths, default=0):,} at most "
            f"({plain(split.longest, 60)})",
        )
    if captions.wordless:
        yield "no word", f"{captions.wordless:,} caption(s) have no word and are left out"
    yield "scripts", shares(captions.scripts) or "no letters"
    fits = f"{captions.tokenizer} (text.tokenizer)"
    yield from zip(("tokeniser", *[""] * 9), (fits, *captions.suggestions), strict=False)


def _words(found: Inspection) -> Iterable[Row]:
    captions = found.captions
    words = ", ".join(f"{word} {count:,}" for word, count in captions.frequent[:8])
    yield "words", f"of {captions.base}: {words}"
    width = max(8, *(len(name) + 1 for name in captions.splits))
    heads = "".join(f"{plain(name, 40):>{width}}" for name in captions.splits)
    yield "min_count", f"{'entries':>9}{heads}  unknown tokens"
    for row in captions.coverage:
        cells = "".join(f"{percent(part):>{width}}" for part in row.unknown.values())
        chosen = "  (text.min_count)" if row.min_count == found.min_count else ""
        yield f"{row.min_count:>9}", f"{row.entries:>9,}{cells}{chosen}"


def _again(found: Inspection) -> Iterable[Row]:
    captions, pictures = found.captions, found.pictures
    yield "repeats", f"{captions.repeated_captions:,} caption(s) stand more than once"
    yield from (("", f"{count:>7,} times {text}") for text, count in captions.repeated)
    yield "", f"{captions.same_in_image:,} caption(s) have the tokens of another of their image"
    yield "", same_files(pictures)
    yield from _groups(found, pictures.same)
    if pictures.decoded:
        yield "", f"{len(pictures.alike):,} group(s) of other pictures look the same"
        yield from _groups(found, pictures.alike)
    yield "leakage", f"{len(pictures.leaks):,} picture(s) stand in more than one split"
    yield from _groups(found, pictures.leaks)
    if alike := [group for group in pictures.alike if in_several_splits(group)]:
        yield "", f"{len(alike):,} group(s) that look the same stand in more than one split"
        yield from _groups(found, alike)
    for name, split in captions.splits.items():
        if split.in_train is not None:
            share = percent(split.in_train)
            yield "", f"{share} of the captions in {name} stand in {captions.base}, word for word"


def _groups(found: Inspection, groups: Sequence[Sequence[Example]]) -> Iterable[Row]:
    yield from (("", f"  {group_line(found, group)}") for group in groups[:MOST])
    if len(groups) > MOST:
        yield "", f"  and {len(groups) - MOST:,} more"


def _pictures(found: Inspection) -> Iterable[Row]:
    pictures = found.pictures
    how = "decoded" if pictures.decoded else "headers read; --images decodes them"
    yield "pictures", f"{pictures.count:,} ({how}): {counted(pictures.formats) or 'none sound'}"
    if pictures.width and pictures.height:
        yield "", f"modes: {counted(pictures.modes)}"
        size = f"width {spread(pictures.width)}; height {spread(pictures.height)} pixels"
        yield "", size
    if pictures.blank:
        yield "", f"{len(pictures.blank):,} of one colour, first: {found.place(pictures.blank[0])}"
    yield "broken", f"{len(pictures.broken):,} picture(s)"
    for image, reason in pictures.broken[:MOST]:
        yield "", f"  {plain(found.place(image), 100)}: {reason}"
    if len(pictures.broken) > MOST:
        yield "", f"  and {len(pictures.broken) - MOST:,} more; --json lists all"
