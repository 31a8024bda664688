"""Stores the features of each image, so that the frozen CNN encodes an image only once.

A store is a folder with three growing files: `rows.f16` holds fp16 feature vectors, `rows.key` the
16-byte key of each row, and `rows.sum` an 8-byte checksum of each row and its key. The key is a
digest of the image file's content and of the view (plain or mirrored). The folder's name contains
the encoder's fingerprint, so every backbone, weights, transform and arithmetic has its own store.
`append` writes rows first, then checksums, then keys: a crash leaves rows without keys, which the
next `append` overwrites. Every read verifies the checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from captioner.encoder.encoder import Encoder
from captioner.encoder.preprocess import one_or_list
from captioner.errors import ConfigError, DataError, ImageError, ModelError
from captioner.images.decode import read_file, read_image
from captioner.system.batches import batched
from captioner.system.files import read_json, whole_file, write_text
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin, mark, owns
from captioner.system.workers import WithinMemory, Workers, workers

KEY_BYTES = 16
SUM_BYTES = 8
ROWS, KEYS, SUMS = "rows.f16", "rows.key", "rows.sum"
ABOUT = "about.json"
LIMIT = "CAPTIONER_CACHE_LIMIT"  # environment variable: maximum GB of all stores
DEFAULT_LIMIT = 100.0
KEY_BATCH = 128  # files whose keys are computed together
CHUNK = 4096  # rows that are verified together
PLAIN, MIRRORED = "plain", "mirrored"


def cache_folder() -> Path:
    """Return the cache folder: `$CAPTIONER_CACHE`, or else `~/.cache/captioner`."""
    root = os.environ.get("CAPTIONER_CACHE")
    if root:
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "captioner"


class AlteredError(DataError):
    """Stored features do not match their checksums."""


class FeatureStore:
    """Feature vectors on disk, read through a memory map."""

    def __init__(self, folder: Path, feature_size: int):
        """Open a store, or create an empty one.

        Args:
            folder: created if absent.
            feature_size: width F of a row.

        Raises:
            DataError: if the folder holds other files.
        """
        self.folder = folder
        self.feature_size = feature_size
        if is_unmarked_store(folder):
            mark(folder, "store")
        begin(folder, "store", DataError)
        self._rows, self._keys, self._sums = (folder / name for name in (ROWS, KEYS, SUMS))
        self._index: dict[bytes, int] = {}
        self._checksums = bytearray()
        self._count = 0
        self.refresh()

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Lock the store, so that no other process encodes the same images."""
        with FileLock(self.folder / "fill.lock"):
            self.refresh()
            yield

    @classmethod
    def for_encoder(cls, encoder: Encoder, root: Path | None = None) -> FeatureStore:
        """Open the store of an encoder.

        Args:
            encoder: its name and fingerprint are the folder name.
            root: parent folder; None: `cache_folder() / "features"`.
        """
        parent = cache_folder() / "features" if root is None else root
        store = cls(parent / f"{encoder.name}-{encoder.fingerprint()}", encoder.feature_size)
        about = {
            "encoder": one_or_list([asdict(cnn.spec) for cnn in encoder.cnns]),
            "arithmetic": encoder.arithmetic,
            "feature_size": encoder.feature_size,
        }
        write_text(store.folder / "about.json", json.dumps(about, indent=2) + "\n", "in store")
        return store

    def refresh(self) -> None:
        """Read the keys of rows that other processes have added."""
        if not all(path.exists() for path in (self._keys, self._sums, self._rows)):
            return
        with self._keys.open("rb") as index, self._sums.open("rb") as sums:
            index.seek(self._count * KEY_BYTES)
            keys = index.read()
            sums.seek(self._count * SUM_BYTES)
            checksums = sums.read()
        written = self._rows.stat().st_size // self._row_bytes
        new = min(len(keys) // KEY_BYTES, len(checksums) // SUM_BYTES, written - self._count)
        for i in range(new):
            self._index[keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]] = self._count + i
        if new > 0:
            self._checksums += checksums[: new * SUM_BYTES]
            self._count += new

    @property
    def _row_bytes(self) -> int:
        return self.feature_size * 2

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def rows(self, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """Return stored features, in memory.

        Args:
            keys: N row keys, each in the store.

        Returns:
            float16 (N, F).

        Raises:
            AlteredError: if a row does not match its checksum.
        """
        rows = np.asarray(self._mapped()[self._positions(keys)])
        self._check(keys, rows)
        return rows

    def table(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Return stored features, in memory if they fit, otherwise as a memory map.

        Args:
            keys: N row keys, each in the store.

        Returns:
            Features, fp16 (R, F), and the row of each key, int64 (N,). In memory the features are
            the rows of the keys; a memory map holds the whole store.

        Raises:
            AlteredError: if a row of `keys` does not match its checksum.
        """
        wanted = list(dict.fromkeys(keys))
        if fits(len(wanted) * self._row_bytes, torch.device("cpu")):
            place = {key: row for row, key in enumerate(wanted)}
            rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
            return torch.from_numpy(self.rows(wanted)), rows
        for start in range(0, len(wanted), CHUNK):
            self.rows(wanted[start : start + CHUNK])  # verifies the rows once
        return torch.from_numpy(self._mapped()), torch.from_numpy(self._positions(keys))

    def _check(self, keys: Sequence[bytes], rows: NDArray[np.float16]) -> None:
        """Refuse rows that do not match their checksums or are not finite."""
        bad = len(keys) - int(self.sound(keys, rows).sum())
        if bad:
            raise AlteredError(
                f"{self.folder}: {bad:,} stored row(s) of features were altered or are not finite; "
                f"`captioner features --prune` drops them, so that they are encoded again; --check "
                f"verifies all stores, --clear deletes one"
            )

    def sound(self, keys: Sequence[bytes], rows: NDArray[np.float16]) -> NDArray[np.bool_]:
        """Return whether each row matches its checksum and is finite.

        Args:
            keys: N row keys, each in the store.
            rows: float16 (N, F), the rows of the keys.

        Returns:
            bool (N,).
        """
        sums = self._checksums
        same = [
            _checksum(key, row) == sums[at * SUM_BYTES : (at + 1) * SUM_BYTES]
            for key, row, at in zip(keys, rows, self._positions(keys).tolist(), strict=True)
        ]
        return np.array(same, np.bool_) & np.isfinite(rows).all(1)

    def keys(self) -> list[bytes]:
        """Return the keys of all rows, in row order."""
        return sorted(self._index, key=self._index.__getitem__)

    def drop_damaged(self) -> int:
        """Delete the damaged rows. The caller holds the lock of `filling`.

        Returns:
            Number of deleted rows.
        """
        with FileLock(self.folder / "append.lock"):
            self.refresh()
            good: list[bytes] = []
            count = 0
            # Delete the keys first: after a crash all rows are encoded again.
            with self._aside(self._rows) as rows, self._aside(self._sums) as sums:
                for keys, table in self.chunks():
                    for key, row, sound in zip(keys, table, self.sound(keys, table), strict=True):
                        count += 1
                        if sound:
                            good.append(key)
                            rows.write(row.tobytes())
                            sums.write(_checksum(key, row))
                self._keys.unlink(missing_ok=True)
            with self._aside(self._keys) as index:
                index.write(b"".join(good))
        self._index, self._checksums, self._count = {}, bytearray(), 0
        self.refresh()
        return count - len(good)

    @contextmanager
    def _aside(self, path: Path) -> Iterator[IO[bytes]]:
        """Replace a file; a crash leaves no partial file."""
        with whole_file(path, "in store") as aside, aside.open("wb") as file:
            yield file

    def chunks(self) -> Iterator[tuple[list[bytes], NDArray[np.float16]]]:
        """Yield all keys and rows, `CHUNK` at a time, without verification."""
        keys, table = self.keys(), self._mapped()
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            yield chunk, np.asarray(table[self._positions(chunk)])

    def _mapped(self) -> NDArray[np.float16]:
        if not self._count:  # an empty file cannot be mapped
            return np.empty((0, self.feature_size), np.float16)
        if self._rows.stat().st_size < self._count * self._row_bytes:
            raise AlteredError(
                f"{self.folder}: {ROWS} was truncated while in use; run the same command again to "
                f"encode the missing rows"
            )
        # Copy on write, because torch needs writable memory.
        return np.memmap(self._rows, np.float16, mode="c", shape=(self._count, self.feature_size))

    def _positions(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([self._index[key] for key in keys], np.int64)

    def append(self, keys: Sequence[bytes], features: NDArray[np.float16]) -> None:
        """Append rows; several processes may append at the same time.

        Args:
            keys: N row keys; keys that are already in the store are skipped.
            features: float16 (N, F).

        Raises:
            ModelError: if a feature is not finite.
        """
        table = np.ascontiguousarray(features, np.float16)
        if not np.isfinite(table).all():
            raise ModelError(f"{self.folder}: cannot store features that are not finite")
        with FileLock(self.folder / "append.lock"):
            if not self._sums.exists():
                # Rows of an older captioner, without checksums. Memory maps of them stay valid.
                self._rows.unlink(missing_ok=True)
                self._keys.unlink(missing_ok=True)
            self.refresh()
            new = [i for i, key in enumerate(keys) if key not in self._index]
            sums = b"".join(_checksum(keys[i], table[i]) for i in new)
            self._append(self._rows, self._count * self._row_bytes, table[new].tobytes())
            self._append(self._sums, self._count * SUM_BYTES, sums)
            self._append(self._keys, self._count * KEY_BYTES, b"".join(keys[i] for i in new))
        self.refresh()

    def _append(self, path: Path, end: int, content: bytes) -> None:
        """Write at `end`, after the last row with a key; overwrite the remains of a crash."""
        with path.open("ab") as file:
            file.truncate(end)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _checksum(key: bytes, row: NDArray[np.float16]) -> bytes:
    return hashlib.blake2b(row.tobytes(), key=key, digest_size=SUM_BYTES).digest()


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def is_unmarked_store(folder: Path) -> bool:
    """Return whether a folder is a store of an early captioner, which did not mark its folders."""
    try:
        about = read_json(folder / "about.json")
    except (OSError, ValueError):
        return False
    return (
        not owns(folder, "store")
        and isinstance(about, dict)
        and about.keys() == {"encoder", "arithmetic"}
    )


def fits(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes take at most half of a device's free memory."""
    return 2 * size <= free_memory(device)


def image_key(data: bytes, view: str = PLAIN) -> bytes:
    """Return the key of an image file's content and a view.

    Args:
        data: content of the file.
        view: `PLAIN` or `MIRRORED`.
    """
    return hashlib.blake2b(data, digest_size=KEY_BYTES, person=view.encode()).digest()


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    images: Sequence[Path],
    *,
    mirrored: bool = False,
    batch_size: int = 64,
    share: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = print,
) -> tuple[dict[Path, tuple[bytes, ...]], dict[Path, ImageError]]:
    """Encode every image that is not in the store.

    Args:
        store: filled in place.
        encoder: the encoder of the store.
        images: distinct files.
        mirrored: also store the mirrored view of each image.
        batch_size: images per forward pass.
        share: (k, n): encode every n-th missing image, from the k-th on; for n processes of one
            job. A single process, n = 1, locks the store.
        say: receives status messages.

    Returns:
        The row keys of each readable image (plain first), and the errors of the others.

    Raises:
        DataError: if no image can be read, or the stores would exceed their limit.
        ModelError: if a feature is not a finite fp16 number.
    """
    alone = store.filling() if share[1] == 1 else nullcontext()
    with alone, workers(None, encoder.device) as crew:
        views = (PLAIN, MIRRORED) if mirrored else (PLAIN,)
        keys, broken = _keys(images, views, crew)
        todo = [p for p in keys if any(key not in store for key in keys[p])]
        size = len(todo) * len(views) * store.feature_size * 2
        known = len(keys) - len(todo)
        if todo:
            _check_limit(store, size)
            say(
                f"features: {len(todo):,} images to encode ({size / 1e6:,.1f} MB in "
                f"{store.folder}), {known:,} already stored"
            )
            mine = todo[share[0] :: share[1]]
            broken |= _encode(store, encoder, mine, keys, crew, batch_size)
    if not keys.keys() - broken.keys():
        first = next(iter(broken.items()), None)
        raise DataError(
            "no image could be read" + (f"; first: {plain(first[0])}: {first[1]}" if first else "")
        )
    return {path: key for path, key in keys.items() if path not in broken}, broken


def _keys(
    images: Sequence[Path], views: Sequence[str], crew: Workers
) -> tuple[dict[Path, tuple[bytes, ...]], dict[Path, ImageError]]:
    """Return the row keys of each readable image, and the errors of the others."""
    keys: dict[Path, tuple[bytes, ...]] = {}
    broken: dict[Path, ImageError] = {}

    def keys_of(path: Path) -> tuple[Path, tuple[bytes, ...] | ImageError]:
        try:
            data = read_file(path)
        except ImageError as error:
            return path, error
        return path, tuple(image_key(data, view) for view in views)

    results = crew.map_ahead(keys_of, batched(images, KEY_BATCH))
    for path, result in chain.from_iterable(results):
        if isinstance(result, ImageError):
            broken[path] = result
        else:
            keys[path] = result
    return keys, broken


def _encode(
    store: FeatureStore,
    encoder: Encoder,
    todo: Sequence[Path],
    keys: dict[Path, tuple[bytes, ...]],
    crew: Workers,
    batch_size: int,
) -> dict[Path, ImageError]:
    broken: dict[Path, ImageError] = {}

    def pixels_of(path: Path) -> tuple[Path, Tensor | ImageError]:
        try:
            return path, encoder.preprocess.pixels(read_image(path))
        except ImageError as error:
            return path, error

    encode = WithinMemory(encoder)
    with tqdm(total=len(todo), desc="encoding", unit="image", smoothing=0.05, disable=None) as bar:
        for batch in crew.map_ahead(pixels_of, batched(todo, batch_size)):
            broken |= {path: result for path, result in batch if isinstance(result, ImageError)}
            good = {path: result for path, result in batch if isinstance(result, Tensor)}
            for view in range(len(keys[batch[0][0]])):
                # Files with equal content have one row.
                new = {keys[path][view]: path for path in good if keys[path][view] not in store}
                if new:
                    pixels = torch.stack([good[path] for path in new.values()])
                    pixels = pixels.flip(-1) if view else pixels
                    features = torch.cat(crew.compute(encode, pixels, encoder.images_per_pass))
                    store.append(list(new), _storable(features, list(new.values())))
            bar.update(len(batch))
    return broken


def limit() -> int:
    """Return the limit of all stores in bytes: `$CAPTIONER_CACHE_LIMIT` GB, or else 100 GB.

    Raises:
        ConfigError: if the variable is not a number above 0.
    """
    given = os.environ.get(LIMIT, "").strip()
    try:
        gigabytes = float(given or DEFAULT_LIMIT)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes <= 1e9:
        raise ConfigError(
            f"${LIMIT}: must be a number of GB above 0, such as 50, given {excerpt(given, 60)}"
        )
    return int(gigabytes * 1e9)


def size_of(folder: Path) -> int:
    """Return the size of a store's files in bytes."""
    return sum(
        (folder / name).stat().st_size
        for name in (ROWS, KEYS, SUMS, ABOUT)
        if (folder / name).is_file()
    )


def _check_limit(store: FeatureStore, more: int) -> None:
    """Refuse `more` bytes if the stores would exceed their limit."""
    taken = sum(size_of(path) for path in store.folder.parent.iterdir() if path.is_dir())
    if taken + more > limit():
        raise DataError(
            f"{store.folder.parent}: with {more / 1e9:,.2f} GB more the feature stores would take "
            f"{(taken + more) / 1e9:,.2f} GB, over their limit of {limit() / 1e9:g} GB; `captioner "
            f"features --check` lists them, --clear NAME deletes one, ${LIMIT} raises the limit"
        )


def _storable(features: Tensor, images: Sequence[Path]) -> NDArray[np.float16]:
    rows = features.half().cpu()
    bad = ~rows.isfinite().all(1)
    if bad.any():
        raise ModelError(
            f"{plain(images[int(bad.nonzero()[0])])}: its features are not finite fp16 numbers (up "
            f"to {torch.finfo(torch.float16).max:,.0f}); check that encoder.weights fit the "
            f"backbone, or set encoder.precision to fp32"
        )
    return np.asarray(rows.numpy())
