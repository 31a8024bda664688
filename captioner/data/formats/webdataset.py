"""WebDataset's tar shards: members of one key are an image and its captions, read where they are.

img2dataset writes such shards, with a table and a `_stats.json` beside each.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from captioner.data.dataset import Dataset, Options, split_in, split_name
from captioner.data.formats.collect import Collector
from captioner.data.formats.columns import find_captions
from captioner.data.formats.jsonl import parquet_rows
from captioner.errors import DataError
from captioner.images.content import Slice
from captioner.images.members import is_image, refusal, unread_kinds
from captioner.images.tars import TARS, compression, headers, open_tar
from captioner.system.files import no_stream, not_text, read_json
from captioner.system.foreign import excerpt, plain
from captioner.system.text_encodings import decode
from captioner.system.text_files import is_missing, load_json

LOOKS_FOR = (
    "a .tar file, a folder of them, or {00000..00009}.tar, with NAME.jpg and NAME.txt (or "
    ".caption, .json) inside"
)

TEXTS = (".txt", ".caption", ".captions", ".text")
MOST_SHARDS = 10**6
MAX_TEXT = 2**20  # bytes of a text member
_PEEKED_TARS, _PEEKED_MEMBERS = 5, 20_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})", re.ASCII)
_USUAL = ("train", "dev", "test")


@dataclass(slots=True)
class _Shard:
    """What is read of a shard."""

    path: Path
    pictures: dict[str, Slice]  # by member, in order
    captions: dict[str, list[tuple[str, object]]]  # (where, caption) of each picture


def recognise(root: Path) -> bool:
    """Return whether this is a tar file, a pattern, or a folder of shards with captions."""
    if not root.is_dir():
        return root.name.lower().endswith(TARS) and (root.exists() or is_pattern(root))
    tars = sorted([*root.glob("[!.]*.tar"), *root.glob("[!.]*/[!.]*.tar")])
    return any(map(_has_captions, tars[:_PEEKED_TARS]))


def is_pattern(root: Path) -> bool:
    """Return whether a name stands for several tar files, such as `{00000..00009}.tar`."""
    names = root.name.lower().endswith(TARS) and _BRACES.search(str(root))
    return bool(names) and not root.exists()


def load(root: Path, options: Options) -> Dataset:
    """Read the headers and texts of the shards; the images stay where they are.

    Raises:
        DataError: if a named shard does not exist, or no image is usable.
    """
    shards = _shards(root)
    collector = Collector(root, "webdataset", ())
    given = _given_splits(shards, options.splits)
    unread, left_out = Counter[str](), Counter[str]()
    read = [_read(collector, shard, options, unread, left_out) for shard in shards]
    names = Counter(name for shard in read for name in shard.pictures)
    unique = names.total() == len(names)
    top = Path(os.path.commonpath([shard.parent for shard in shards]))
    for shard in read:
        place = collector.place(shard.path)
        beside = given.get(shard.path) or _split_of(shard.path.relative_to(top))
        for name, image in shard.pictures.items():
            inside = None if shard.path in given else _folder_split(name.split("/")[:-1])
            image_id = name if unique else f"{place}/{name}"
            split = inside or beside or "train"
            if entry := collector.add(image_id, name, split, f"{place}/{name}", image):
                for where, caption in shard.captions.get(name, []):
                    collector.caption(entry, caption, where)
    if unread:
        collector.notes.append(f"pictures that captioner does not read: {unread_kinds(unread)}")
    if left_out:
        collector.notes.append(f"members that hold no captions: {unread_kinds(left_out)}")
    _note_img2dataset(collector, shards)
    if root.is_dir():
        tables = [shard.with_suffix(".parquet") for shard in shards]
        collector.note_others([*shards, *filter(Path.exists, tables)])
    return collector.dataset()


def _shards(root: Path) -> list[Path]:
    """Return the tar files of a folder, or those that a pattern names, in order."""
    if root.is_dir():
        return tars_in(root)
    shards = [root] if root.exists() else list(map(Path, expand(str(root))))
    if missing := [shard for shard in shards if not shard.exists()]:
        raise DataError(
            f"{root}: {len(missing):,} of {len(shards):,} shards do not exist, first: {missing[0]}"
        )
    return shards


def tars_in(folder: Path) -> list[Path]:
    """Return the tar files below a folder, compressed ones too, sorted by path."""
    found = (path for path in sorted(folder.rglob("[!.]*")) if path.name.lower().endswith(TARS))
    return [path for path in found if path.is_file()]


def expand(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for, as bash expands `{00..09}` and `{a,b}`.

    Raises:
        DataError: if it stands for more than `MOST_SHARDS` names.
    """
    done, todo = dict[str, None](), [pattern]
    while todo:
        name = todo.pop()
        for found in _BRACES.finditer(name):
            if ends := _RANGE.fullmatch(found[1]):
                first, last = int(ends[1]), int(ends[2])
                width = max(map(len, ends.groups())) if "0" in (ends[1][0], ends[2][0]) else 0
                step = 1 if first <= last else -1
                if abs(last - first) >= MOST_SHARDS:
                    raise DataError(f"{pattern}: more than {MOST_SHARDS:,} shards")
                parts = [f"{number:0{width}}" for number in range(first, last + step, step)]
            elif "," in found[1]:
                parts = found[1].split(",")
            else:
                continue
            todo += [f"{name[: found.start()]}{p}{name[found.end() :]}" for p in reversed(parts)]
            break
        else:
            done[name] = None
        if len(done) + len(todo) > MOST_SHARDS:
            raise DataError(f"{pattern}: more than {MOST_SHARDS:,} shards")
    return list(done)


def _given_splits(shards: Sequence[Path], splits: Sequence[str]) -> dict[Path, str]:
    """Return the split of each shard that a setting such as `data.split_dev` names by its file."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        by_name[shard.name].append(shard)
    given: dict[Path, str] = {}
    for split in splits:
        for name in expand(split) if split.lower().endswith(".tar") else ():
            parts = Path(name).parts
            found = [each for each in by_name[parts[-1]] if each.parts[-len(parts) :] == parts]
            if len(found) != 1:
                what = f"{len(found):,} shards are" if found else "no shard is"
                raise DataError(f"split {excerpt(split)}: {what} called {excerpt(name)}")
            if found[0] in given and given[found[0]] != split:
                raise DataError(
                    f"{found[0]}: in two splits, {excerpt(given[found[0]])} and {excerpt(split)}"
                )
            given[found[0]] = split
    return given


def _split_of(shard: Path) -> str | None:
    """Return the split in the name of a shard, such as `val-0001.tar`, or else of its folders."""
    return split_in(shard.name.partition(".")[0]) or _folder_split(shard.parts[:-1])


def _folder_split(folders: Sequence[str]) -> str | None:
    return next((name for name in map(split_name, folders[::-1]) if name in _USUAL), None)


def _members(path: Path) -> Iterator[tuple[BinaryIO, Any, int]]:
    """Yield the opened file, each header of an archive, and the file's size.

    Raises:
        DataError: if the archive cannot be read, is compressed, damaged or truncated.
    """
    try:
        with open(path, "rb", opener=no_stream) as file:
            if how := compression(file.peek(10)):
                raise DataError(
                    f"compressed, so its members cannot be read one by one; unpack it: {how} -dc "
                    f"{path.name} > {path.name.partition('.')[0]}.tar"
                )
            size = os.fstat(file.fileno()).st_size
            with open_tar(file, "r:") as archive:
                for member in headers(archive, size):
                    yield file, member, size
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or plain(error)}") from error
    except DataError:
        raise
    # tarfile raises nearly anything on damaged input (TarError, EOFError, ValueError, ...).
    except Exception as error:
        raise DataError(f"damaged archive: {plain(error)}") from error


def _has_captions(path: Path) -> bool:
    """Return whether an archive holds an image and a text of one key, from its first members."""
    images, texts = set[str](), set[str]()
    try:
        for number, (_, member, _) in enumerate(_members(path)):
            if number == _PEEKED_MEMBERS:
                break
            if is_image(member.name, Counter()):
                images.add(_key(member.name))
            elif _ending(member.name) in (*TEXTS, ".json"):
                texts.add(_key(member.name))
            if images & texts:
                return True
    except DataError:
        pass
    return not images.isdisjoint(texts)


def _read(
    collector: Collector,
    path: Path,
    options: Options,
    unread: Counter[str],
    left_out: Counter[str],
) -> _Shard:
    """Read one shard; what is not usable in it becomes a problem."""
    place = collector.place(path)
    endings = TEXTS if options.caption_column is None else (f".{options.caption_column}",)
    pictures: dict[str, Slice] = {}
    texts: dict[str, list[tuple[str, object]]] = {}
    try:
        for file, member, size in _members(path):
            name = member.name.removeprefix("./")
            ending, where = _ending(name), f"{place}/{name}"
            if name.rpartition("/")[2].startswith(".") or member.isdir():
                continue
            image = is_image(name, unread)
            if not image and ending not in (*endings, ".json"):
                left_out[ending or "without an ending"] += ending not in unread
                continue
            if reason := _refused(member):
                collector.problem("refused member", where, reason)
            elif name in pictures or name in texts:
                detail = "the archive has this member already; the first is read"
                collector.problem("duplicate id", where, detail)
            elif member.offset_data + member.size > size:
                continue  # truncated, as the next header tells
            elif image:
                pictures[name] = Slice(path, member.offset_data, member.size, name)
            elif member.size > MAX_TEXT:
                detail = f"{member.size:,} bytes, more than {MAX_TEXT:,} of a text"
                collector.problem("refused member", where, detail)
            else:
                file.seek(member.offset_data)
                texts[name] = [*_captions(collector, where, file.read(member.size), options)]
    except DataError as error:
        before = f"; {len(pictures):,} pictures before are read" if pictures else ""
        collector.problem("unreadable file", place, f"{error}{before}")
    return _Shard(path, pictures, _paired(collector, place, pictures, texts))


def _refused(member: Any) -> str | None:
    if member.issym() or member.islnk():
        return "a link to another file; links are not followed"
    if not member.isreg() or member.issparse():
        return "not a plain file"
    error = refusal(member.name, member.size)
    return str(error) if error else None


def _captions(
    collector: Collector, where: str, data: bytes, options: Options
) -> Iterator[tuple[str, object]]:
    """Yield (where, caption) of a text, one a line, or of a JSON object."""
    if what := not_text(data[:512]):
        collector.problem("not UTF-8", where, what)
        return
    text = decode(data)
    if not where.lower().endswith(".json"):
        yield from collector.lines(where, io.StringIO(text, newline="").readlines())
        return
    repeated: list[str] = []
    try:
        document = load_json(text, repeated)
    except (ValueError, RecursionError) as error:
        collector.problem("malformed line", where, f"not JSON: {plain(error)}")
        return
    collector.repeated(where, repeated)
    if isinstance(document, dict):
        column = options.caption_column
        columns = find_captions(document) if column is None else [column]
        document = [document[name] for name in columns if not is_missing(document.get(name))]
    for value in document if isinstance(document, list) else ():
        yield from ((where, each) for each in (value if isinstance(value, list) else [value]))


def _paired(
    collector: Collector,
    place: str,
    pictures: Mapping[str, Slice],
    texts: Mapping[str, list[tuple[str, object]]],
) -> dict[str, list[tuple[str, object]]]:
    """Return the captions of each picture.

    A text belongs to the first picture of its name without the last ending, or else to the pictures
    of its key, the name up to the first dot, that have no captions yet.
    """
    by_stem: dict[str, str] = {}
    for name in pictures:
        by_stem.setdefault(_stem(name), name)
    of: dict[str, list[tuple[str, object]]] = {}
    alone = []
    for text in sorted(texts, key=lambda name: _ending(name) == ".json"):  # the other texts first
        captions = texts[text]
        if picture := by_stem.get(_stem(text)):
            of[picture] = _joined(of.get(picture, []), captions)
        elif captions:
            alone.append(text)
    without: dict[str, list[str]] = defaultdict(list)
    for name in pictures:
        if not of.get(name):
            without[_key(name)].append(name)
    for text in alone:
        for picture in without[_key(text)]:
            of[picture] = _joined(of.get(picture, []), texts[text])
        if not without[_key(text)]:
            detail = f"no image of the key {_key(text)}"
            collector.problem("caption without image", f"{place}/{text}", detail)
    return of


def _joined(
    before: list[tuple[str, object]], more: list[tuple[str, object]]
) -> list[tuple[str, object]]:
    """Return all captions once: img2dataset writes each as text and in JSON, there as one line."""
    for some, others in ((before, more), (more, before)):
        whole = _words(" ".join(str(caption) for _, caption in some))
        if any(_words(caption) == whole for _, caption in others):
            return others
    known = [_words(caption) for _, caption in before]
    return [*before, *(each for each in more if _words(each[1]) not in known)]


def _words(caption: object) -> list[str]:
    return str(caption).split()


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _key(name: str) -> str:
    """Return WebDataset's key: the folder, and the name up to its first dot."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    return folder + slash + base.partition(".")[0]


def _note_img2dataset(collector: Collector, shards: Sequence[Path]) -> None:
    """Note the pictures that img2dataset could not download, from the files beside the shards."""
    why, total = Counter[str](), 0
    for shard in shards:
        stem = shard.name.partition(".")[0]
        counts = _stats(shard.with_name(f"{stem}_stats.json"), collector)
        counts = counts or _statuses(shard.with_name(f"{stem}.parquet"), collector)
        total += sum(counts.values())
        why.update(counts)
    why.pop("success", None)
    if why:
        reasons = ", ".join(f"{count:,} {plain(what, 60)}" for what, count in why.most_common(3))
        collector.notes.append(
            f"img2dataset: {why.total():,} of {total:,} pictures were not downloaded and are left "
            f"out ({reasons})"
        )


def _stats(path: Path, collector: Collector) -> Counter[str]:
    """Return how many downloads ended in each way, from img2dataset's `_stats.json`."""
    try:
        statuses = read_json(path).get("status_dict")
        return Counter({str(what): int(count) for what, count in statuses.items()})
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError) as error:
        place = collector.place(path)
        collector.notes.append(
            f"{place}: cannot be read, so it tells no failed downloads: {plain(error)}"
        )
    return Counter()


def _statuses(path: Path, collector: Collector) -> Counter[str]:
    """Return the same from img2dataset's table."""
    if not path.is_file():
        return Counter()
    try:
        rows = parquet_rows(path)
    except DataError as error:
        collector.notes.append(f"failed downloads are not counted: {error}")
        return Counter()
    return Counter(
        "success" if row.get("status") == "success" else str(row.get("error_message"))
        for row in rows
        if "status" in row
    )
