"""Flickr8k and Flickr30k, as their authors and mirrors distribute them.

A folder holds one caption file, any of the split lists, and the images. The caption file has either
`name.jpg#0<TAB>caption` lines or an `image,caption` table; its first lines show which.

Source: M. Hodosh, P. Young, J. Hockenmaier, "Framing image description as a ranking task", 2013;
P. Young et al., "From image descriptions to visual denotations", 2014.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector, annotation_files, picture_folders
from captioner.data.formats.columns import headless
from captioner.system.foreign import excerpt
from captioner.system.text_files import (
    filled_lines,
    is_utf8,
    read_lines,
    read_named,
    read_rows,
    text_head,
)

LOOKS_FOR = "a folder with *.token.txt, *.token, captions.txt or results.csv"

_CAPTION_FILES = ("*.token.txt", "*.token", "captions.txt", "results.csv")
_TAGGED_FILES = ("*human-written-caption.txt", "*.caption.txt")  # COCO-CN, Flickr8k-CN
# The archives unpack to a folder of texts beside a folder of images.
_ARCHIVES = ("*/*.token.txt", "*/*.token", "flickr30k_images/results.csv")
_SPLIT_LISTS = {
    split: (f"*.{split}Images.txt", f"coco-cn_{name}.txt")
    for split, name in (("train", "train"), ("dev", "val"), ("test", "test"))
}
_NUMBER = re.compile(r"#\d+$")
_TAGGED = re.compile(r"([^\t#]+)#[a-z]{3}#(\d+)[ \t]+")  # name#zhc#0 caption
_TEXTS = (".txt", ".token", "")
_HEADER = re.compile(r'\s*"?(image|image_name|file_name|filename)"?\s*([,|\t])', re.IGNORECASE)


def recognise(root: Path) -> bool:
    """Return whether this looks like a Flickr folder or its caption file."""
    if root.is_file():
        name = root.with_name(root.name.lower())
        return any(map(name.match, _CAPTION_FILES)) or _names_images(root)
    return _caption_file(root) is not None


def load(root: Path, options: Options) -> Dataset:
    """Read a Flickr folder, or its caption file."""
    file = _caption_file(root) or root
    collector = Collector(root, "flickr", picture_folders(file.parent, options.images))
    listed = _read_split_lists(collector, file.parent)
    left_out = _read_captions(collector, file, listed=listed)
    collector.note_others([file])
    for name in left_out:
        collector.pictures.find(name)  # else it would count as an image without captions
    if left_out:
        collector.notes.append(
            f"{len(left_out):,} captioned images are in no split list; left out "
            f"(first: {next(iter(left_out))})"
        )
    return collector.dataset(report_unnamed=root.is_dir())


def _caption_file(folder: Path) -> Path | None:
    for pattern in (*_CAPTION_FILES, *_ARCHIVES):
        # Flickr8k also has a file with lemmatised captions.
        files = [file for file in annotation_files(folder, pattern) if ".lemma." not in file.name]
        if files:
            return files[0]
    for pattern in _TAGGED_FILES:
        for file in annotation_files(folder, pattern):
            if file.is_file() and _has_number(text_head(file).partition("\n")[0]):
                return file
    [*texts] = annotation_files(folder, "*.txt") if folder.is_dir() else ()
    return texts[0] if len(texts) == 1 and _names_images(texts[0]) else None


def _names_images(file: Path) -> bool:
    """Return whether a text begins with the name of an image, or with a column of names."""
    start = text_head(file) if file.suffix.lower() in _TEXTS else ""
    return bool(_HEADER.match(start) or headless(start))


def _read_split_lists(collector: Collector, folder: Path) -> bool:
    """Add the images of every split list; return whether there is a list."""
    lists = [
        (split, file)
        for split, patterns in _SPLIT_LISTS.items()
        for pattern in patterns
        for file in annotation_files(folder, pattern)
    ]
    for split, file in lists:
        collector.expect(split, collector.place(file))
        for where, name in collector.lines(file, read_lines(file)):
            collector.add(name.strip(), name.strip(), split, where)
    return bool(lists)


def _read_captions(collector: Collector, file: Path, *, listed: bool) -> dict[str, None]:
    """Add the captions to their images; return the images in no split list, in order."""
    left_out: dict[str, None] = {}
    for where, name, caption in _captions(collector, file):
        entry = collector.entries.get(name)
        if entry is None and listed:
            left_out[name] = None
            continue
        entry = entry or collector.add(name, name, "train", where)
        if entry:
            collector.caption(entry, caption, where)
    return left_out


def _captions(collector: Collector, file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (where, name, caption) of every line with a name."""
    lines = filled_lines(file)
    tokens = any(map(_has_number, lines[:10]))
    # `captioner caption` prints name, tab, caption.
    named = headless("".join(lines[:1])) == "\t" or all("\t" in line for line in lines)
    named = named and not _HEADER.match("".join(lines[:1]))
    read = _token_lines if tokens else _named_lines if named else _table_rows
    for where, name, caption in read(collector, file, lines):
        if name:
            yield where, name, caption
        else:
            collector.problem("caption without image", where, excerpt(caption))


def _has_number(line: str) -> bool:
    """Return whether the name of the image in a line has the number of the caption."""
    return bool(_NUMBER.search(line.partition("\t")[0]) or _TAGGED.match(line))


def _token_lines(
    collector: Collector, file: Path, lines: list[str]
) -> Iterator[tuple[str, str, str]]:
    seen: dict[str, str] = {}
    for where, line in collector.lines(file, lines):
        key, tab, caption = _TAGGED.sub(r"\1#\2\t", line, count=1).partition("\t")
        name, number = _NUMBER.subn("", key.strip())
        if not tab:
            collector.problem("malformed line", where, f"no tab in {excerpt(line)}")
        elif number and key in seen:
            collector.problem("duplicate id", where, f"{key} is already at {seen[key]}")
        else:
            seen[key] = where
            yield where, name, caption


def _named_lines(
    collector: Collector, file: Path, lines: list[str]
) -> Iterator[tuple[str, str, str]]:
    place = collector.place(file)
    for number, (name, caption) in read_named(place, lines, collector.notes):
        where = f"{place}:{number}"
        if not is_utf8(name + caption):
            collector.not_utf8(where, lines[number - 1])
        elif "\t" not in lines[number - 1]:
            collector.problem("malformed line", where, f"no tab in {excerpt(name)}")
        else:
            yield where, name.strip(), caption


def _table_rows(
    collector: Collector, file: Path, lines: list[str]
) -> Iterator[tuple[str, str, str]]:
    place = collector.place(file)
    header = _HEADER.match(lines[0]) if lines else None
    delimiter = header[2] if header else headless("".join(lines[:1])) or ","
    width = lines[0].count(delimiter) + 1 if header else 2
    for number, cells in read_rows(lines, delimiter, first=1 if header else 0):
        where = f"{place}:{number}"
        # The caption is the last column and may contain delimiters.
        caption = delimiter.join(cells[width - 1 :])
        if not all(map(is_utf8, cells)):
            collector.not_utf8(where, delimiter.join(cells))
        elif len(cells) < width:
            collector.problem(
                "malformed line",
                where,
                f"{len(cells)} cells, expected at least {width}: image{delimiter}caption",
            )
        else:
            yield where, cells[0].strip(), caption
