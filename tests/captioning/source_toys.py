"""Small archives, honest and hostile, and a short form of what a listing holds."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner.captioning.sources import Item, Packed, list_images
from captioner.errors import ImageError
from captioner.images.content import Slice

Member = tuple[str, bytes] | tarfile.TarInfo


def listed(*sources: str, **options: Any) -> list[str]:
    """Names of items; failures as `name! reason`."""
    found = [(item.name, content(item)) for item in list_images(sources, **options)]
    return [f"{name}! {held}" if isinstance(held, ImageError) else name for name, held in found]


def content(item: Item) -> object:
    """What an item holds, read if it is a part of an archive."""
    if not isinstance(item.source, Slice | Packed):
        return item.source
    try:
        return item.source.read_bytes()
    except ImageError as error:
        return error


def contents(*sources: str) -> dict[str, object]:
    return {item.name: content(item) for item in list_images(sources)}


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail if Python holds so many bytes more at any moment of the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def tar_bytes(members: Iterable[Member], mode: str = "w", **options: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                archive.addfile(entry(member[0], len(member[1])), io.BytesIO(member[1]))
    return file.getvalue()


def write(path: str, data: bytes | str | Sequence[Member]) -> str:
    """Write a file; a list of members becomes a tar archive."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    Path(path).write_bytes(data if isinstance(data, bytes) else tar_bytes(data))
    return path
