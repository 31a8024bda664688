"""Lists, verifies, prunes and deletes the feature stores of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from captioner.data.feature_store import (
    ABOUT,
    KEY_BYTES,
    KEYS,
    SUMS,
    FeatureStore,
    is_unmarked_store,
    limit,
    size_of,
)
from captioner.errors import ConfigError
from captioner.system import ownership
from captioner.system.files import read_json
from captioner.system.foreign import plain


@dataclass(frozen=True, slots=True)
class Stored:
    """One store.

    Attributes:
        folder: folder of the store.
        encoder: backbones and arithmetic of the encoder.
        feature_size: width of a row; None: a store of an older captioner, without checksums,
            whose images are encoded again when needed.
        rows: number of rows.
        size: size of its files, in bytes.
        used: time of its last use, in seconds since 1970.
    """

    folder: Path
    encoder: str
    feature_size: int | None
    rows: int
    size: int
    used: float

    def damage(self) -> str:
        """Return a description of the damage; empty if there is none."""
        if self.feature_size is None:
            return ""
        store = FeatureStore(self.folder, self.feature_size)
        bad = sum(int((~store.sound(*chunk)).sum()) for chunk in store.chunks())
        lost = (self.folder / KEYS).stat().st_size // KEY_BYTES - len(store)
        damage = [f"{bad:,} row(s) altered"] if bad else []
        damage += [f"{lost:,} row(s) cut off"] if lost > 0 else []
        return ", ".join(damage)


def stores(parent: Path) -> list[Stored]:
    """Return the stores in a folder, the least recently used first.

    Args:
        parent: `cache_folder() / "features"`; other files and folders in it are ignored.
    """
    paths = parent.iterdir() if parent.is_dir() else ()
    found = [stored for path in paths if (stored := _recognised(path))]
    return sorted(found, key=lambda stored: (stored.used, stored.folder))


def _recognised(folder: Path) -> Stored | None:
    """Return the store in a folder; None if captioner did not mark it as a store."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    if is_unmarked_store(folder):
        ownership.mark(folder, "store")
    if not ownership.owns(folder, "store"):
        return None
    encoder, width = _described(folder / ABOUT)
    keys = folder / KEYS
    rows = keys.stat().st_size // KEY_BYTES if keys.is_file() else 0
    last = folder / ABOUT if (folder / ABOUT).is_file() else folder
    checked = width if (folder / SUMS).is_file() else None
    return Stored(folder, encoder, checked, rows, size_of(folder), last.stat().st_mtime)


def _described(path: Path) -> tuple[str, int | None]:
    """Return a description of a store's encoder, and the width of its rows."""
    try:
        about = read_json(path)
        specs = about["encoder"]
        names = [spec["backbone"] for spec in (specs if isinstance(specs, list) else [specs])]
        width = about.get("feature_size")
        known = width if type(width) is int and 0 < width < 2**24 else None
        return plain(f"{'+'.join(names)}, {about['arithmetic']}", 60), known
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "of an unknown encoder", None


def clear(stored: Stored) -> bool:
    """Delete the files that captioner wrote, and the folder if it is then empty.

    Returns:
        Whether the store was deleted; False while another process fills it.
    """
    with _locked(stored.folder) as locked:
        if not locked:
            return False
        ownership.remove(stored.folder, "store")
    return True


def drop_damaged(stored: Stored) -> int | None:
    """Delete a store's damaged rows.

    Returns:
        Number of deleted rows; None while another process fills the store.
    """
    if stored.feature_size is None:
        return 0
    with _locked(stored.folder) as locked:
        if not locked:
            return None
        return FeatureStore(stored.folder, stored.feature_size).drop_damaged()


def over_limit(found: list[Stored]) -> list[Stored]:
    """Return the stores to delete so that the others keep the limit, least recently used first.

    Args:
        found: all stores, least recently used first.
    """
    taken = sum(stored.size for stored in found)
    excess: list[Stored] = []
    for stored in found:
        if taken <= limit():
            break
        excess.append(stored)
        taken -= stored.size
    return excess


def named(found: list[Stored], name: str) -> list[Stored]:
    """Return the stores with a folder name, or of a backbone.

    Raises:
        ConfigError: if there is none.
    """
    chosen = [s for s in found if name in (s.folder.name, s.folder.name.rpartition("-")[0])]
    if not chosen:
        names = ", ".join(plain(stored.folder.name) for stored in found) or "none"
        raise ConfigError(f"--clear: no store {plain(name)}; stores: {names}")
    return chosen


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a store against filling, and yield whether the lock was free."""
    lock = FileLock(folder / "fill.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
