"""What the frozen CNN said about each image, computed once and stored.

A store is a folder with two growing files: `rows.f16`, one fp16 feature vector after another,
and `rows.key`, the 16-byte key of each. The key is a digest of the image file's content and of
the view taken of it (as it is, or mirrored). The folder's name is the encoder's fingerprint:
another backbone, other weights, another transform or other arithmetic is another store. Rows
are appended before their keys, so after a crash the unkeyed tail is simply written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from captioner.errors import DataError, ImageError, ModelError
from captioner.files import read_json, write_text
from captioner.images import read_file, read_image
from captioner.models.encoder import Encoder
from captioner.models.preprocess import one_or_list
from captioner.ownership import begin, mark, owns
from captioner.workers import cores, on_cores, workers

KEY_BYTES = 16
PLAIN, MIRRORED = "plain", "mirrored"
T = TypeVar("T")


def cache_folder() -> Path:
    """Return where stores live: `$CAPTIONER_CACHE`, else `~/.cache/captioner`."""
    root = os.environ.get("CAPTIONER_CACHE")
    if root:
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "captioner"


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
        if _is_unmarked_store(folder):
            mark(folder, "store")
        begin(folder, "store", DataError)
        self._rows = folder / "rows.f16"
        self._keys = folder / "rows.key"
        self._index: dict[bytes, int] = {}
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
        }
        write_text(store.folder / "about.json", json.dumps(about, indent=2) + "\n", "in store")
        return store

    def refresh(self) -> None:
        """Learn of the rows that other processes have added."""
        if not (self._keys.exists() and self._rows.exists()):
            return
        with self._keys.open("rb") as index:
            index.seek(self._count * KEY_BYTES)
            keys = index.read()
        written = self._rows.stat().st_size // self._row_bytes
        for i in range(min(len(keys) // KEY_BYTES, written - self._count)):
            self._index[keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]] = self._count
            self._count += 1

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
        """
        table, positions = self._mapped(), self._positions(keys)
        return np.asarray(table[positions])

    def table(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Return stored features in memory where they fit, else where they lie on disk.

        Args:
            keys: N row keys, each in the store.

        Returns:
            fp16 (R, F), and the row of each key in it, int64 (N,). In memory the rows are those
            asked for; on disk they are the whole store, read through a memory map.
        """
        wanted = list(dict.fromkeys(keys))
        if fits(len(wanted) * self._row_bytes, torch.device("cpu")):
            place = {key: row for row, key in enumerate(wanted)}
            rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
            return torch.from_numpy(self.rows(wanted)), rows
        return torch.from_numpy(self._mapped()), torch.from_numpy(self._positions(keys))

    def _mapped(self) -> NDArray[np.float16]:
        if not self._count:  # an empty file cannot be mapped
            return np.empty((0, self.feature_size), np.float16)
        # Copy on write: torch wants memory that could be written to.
        return np.memmap(self._rows, np.float16, mode="c", shape=(self._count, self.feature_size))

    def _positions(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([self._index[key] for key in keys], np.int64)

    def append(self, keys: Sequence[bytes], features: NDArray[np.float16]) -> None:
        """Add rows; each is on disk before its key is. Several processes may do so at once.

        Args:
            keys: N row keys; those that another process has added meanwhile are left out.
            features: float16 (N, F).
        """
        lock = FileLock(self.folder / "append.lock")
        with lock, self._rows.open("ab") as rows, self._keys.open("ab") as index:
            self.refresh()
            new = [i for i, key in enumerate(keys) if key not in self._index]
            # What a crash left behind the last keyed row is cut off first.
            rows.truncate(self._count * self._row_bytes)
            index.truncate(self._count * KEY_BYTES)
            rows.write(np.ascontiguousarray(features[new], np.float16).tobytes())
            rows.flush()
            os.fsync(rows.fileno())
            index.write(b"".join(keys[i] for i in new))
            index.flush()
            os.fsync(index.fileno())
        self.refresh()


def free_memory(device: torch.device) -> int:
    """Return the bytes that a device could still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _is_unmarked_store(folder: Path) -> bool:
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
        DataError: if not one image can be read.
        ModelError: if a feature is not a number that fp16 can hold.
    """
    views = (PLAIN, MIRRORED) if mirrored else (PLAIN,)
    keys: dict[Path, tuple[bytes, ...]] = {}
    broken: dict[Path, ImageError] = {}

    def keys_of(path: Path) -> tuple[bytes, ...] | ImageError:
        try:
            data = read_file(path)
        except ImageError as error:
            return error
        return tuple(image_key(data, view) for view in views)

    alone = store.filling() if share[1] == 1 else nullcontext()
    encoder.prepare(cores())
    with alone, workers(None, encoder.device) as pool:
        for path, found in zip(images, _ahead(pool, keys_of, images, 256), strict=True):
            if isinstance(found, ImageError):
                broken[path] = found
            else:
                keys[path] = found
        todo = [p for p in keys if any(key not in store for key in keys[p])]
        size = len(todo) * len(views) * store.feature_size * 2
        known = len(keys) - len(todo)
        if todo:
            say(
                f"features: {len(todo):,} images to encode ({size / 1e6:,.1f} MB in "
                f"{store.folder}), {known:,} stored already"
            )
            mine = todo[share[0] :: share[1]]
            broken |= _encode(store, encoder, mine, keys, pool, batch_size)
    if not keys.keys() - broken.keys():
        first = next(iter(broken.items()), None)
        raise DataError(
            "no image could be read" + (f"; first: {first[0]}: {first[1]}" if first else "")
        )
    return {path: key for path, key in keys.items() if path not in broken}, broken


def _encode(
    store: FeatureStore,
    encoder: Encoder,
    todo: Sequence[Path],
    keys: dict[Path, tuple[bytes, ...]],
    pool: ThreadPoolExecutor,
    batch_size: int,
) -> dict[Path, ImageError]:
    broken: dict[Path, ImageError] = {}

    def pixels_of(path: Path) -> Tensor | ImageError:
        try:
            return encoder.preprocess.pixels(read_image(path))
        except ImageError as error:
            return error

    decoded = zip(todo, _ahead(pool, pixels_of, todo, 2 * batch_size), strict=True)
    with tqdm(total=len(todo), desc="encoding", unit="image", smoothing=0.05, disable=None) as bar:
        while batch := list(islice(decoded, batch_size)):
            broken |= {path: found for path, found in batch if isinstance(found, ImageError)}
            good = {path: found for path, found in batch if isinstance(found, Tensor)}
            for view in range(len(keys[batch[0][0]])):
                # Two files with the same content are one row.
                new = {keys[path][view]: path for path in good if keys[path][view] not in store}
                if new:
                    pixels = torch.stack([good[path] for path in new.values()])
                    pixels = pixels.flip(-1) if view else pixels
                    if encoder.device.type == "cpu":
                        parts = on_cores(pool, encoder, pixels, encoder.images_per_pass)
                        features = torch.cat(parts)
                    else:
                        features = encoder(pixels)
                    store.append(list(new), _storable(features, list(new.values())))
            bar.update(len(batch))
    return broken


def _storable(features: Tensor, images: Sequence[Path]) -> NDArray[np.float16]:
    rows = features.half().cpu()
    bad = ~rows.isfinite().all(1)
    if bad.any():
        raise ModelError(
            f"{images[int(bad.nonzero()[0])]}: its features are not numbers that fp16 can hold "
            f"(up to {torch.finfo(torch.float16).max:,.0f}); the weights do not suit the backbone, "
            f"or set encoder.precision to fp32"
        )
    return np.asarray(rows.numpy())


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Path], T], items: Iterable[Path], depth: int
) -> Iterator[T]:
    """Map in order on a pool with at most `depth` results waiting, so memory stays bounded."""
    source = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(source, depth))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(source, 1))
