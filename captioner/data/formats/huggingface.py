"""Data sets of the library `datasets`: on the Hub, in its cache, or saved by `save_to_disk`.

`data.root: hf:OWNER/NAME[@REVISION][:CONFIG]` is read from the library's cache if it is there, else
downloaded. Data sets that are programs are not run; the library refuses them, too. The library maps
its Arrow files into memory, so an image is read when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from captioner.data.dataset import Dataset, Options, split_in
from captioner.data.formats.collect import Collector, listed, picture_folders
from captioner.data.formats.image_tables import BATCH, ERRORS, NEEDED, cells, load_image_tables
from captioner.errors import DataError, ImageError
from captioner.hub import (
    MAIN,
    TIMEOUT,
    HubName,
    hub_api,
    hub_library,
    is_hub_data,
    parse_data,
    quiet,
    reported,
    say_once,
)
from captioner.system.files import read_json
from captioner.system.foreign import plain

LOOKS_FOR = "a folder that save_to_disk of Hugging Face's datasets wrote, or hf:OWNER/NAME"

_SPLITS, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\Z")
_COMMIT = re.compile("[0-9a-f]{40}")


def recognise(root: Path) -> bool:
    """Return whether this is the name of a data set on the Hub, or a folder of the library."""
    if is_hub_data(root):
        return True
    has_info = (root / _INFO).is_file()
    is_saved = (root / _SPLITS).is_file() or (has_info and (root / _STATE).is_file())
    return is_saved or (has_info and any(root.glob("*.arrow")))


def load(root: Path, options: Options) -> Dataset:
    """Read a data set of the library; one on the Hub is downloaded if it is not in the cache.

    Raises:
        DataError: if `datasets` is missing, or the data set cannot be had or used.
    """
    try:
        library = import_module("datasets")
    except ImportError as error:
        raise DataError(f"{root}: needs datasets: {NEEDED}") from error
    if not is_hub_data(root):
        collector = Collector(root, "huggingface", picture_folders(root, options.images))
        return load_image_tables(collector, _saved(library, root), options)
    name = parse_data(root)
    collector = Collector(root, "huggingface", [root])  # its paths are those of the cache
    dataset = load_image_tables(collector, _fetched(library, name), options)
    return replace(dataset, name=name.repository.partition("/")[2])


def _saved(library: Any, root: Path) -> list[ArrowTable]:
    """Return the tables of a folder of the library, without opening them."""
    if (root / _SPLITS).is_file():
        splits = _json(root / _SPLITS).get("splits")
        if not isinstance(splits, list) or not all(map(_is_name, splits)):
            raise DataError(f"{root / _SPLITS}: expected a list of names in splits")
        return [_folder_table(library, root / split, split) for split in splits]
    if (root / _STATE).is_file():
        return [_folder_table(library, root, "")]
    return _arrow_tables(library, root)


def _is_name(split: object) -> bool:
    return isinstance(split, str) and Path(split).name == split


def _folder_table(library: Any, folder: Path, split: str) -> ArrowTable:
    return ArrowTable(
        split or folder.name,
        split_in(split) or split or None,
        partial(library.Dataset.load_from_disk, str(folder.absolute())),
    )


def _arrow_tables(library: Any, folder: Path) -> list[ArrowTable]:
    """Return the Arrow files of a folder in the library's cache."""
    splits = _json(folder / _INFO).get("splits")
    if not isinstance(splits, dict) or not splits:
        raise DataError(f"{folder / _INFO}: names no splits")
    names: dict[str, str] = {}  # splits by file
    for file in sorted(folder.glob("*.arrow")):
        stem = _SHARD.sub("", file.stem)
        split = max((s for s in splits if stem.endswith(f"-{s}")), key=len, default="")
        shards = int(found[1]) if (found := _SHARD.search(file.stem)) else 0
        every = [f"{stem}-{number:05}-of-{shards:05}.arrow" for number in range(shards)]
        names |= dict.fromkeys(every or [file.name], split)  # a missing shard is a problem later
    return [
        ArrowTable(name, split, partial(library.Dataset.from_file, str(folder / name)))
        for name, split in names.items()
        if split
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {plain(error)}") from error
    return document if isinstance(document, dict) else {}


def _fetched(library: Any, name: HubName) -> list[ArrowTable]:
    """Return the tables of a data set on the Hub, from the cache or downloaded."""
    hub = hub_library(DataError)
    if folder := _cached(library, name):
        say_once(f"{name}: commit {folder.name}, from the cache")
        return _arrow_tables(library, folder)
    if Path(name.repository).exists():
        raise DataError(
            f"{name}: here is a folder {name.repository}, which the library would read instead; "
            f"data.root={name.repository} reads it; to read the Hub, work in another folder"
        )
    with quiet(), reported(name, DataError):
        revision = None if name.revision == MAIN else name.revision
        info = hub_api(hub).dataset_info(name.repository, revision=revision, timeout=TIMEOUT)
        say_once(f"{name}: commit {info.sha}, downloads it")
        config = {"name": name.config} if name.config else {}
        # The cache learns the commit of a branch, so the branch is named.
        found = library.load_dataset(name.repository, revision=revision, **config)
    splits = found if isinstance(found, dict) else {"train": found}
    files = [Path(file["filename"]) for each in splits.values() for file in each.cache_files]
    # Without network, the library takes any commit that is in its cache.
    if not all(info.sha in file.parts for file in files):
        raise DataError(f"{name}: commit {info.sha} was not downloaded; try again")
    return [ArrowTable(split, split, partial(_itself, each)) for split, each in splits.items()]


def _itself(dataset: Any) -> Any:
    return dataset


def _cached(library: Any, name: HubName) -> Path | None:
    """Return the folder of a data set in the library's cache, the newest that fits; else None.

    Raises:
        DataError: if it has several configurations, and the name gives none.
    """
    naming = import_module("datasets.naming")
    owner, _, short = name.repository.partition("/")
    place = f"{owner}___{naming.camelcase_to_snakecase(short)}"
    base = Path(library.config.HF_DATASETS_CACHE).expanduser() / place
    commit = _commit(name)
    folders: list[Path] = []
    for info in base.glob(f"*/*/*/{_INFO}"):
        config = info.parts[-4]
        # With other settings than a configuration's own, the folder's name has more.
        fits = config == name.config if name.config else _json(info).get("config_name") == config
        if fits and (commit is None or info.parent.name == commit):
            folders.append(info.parent)
    if name.revision != MAIN and commit is None:
        return None
    folders.sort(key=lambda folder: folder.stat().st_mtime)
    newest = [folder for folder in folders if folder.name == folders[-1].name]
    configs = {folder.parts[-3]: folder for folder in newest}
    if len(configs) > 1 and "default" not in configs:
        example = f"{name}:{min(configs)}"
        raise DataError(f"{name}: has the configurations {listed(sorted(configs))}; as {example}")
    return configs.get("default") or next(iter(configs.values()), None)


def _commit(name: HubName) -> str | None:
    """Return the commit of a revision, as far as this machine knows it; None for the newest."""
    if _COMMIT.fullmatch(name.revision):
        return name.revision
    if name.revision == MAIN:
        return None
    cache = import_module("huggingface_hub.constants").HF_HUB_CACHE
    folder = f"datasets--{name.repository.replace('/', '--')}"
    try:
        return (Path(cache) / folder / "refs" / name.revision).read_text().strip() or None
    except (OSError, ValueError):
        return None


class ArrowTable:
    """A split, or a part of it, that the library keeps in Arrow files; opened when it is read."""

    def __init__(self, place: str, split: str | None, open: Any):
        """Take the name for messages, the split, and a function that opens the table."""
        self.place = place
        self.split = split
        self._open = open
        self._images: dict[str, Any] = {}

    @cached_property
    def _dataset(self) -> Any:
        try:
            return self._open()
        # The library raises many types for damaged files.
        except Exception as error:
            raise DataError(f"{self.place}: cannot be read: {plain(error)}") from error

    def schema(self) -> Any:
        """Return its columns, a `pyarrow.Schema`; a `DataError` if it cannot be read."""
        return self._dataset.features.arrow_schema

    def rows(self, columns: Sequence[str], image: str) -> Iterator[dict[str, Any]]:
        """Yield the cells of some columns, row by row; of the image only its path."""
        for table in self._tables([*columns, image]):
            paths = _part(table.column(image), "path")
            place = table.schema.get_field_index(image)
            yield from cells(_checked(table.set_column(place, image, paths)))

    def without_bytes(self, image: str) -> Collection[int]:
        """Return the rows whose image has no bytes."""
        nulls = (_part(table.column(image), "bytes").is_null() for table in self._tables([image]))
        every = chain.from_iterable(null.to_pylist() for null in nulls)
        return [row for row, null in enumerate(every) if null]

    def _tables(self, columns: list[str]) -> Iterator[Any]:
        """Yield the rows of some columns, as tables of Arrow."""
        chosen = self._dataset.select_columns(columns).with_format("arrow")
        try:
            yield from chosen.iter(BATCH)
        except ERRORS as error:
            raise DataError(f"{self.place}: cannot be read: {plain(error)}") from error

    def size(self, image: str, row: int) -> int:
        """Return the bytes of an image; 0 without bytes, or if it is damaged."""
        from pyarrow import compute

        try:
            return compute.binary_length(self._bytes(image, row))[0].as_py() or 0
        except ImageError:
            return 0

    def read(self, image: str, row: int) -> bytes | None:
        """Return the bytes of an image; None without bytes; an `ImageError` if it is damaged."""
        content: bytes | None = self._bytes(image, row)[0].as_py()
        return content

    def _bytes(self, image: str, row: int) -> Any:
        """Return the bytes of an image as an array of Arrow, (1,)."""
        if image not in self._images:
            self._images[image] = self._dataset.select_columns([image]).with_format("arrow")
        try:
            array = _part(self._images[image][row].column(0), "bytes")
            array.validate(full=True)  # a damaged file may point outside itself
        except ERRORS as error:
            message = f"damaged in the Arrow file: {plain(error)}"
            raise ImageError(message, kind="damaged") from error
        return array


def _part(column: Any, part: str) -> Any:
    """Return the `bytes` or the `path` of a column of images; nulls without such a part."""
    import pyarrow
    from pyarrow import compute

    is_struct = pyarrow.types.is_struct(column.type)
    if is_struct and column.type.get_field_index(part) >= 0:
        return compute.struct_field(column, part)
    return column if part == "bytes" and not is_struct else pyarrow.nulls(len(column))


def _checked(table: Any) -> Any:
    """Check that a table of Arrow does not point outside its file; text may be any bytes."""
    for column in table.columns:
        try:
            column.validate(full=True)
        except ValueError as error:
            if "UTF8" not in str(error):
                raise
    return table
