"""What the frozen CNN said about each image, computed once and stored.

A store is a folder with three growing files: `rows.f16`, one fp16 feature vector after another,
`rows.key`, the 16-byte key of each, and `rows.sum`, an 8-byte checksum of each with its key. The
key is a digest of the image file's content and of the view taken of it (as it is, or mirrored).
The folder's name is the encoder's fingerprint: another backbone, other weights, another transform
or other arithmetic is another store. Rows are appended before their checksums and those before
their keys, so after a crash the unkeyed tail is simply written again. A row is held against its
checksum whenever it is read.
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
LIMIT = "CAPTIONER_CACHE_LIMIT"  # in the environment: GB that all stores may take
USUAL_LIMIT = 100.0
READ_TOGETHER = 128  # files whose keys are computed together
CHUNK = 4096  # rows that are checked at once
PLAIN, MIRRORED = "plain", "mirrored"


def cache_folder() -> Path:
    """Return where stores live: `$CAPTIONER_CACHE`, else `~/.cache/captioner`."""
    root = os.environ.get("CAPTIONER_CACHE")
    if root:
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "captioner"


class AlteredError(DataError):
    """Stored features are not what was written."""


class FeatureStore:
    """Feature vectors on disk, read through a memory map."""

    def __init__(self, folder: Path, feature_size: int):
        """Open a store, or start an empty one.

        Args:
            folder: made when absent.
            feature_size: width F of a row.

        Raises:
            DataError: if something else stands in the folder.
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
        """Keep other runs from encoding the same images at the same time."""
        with FileLock(self.folder / "fill.lock"):
            self.refresh()
            yield

    @classmethod
    def for_encoder(cls, encoder: Encoder, root: Path | None = None) -> FeatureStore:
        """Open the store of an encoder.

        Args:
            encoder: its fingerprint names the folder.
            root: parent folder; None: `cache_folder() / "features"`.
        """
        parent = cache_folder() / "features" if root is None else root
        store = cls(parent / f"{encoder.name}-{encoder.fingerprint()}", encoder.feature_size)
        about = {
            "encoder": one_or_list([asdict(part.spec) for part in encoder.parts]),
            "arithmetic": encoder.arithmetic,
            "feature_size": encoder.feature_size,
        }
        write_text(store.folder / "about.json", json.dumps(about, indent=2) + "\n", "in store")
        return store

    def refresh(self) -> None:
        """Learn of the rows that other processes have added."""
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
            AlteredError: if one was altered since it was written.
        """
        rows = np.asarray(self._mapped()[self._positions(keys)])
        self._check(keys, rows)
        return rows

    def table(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Return stored features in memory where they fit, else where they lie on disk.

        Args:
            keys: N row keys, each in the store.

        Returns:
            fp16 (R, F), and the row of each key in it, int64 (N,). In memory the rows are those
            asked for; on disk they are the whole store, read through a memory map.

        Raises:
            AlteredError: if one that is asked for was altered since it was written.
        """
        wanted = list(dict.fromkeys(keys))
        if fits(len(wanted) * self._row_bytes, torch.device("cpu")):
            place = {key: row for row, key in enumerate(wanted)}
            rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
            return torch.from_numpy(self.rows(wanted)), rows
        for start in range(0, len(wanted), CHUNK):
            self.rows(wanted[start : start + CHUNK])  # checked once, then trusted
        return torch.from_numpy(self._mapped()), torch.from_numpy(self._positions(keys))

    def _check(self, keys: Sequence[bytes], rows: NDArray[np.float16]) -> None:
        """Refuse rows that are not what was written, or no numbers."""
        bad = len(keys) - int(self.sound(keys, rows).sum())
        if bad:
            raise AlteredError(
                f"{self.folder}: {bad:,} stored row(s) of features were altered since they were "
                f"written, or are no numbers; `captioner features --prune` drops them, to be "
                f"encoded again; --check looks at all, --clear deletes the store"
            )

    def sound(self, keys: Sequence[bytes], rows: NDArray[np.float16]) -> NDArray[np.bool_]:
        """Say of each row whether it is what was written, and finite.

        Args:
            keys: N row keys, each in the store.
            rows: float16 (N, F), as they were read.

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
        """Return the keys of all rows, in the order of the rows."""
        return sorted(self._index, key=self._index.__getitem__)

    def drop_damaged(self) -> int:
        """Drop the rows that are damaged, for good; the others stay. Nobody may fill meanwhile.

        Returns:
            How many were dropped.
        """
        with FileLock(self.folder / "append.lock"):
            self.refresh()
            good: list[bytes] = []
            count = 0
            # Files that are not whole have no keys: what a crash leaves here is encoded again.
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
        """Write a file whole, in the place of the one there is."""
        with whole_file(path, "in store") as aside, aside.open("wb") as file:
            yield file

    def chunks(self) -> Iterator[tuple[list[bytes], NDArray[np.float16]]]:
        """Yield all rows with their keys, unchecked, some thousands at a time."""
        keys, table = self.keys(), self._mapped()
        for start in range(0, len(keys), CHUNK):
            some = keys[start : start + CHUNK]
            yield some, np.asarray(table[self._positions(some)])

    def _mapped(self) -> NDArray[np.float16]:
        if not self._count:  # an empty file cannot be mapped
            return np.empty((0, self.feature_size), np.float16)
        if self._rows.stat().st_size < self._count * self._row_bytes:
            raise AlteredError(
                f"{self.folder}: {ROWS} was cut off while it was in use; what is missing is "
                f"encoded again when you give the same command again"
            )
        # Copy on write: torch wants memory that could be written to.
        return np.memmap(self._rows, np.float16, mode="c", shape=(self._count, self.feature_size))

    def _positions(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([self._index[key] for key in keys], np.int64)

    def append(self, keys: Sequence[bytes], features: NDArray[np.float16]) -> None:
        """Add rows; each is on disk before its key is. Several processes may do so at once.

        Args:
            keys: N row keys; those that another process has added meanwhile are left out.
            features: float16 (N, F).

        Raises:
            ModelError: if a feature is no number.
        """
        table = np.ascontiguousarray(features, np.float16)
        if not np.isfinite(table).all():
            raise ModelError(f"{self.folder}: features that are no numbers are not stored")
        with FileLock(self.folder / "append.lock"):
            if not self._sums.exists():
                # Rows without checksums, of an older captioner: who maps them keeps them so.
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
        """Write behind the last keyed row; what a crash left there is cut off first."""
        with path.open("ab") as file:
            file.truncate(end)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _checksum(key: bytes, row: NDArray[np.float16]) -> bytes:
    return hashlib.blake2b(row.tobytes(), key=key, digest_size=SUM_BYTES).digest()


def free_memory(device: torch.device) -> int:
    """Return the bytes that a device could still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def is_unmarked_store(folder: Path) -> bool:
    """Whether a captioner that marked no folders yet filled a folder."""
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
    """Say whether a table of this many bytes leaves half of a device's free memory to others."""
    return 2 * size <= free_memory(device)


def image_key(data: bytes, view: str = PLAIN) -> bytes:
    """Return the key of an image file's content under a view.

    Args:
        data: the file's bytes.
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
    """Encode every image that the store does not know yet.

    Args:
        store: filled in place; what it holds is not computed again.
        encoder: the CNN the store belongs to.
        images: files, each once.
        mirrored: also store each image mirrored left to right.
        batch_size: images per forward pass.
        share: (k, n): of what is missing, encode every n-th image from the k-th on; n processes
            of one job do the whole together. One process alone has the store to itself.
        say: told what is about to be stored, and what was saved.

    Returns:
        The row keys of each readable image (plain first), and what is wrong with the others.

    Raises:
        DataError: if not one image can be read, or the stores would outgrow their limit.
        ModelError: if a feature is not a number that fp16 can hold.
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
                f"{store.folder}), {known:,} stored already"
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
    """Return the row keys of each readable image, and what is wrong with the others."""
    keys: dict[Path, tuple[bytes, ...]] = {}
    broken: dict[Path, ImageError] = {}

    def keys_of(path: Path) -> tuple[Path, tuple[bytes, ...] | ImageError]:
        try:
            data = read_file(path)
        except ImageError as error:
            return path, error
        return path, tuple(image_key(data, view) for view in views)

    found = crew.map_ahead(keys_of, batched(images, READ_TOGETHER))
    for path, result in chain.from_iterable(found):
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
            broken |= {path: found for path, found in batch if isinstance(found, ImageError)}
            good = {path: found for path, found in batch if isinstance(found, Tensor)}
            for view in range(len(keys[batch[0][0]])):
                # Two files with the same content are one row.
                new = {keys[path][view]: path for path in good if keys[path][view] not in store}
                if new:
                    pixels = torch.stack([good[path] for path in new.values()])
                    pixels = pixels.flip(-1) if view else pixels
                    parts = crew.compute(encode, pixels, encoder.images_per_pass)
                    features = torch.cat(parts)
                    store.append(list(new), _storable(features, list(new.values())))
            bar.update(len(batch))
    return broken


def limit() -> int:
    """Return the bytes that all stores together may take: `$CAPTIONER_CACHE_LIMIT` GB, else 100.

    Raises:
        ConfigError: if what is given is no number above 0.
    """
    given = os.environ.get(LIMIT, "").strip()
    try:
        gigabytes = float(given or USUAL_LIMIT)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes <= 1e9:
        raise ConfigError(f"${LIMIT}: must be GB above 0, such as 50, given {excerpt(given, 60)}")
    return int(gigabytes * 1e9)


def size_of(folder: Path) -> int:
    """Return the bytes of a store's files."""
    return sum(
        (folder / name).stat().st_size
        for name in (ROWS, KEYS, SUMS, ABOUT)
        if (folder / name).is_file()
    )


def _check_limit(store: FeatureStore, more: int) -> None:
    """Refuse to encode what would take the stores beyond their limit, before any is encoded."""
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
            f"{plain(images[int(bad.nonzero()[0])])}: its features are not numbers that fp16 can "
            f"hold (up to {torch.finfo(torch.float16).max:,.0f}); the weights do not suit the "
            f"backbone, or set encoder.precision to fp32"
        )
    return np.asarray(rows.numpy())
