"""Features that another program made, keyed by image id: NumPy, HDF5 and safetensors files.

`.npz`, `.h5` and `.safetensors` hold one array for each id, or `ids` and `features`. `.npy` holds
all features in one array, and a text file beside it, `NAME.ids.txt`, one id a line; so does a
`.safetensors` with the one tensor `features`. Features are read when they are asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.data.dataset import Example
from captioner.errors import DataError
from captioner.system.foreign import excerpt, plain

ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".safetensors")
TABLE = {"ids", "features"}  # names of the arrays of all images


class _Opened(NamedTuple):
    """The content of a file."""

    ids: Sequence[Any]
    read: Callable[[int], Any]  # the array of the id with a number
    table: Any = None  # (N, ...), where the file holds one array of all images
    close: Callable[[], None] = lambda: None


class FeatureFile:
    """A file of features, one array an image, all of one shape."""

    def __init__(self, path: Path):
        """Open a file, and read its ids.

        Raises:
            DataError: if it cannot be read, or does not hold features with ids.
        """
        self.path = path
        self._lock = Lock()
        open_it = _READERS.get(path.suffix.lower())
        if open_it is None:
            raise DataError(f"{path}: not a file of features; those end with {', '.join(ENDINGS)}")
        try:
            self._opened = open_it(path)
            weakref.finalize(self, self._opened.close)
            ids = [_as_text(given) for given in self._opened.ids]
            table = self._opened.table
            if table is not None and len(ids) != len(table):
                raise ValueError(f"{len(ids):,} ids for {len(table):,} images")
            self.index = {key: number for number, key in enumerate(ids)}
            if len(self.index) < len(ids):
                twice = next(key for number, key in enumerate(ids) if self.index[key] != number)
                raise ValueError(f"id {excerpt(twice)} stands there twice")
            if not ids:
                raise ValueError("no features")
            first = (1, *table.shape[1:]) if table is not None else (1, *self._array(0).shape)
            self.shape = _shape(first[1:])
        except DataError:
            raise
        # Each library raises many types for a damaged file.
        except Exception as error:
            reason = getattr(error, "strerror", None) or plain(error)
            raise DataError(f"{path}: cannot be used as features: {reason}") from error

    def __len__(self) -> int:
        return len(self.index)

    def read(self, key: str) -> NDArray[Any]:
        """Return the features of an id, (F,) or (P, C); a `DataError` for another shape."""
        try:
            values = self._array(self.index[key])
            shape = _shape(values.shape)
        except Exception as error:
            where = f"{self.path}: {excerpt(key)}"
            raise DataError(f"{where}: cannot be used as features: {plain(error)}") from error
        if shape != self.shape:
            raise DataError(
                f"{self.path}: {excerpt(key)} has the shape {values.shape}, others "
                f"{self.shape}; all must have one shape"
            )
        return values.reshape(shape)

    def _array(self, number: int) -> NDArray[Any]:
        with self._lock:
            values = np.asarray(self._opened.read(number))
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{values.dtype} is no type of numbers")
        return values

    def mapped(self) -> NDArray[np.float16] | None:
        """Return all vectors as a memory map, float16 (N, F); None unless the file is stored so."""
        table = self._opened.table
        if isinstance(table, np.memmap) and table.dtype == np.float16 and len(self.shape) == 1:
            # Copy on write, because torch needs writable memory.
            return np.load(self.path, mmap_mode="c").reshape(len(self), -1)  # type: ignore[no-any-return]
        return None

    def keys_of(self, examples: Iterable[Example]) -> dict[Example, str]:
        """Return the key of each example that has features.

        Keys are image ids, or file names with or without ending: whichever is found most often.
        """
        forms: tuple[Callable[[Example], str], ...] = (
            lambda example: example.image_id,
            lambda example: Path(str(example.image)).name,
            lambda example: Path(str(example.image)).stem,
        )
        best: dict[Example, str] = {}
        examples = list(examples)
        for form in forms:
            found = {example: form(example) for example in examples if form(example) in self.index}
            images = {example.image_id for example in found}
            if len(found) > len(best) and len(set(found.values())) == len(images):
                best = found
        return best


def _as_text(given: Any) -> str:
    if isinstance(given, bytes):
        return given.decode()
    if isinstance(given, str | int | np.integer) and not isinstance(given, bool):
        return str(given)
    raise ValueError(f"ids must be text or whole numbers, not {excerpt(given)}")


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image's features, (F,) or (P, C); a `ValueError` for others."""
    kept = tuple(shape[1:] if len(shape) == 2 and shape[0] == 1 else shape)
    if len(kept) not in (1, 2) or 0 in kept:
        raise ValueError(
            f"an image has the shape {tuple(shape)}; give one vector (F) or a grid (P x C) an image"
        )
    return kept


def _beside(path: Path) -> list[str]:
    """Return the ids in the text file beside a file."""
    ids = path.with_suffix(".ids.txt")
    if not ids.is_file():
        raise ValueError(f"needs {ids.name} beside it, with one image id a line")
    return ids.read_text(encoding="utf-8").splitlines()


def _of_table(ids: Any, table: Any, close: Callable[[], None] = lambda: None) -> _Opened:
    return _Opened(list(ids), lambda number: table[number], table, close)


def _open_npy(path: Path) -> _Opened:
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    return _of_table(_beside(path), table)


def _open_npz(path: Path) -> _Opened:
    with ExitStack() as stack:
        # NumPy leaves a damaged file open.
        file = stack.enter_context(path.open("rb"))
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a .npy file by its content")
        ids = archive.files
        if set(ids) == TABLE:
            return _of_table(archive["ids"].ravel().tolist(), archive["features"])
        return _Opened(ids, lambda number: archive[ids[number]], close=stack.pop_all().close)


def _open_hdf5(path: Path) -> _Opened:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: needs h5py: pip install 'captioner[data]'") from error
    archive = h5py.File(path, "r")
    if groups := [name for name in archive if not isinstance(archive[name], h5py.Dataset)]:
        raise ValueError(f"{groups[0]} is a group; store one array for each image at the top")
    if set(archive) == TABLE:
        ids = archive["ids"][()].ravel().tolist()
        return _of_table(ids, archive["features"], archive.close)
    ids = list(archive)
    return _Opened(ids, lambda number: archive[ids[number]][()], close=archive.close)


def _open_safetensors(path: Path) -> _Opened:
    from safetensors import safe_open

    archive: Any = safe_open(path, framework="pt")
    ids = list(archive.keys())

    def read(name: str) -> NDArray[Any]:
        tensor = archive.get_tensor(name)
        # NumPy has no bfloat16.
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())

    if ids == ["features"]:
        return _of_table(_beside(path), read("features"))
    return _Opened(ids, lambda number: read(ids[number]))


_READERS: dict[str, Callable[[Path], _Opened]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".h5": _open_hdf5,
    ".hdf5": _open_hdf5,
    ".safetensors": _open_safetensors,
}
