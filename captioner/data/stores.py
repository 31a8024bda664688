"""All feature stores of this machine: what they hold, what is damaged, what may go."""

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
        folder: its place.
        encoder: whose features it holds, and how that computes.
        feature_size: numbers of a row; None of a store that an older captioner wrote, which kept
            no checksums: its rows are not read, and encoded again when they are needed.
        rows: features in it.
        size: of its files, in bytes.
        used: when it was last opened to be read or filled, in seconds of the epoch.
    """

    folder: Path
    encoder: str
    feature_size: int | None
    rows: int
    size: int
    used: float

    def damage(self) -> str:
        """Say what is damaged; nothing where all rows are what was written."""
        if self.feature_size is None:
            return ""
        store = FeatureStore(self.folder, self.feature_size)
        bad = sum(int((~store.sound(*chunk)).sum()) for chunk in store.chunks())
        lost = (self.folder / KEYS).stat().st_size // KEY_BYTES - len(store)
        said = [f"{bad:,} row(s) altered"] if bad else []
        said += [f"{lost:,} row(s) cut off"] if lost > 0 else []
        return ", ".join(said)


def stores(parent: Path) -> list[Stored]:
    """Return the stores in a folder, the least recently used first.

    Args:
        parent: `cache_folder() / "features"`. What lies in it and is no store of captioner's is
            passed over.
    """
    paths = parent.iterdir() if parent.is_dir() else ()
    found = [stored for path in paths if (stored := _recognised(path))]
    return sorted(found, key=lambda stored: (stored.used, stored.folder))


def _recognised(folder: Path) -> Stored | None:
    """Return the store in a folder that captioner marked as one."""
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
    """Return what a store says of its encoder, and the width of its rows."""
    try:
        about = read_json(path)
        parts = about["encoder"]
        names = [part["backbone"] for part in (parts if isinstance(parts, list) else [parts])]
        width = about.get("feature_size")
        known = width if type(width) is int and 0 < width < 2**24 else None
        return plain(f"{'+'.join(names)}, {about['arithmetic']}", 60), known
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "of an unknown encoder", None


def clear(stored: Stored) -> bool:
    """Delete a store: the files that captioner wrote, and the folder if nothing else is in it.

    Returns:
        Whether it is gone; False while another process fills it.
    """
    with _alone(stored.folder) as alone:
        if not alone:
            return False
        ownership.remove(stored.folder, "store")
    return True


def drop_damaged(stored: Stored) -> int | None:
    """Drop a store's damaged rows.

    Returns:
        How many; None while another process fills it.
    """
    if stored.feature_size is None:
        return 0
    with _alone(stored.folder) as alone:
        if not alone:
            return None
        return FeatureStore(stored.folder, stored.feature_size).drop_damaged()


def over_limit(found: list[Stored]) -> list[Stored]:
    """Return the stores that must go for the others to keep the limit, least recently used first.

    Args:
        found: all stores, least recently used first.
    """
    taken = sum(stored.size for stored in found)
    going: list[Stored] = []
    for stored in found:
        if taken <= limit():
            break
        going.append(stored)
        taken -= stored.size
    return going


def named(found: list[Stored], name: str) -> list[Stored]:
    """Return the stores of a name: the folder's, or that of a backbone, whole.

    Raises:
        ConfigError: if there is none.
    """
    chosen = [s for s in found if name in (s.folder.name, s.folder.name.rpartition("-")[0])]
    if not chosen:
        there = ", ".join(plain(stored.folder.name) for stored in found) or "none"
        raise ConfigError(f"--clear: there is no store {plain(name)}; there are: {there}")
    return chosen


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold the lock of those who fill a store, and say whether it could be had."""
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
