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
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from captioner.encoder.encoder import Encoder
from captioner.encoder.preprocess import one_or_list
from captioner.errors import DataError, ModelError
from captioner.system.batches import batched
from captioner.system.disk import writing
from captioner.system.files import cache_folder, write_text
from captioner.system.memory import fits
from captioner.system.ownership import begin

KEY_BYTES = 16
SUM_BYTES = 8
ROWS, KEYS, SUMS, ABOUT = "rows.f16", "rows.key", "rows.sum", "about.json"
FILL_LOCK = "fill.lock"  # held while missing images are encoded, or rows are deleted
CHUNK = 4096  # rows that are verified together
DROPPED = bytes(KEY_BYTES)  # key of a deleted row
PLAIN, MIRRORED = "plain", "mirrored"


def features_folder() -> Path:
    """Return the folder of all stores."""
    return cache_folder() / "features"


def store_folder(encoder: Encoder, root: Path, fingerprint: str | None = None) -> Path:
    """Return the folder of an encoder's store, or of one with another fingerprint."""
    name = encoder.name.replace(":", "-")  # not in file names of Windows
    return root / f"{name}-{fingerprint or encoder.fingerprint()}"


class AlteredError(DataError):
    """Stored features do not match their checksums."""


class FeatureStore:
    """Feature vectors on disk, read through a memory map."""

    def __init__(self, folder: Path, feature_size: int):
        """Open or create a store; a `DataError` if the folder holds other files."""
        begin(folder, "store", DataError)
        self.folder = folder
        self.feature_size = feature_size
        self._rows, self._keys, self._sums = (folder / name for name in (ROWS, KEYS, SUMS))
        self._row_bytes = feature_size * 2
        self._index: dict[bytes, int] = {}
        self._checksums = bytearray()
        self._count = 0  # rows, the deleted ones included
        self.refresh()

    @classmethod
    def for_encoder(cls, encoder: Encoder, root: Path | None = None) -> FeatureStore:
        """Open the store of an encoder, in `root` or else in `features_folder()`."""
        store = cls(store_folder(encoder, root or features_folder()), encoder.feature_size)
        about = {
            "encoder": one_or_list([asdict(cnn.spec) for cnn in encoder.cnns]),
            "arithmetic": encoder.arithmetic,
            "feature_size": encoder.feature_size,
        }
        write_text(store.folder / ABOUT, json.dumps(about, indent=2) + "\n", "in store")
        return store

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Lock the store, so that no other process encodes the same images."""
        with FileLock(self.folder / FILL_LOCK):
            self.refresh()
            yield

    def refresh(self) -> None:
        """Read the keys of rows that other processes have added."""
        keys = _tail(self._keys, self._count * KEY_BYTES)
        sums = _tail(self._sums, self._count * SUM_BYTES)
        rows = self._rows.stat().st_size // self._row_bytes if self._rows.exists() else 0
        new = min(len(keys) // KEY_BYTES, len(sums) // SUM_BYTES, rows - self._count)
        for i in range(new):
            self._index[keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]] = self._count + i
        self._index.pop(DROPPED, None)
        self._checksums += sums[: max(0, new) * SUM_BYTES]
        self._count += max(0, new)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def rows(self, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """Return the rows of N keys of the store, float16 (N, F); an `AlteredError` if damaged."""
        rows, sound = self._read(keys)
        if not sound.all():
            raise AlteredError(
                f"{self.folder}: {int((~sound).sum()):,} stored row(s) of features were altered or "
                f"are not finite; `captioner features --prune` drops them, so that they are "
                f"encoded again; --check verifies all stores, --clear deletes one"
            )
        return rows

    def table(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Return the features and rows of N keys of the store; an `AlteredError` if damaged.

        Returns:
            Features, fp16 (R, F), and the row of each key, int64 (N,). Features that do not fit the
            memory are a memory map of the whole store.
        """
        wanted = list(dict.fromkeys(keys))
        if fits(len(wanted) * self._row_bytes, torch.device("cpu")):
            place = {key: row for row, key in enumerate(wanted)}
            rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
            return torch.from_numpy(self.rows(wanted)), rows
        for chunk in batched(wanted, CHUNK):
            self.rows(chunk)  # verifies the rows once
        return torch.from_numpy(self._mapped()), torch.from_numpy(self._positions(keys))

    def damaged(self) -> list[bytes]:
        """Return the keys of the rows that do not match their checksums or are not finite."""
        return [
            key
            for keys in batched(self._index, CHUNK)
            for key, sound in zip(keys, self._read(keys)[1], strict=True)
            if not sound
        ]

    def cut_off(self) -> int:
        """Return the number of keys whose rows or checksums are missing."""
        written = self._keys.stat().st_size // KEY_BYTES if self._keys.exists() else 0
        return max(0, written - self._count)

    def drop_damaged(self) -> int:
        """Forget damaged rows and rows that are cut off; return the number of damaged rows.

        The caller holds the lock of `filling`. The rows keep their places, so memory maps of other
        processes stay valid.
        """
        with FileLock(self.folder / "append.lock"):
            self.refresh()
            damaged = self.damaged()
            if self._keys.exists():
                with self._keys.open("r+b") as file:
                    file.truncate(self._count * KEY_BYTES)
                    for key in damaged:
                        file.seek(self._index.pop(key) * KEY_BYTES)
                        file.write(DROPPED)
        return len(damaged)

    def _read(self, keys: Sequence[bytes]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return rows, (N, F), and whether each matches its checksum and is finite, (N,)."""
        places = self._positions(keys)
        rows = np.asarray(self._mapped()[places])
        same = [
            _checksum(key, row) == self._checksums[at * SUM_BYTES : (at + 1) * SUM_BYTES]
            for key, row, at in zip(keys, rows, places.tolist(), strict=True)
        ]
        return rows, np.array(same, np.bool_) & np.isfinite(rows).all(1)

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
        """Append the rows, float16 (N, F), of new keys; a `ModelError` if one is not finite.

        Several processes may append at the same time.
        """
        table = np.ascontiguousarray(features, np.float16)
        if not np.isfinite(table).all():
            raise ModelError(f"{self.folder}: cannot store features that are not finite")
        with FileLock(self.folder / "append.lock"):
            self.refresh()
            new = [i for i, key in enumerate(keys) if key not in self._index]
            sums = b"".join(_checksum(keys[i], table[i]) for i in new)
            _write(self._rows, self._count * self._row_bytes, table[new].tobytes())
            _write(self._sums, self._count * SUM_BYTES, sums)
            _write(self._keys, self._count * KEY_BYTES, b"".join(keys[i] for i in new))
        self.refresh()


def _checksum(key: bytes, row: NDArray[np.float16]) -> bytes:
    return hashlib.blake2b(row.tobytes(), key=key, digest_size=SUM_BYTES).digest()


def _tail(path: Path, start: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def _write(path: Path, end: int, content: bytes) -> None:
    """Write at `end`, after the last row with a key; overwrite rows that a crash left."""
    with writing(path), path.open("ab") as file:
        file.truncate(end)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def image_key(data: bytes, view: str = PLAIN) -> bytes:
    """Return the key of an image file's content and a view, `PLAIN` or `MIRRORED`."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES, person=view.encode()).digest()
