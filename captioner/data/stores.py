"""Lists, verifies, bounds and deletes the feature stores of this machine."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from captioner.data.feature_store import (
    ABOUT,
    FILL_LOCK,
    KEY_BYTES,
    KEYS,
    FeatureStore,
    features_folder,
)
from captioner.errors import ConfigError, DataError
from captioner.system import ownership
from captioner.system.files import read_json
from captioner.system.foreign import excerpt, plain

LIMIT = "CAPTIONER_CACHE_LIMIT"  # environment variable: maximum GB of all stores
DEFAULT_LIMIT = 100.0


@dataclass(frozen=True, slots=True)
class Stored:
    """One store."""

    folder: Path
    encoder: str  # backbones and arithmetic
    feature_size: int  # width of a row; 0: unknown, as the description is damaged
    size: int  # bytes of its files
    used: float  # time of its last use, in seconds since 1970

    def __str__(self) -> str:
        keys = self.folder / KEYS
        rows = keys.stat().st_size // KEY_BYTES if keys.is_file() else 0
        return f"{self.folder.name}  {self.encoder}  {rows:,} rows  {self.size / 1e6:,.1f} MB"

    def damage(self) -> str:
        """Return a description of the damage; empty if there is none."""
        if not self.feature_size:
            return f"{ABOUT} damaged"
        store = FeatureStore(self.folder, self.feature_size)
        damage = [f"{bad:,} row(s) altered"] if (bad := len(store.damaged())) else []
        damage += [f"{lost:,} row(s) cut off"] if (lost := store.cut_off()) else []
        return ", ".join(damage)

    def drop_damaged(self) -> int | None:
        """Delete the damaged rows; return their number, or None while a process fills the store."""
        if not self.feature_size:
            return 0
        try:
            with FileLock(self.folder / FILL_LOCK, timeout=0):
                return FeatureStore(self.folder, self.feature_size).drop_damaged()
        except Timeout:
            return None

    def clear(self) -> bool:
        """Delete captioner's files in it; return False while another process fills it."""
        try:
            with FileLock(self.folder / FILL_LOCK, timeout=0):
                ownership.remove(self.folder, "store")
        except Timeout:
            return False
        return True


def stores(parent: Path | None = None) -> list[Stored]:
    """Return the stores in a folder, or in `features_folder()`, the least recently used first."""
    parent = parent or features_folder()
    paths = parent.iterdir() if parent.is_dir() else ()
    found = [_stored(p) for p in paths if not p.is_symlink() and ownership.owns(p, "store")]
    return sorted(found, key=lambda stored: (stored.used, stored.folder))


def _stored(folder: Path) -> Stored:
    size = sum(file.stat().st_size for file in folder.glob("rows.*"))
    try:
        about = read_json(folder / ABOUT)
        specs = about["encoder"]
        names = [spec["backbone"] for spec in (specs if isinstance(specs, list) else [specs])]
        width = about["feature_size"]
        known = width if type(width) is int and 0 < width < 2**24 else 0
        encoder = plain(f"{'+'.join(names)}, {about['arithmetic']}", 60)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        encoder, known = "of an unknown encoder", 0
    last = folder / ABOUT if (folder / ABOUT).is_file() else folder
    return Stored(folder, encoder, known, size, last.stat().st_mtime)


def over_limit(found: list[Stored]) -> list[Stored]:
    """Return the first stores to delete, of all stores, so that the others keep the limit."""
    left = [sum(stored.size for stored in found[i:]) for i in range(len(found))]
    return [stored for stored, size in zip(found, left, strict=True) if size > limit()]


def named(found: list[Stored], name: str) -> list[Stored]:
    """Return the stores with a folder name or of a backbone; a `ConfigError` if there is none."""
    of_folder = name.replace(":", "-")
    chosen = [s for s in found if of_folder in (s.folder.name, s.folder.name.rpartition("-")[0])]
    if not chosen:
        names = ", ".join(plain(stored.folder.name) for stored in found) or "none"
        raise ConfigError(f"--clear: no store {plain(name)}; stores: {names}")
    return chosen


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


def check_limit(parent: Path, more: int) -> None:
    """Raise a `DataError` if the stores in a folder would exceed their limit with `more` bytes."""
    total = sum(stored.size for stored in stores(parent)) + more
    if total > limit():
        raise DataError(
            f"{parent}: with {more / 1e9:,.2f} GB more the feature stores would take "
            f"{total / 1e9:,.2f} GB, over their limit of {limit() / 1e9:g} GB; `captioner "
            f"features --check` lists them, --clear NAME deletes one, ${LIMIT} raises the limit"
        )
