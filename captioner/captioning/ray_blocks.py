"""Images as rows of a table that travels to other machines, and back again as images.

Files, and members of uncompressed tar files, stay where they are and their places travel;
members of other archives travel themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from captioner.captioning.sources import Item, Packed, Slice
from captioner.errors import ImageError
from captioner.images.decode import check_bytes, read_file
from captioner.system.memory import Held, Memory

if TYPE_CHECKING:
    import pyarrow as pa

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def to_table(rows: list[dict[str, Any]], first: int) -> pa.Table:
    """Put rows into a table; names are bytes, for not all are UTF-8.

    Args:
        rows: of `to_row`.
        first: position of the first in the listing of the job.
    """
    import pyarrow as pa

    kinds = {
        "position": pa.int64(),
        "file_name": pa.binary(),
        "path": pa.binary(),
        "start": pa.int64(),
        "size": pa.int64(),
        "bytes": pa.large_binary(),
        "error": pa.binary(),
        "kind": pa.string(),
    }
    for place, row in enumerate(rows, first):
        row["position"] = place
    return pa.Table.from_pylist(rows, pa.schema(kinds.items()))


def to_row(item: Item) -> dict[str, Any]:
    """Put an item into a row of `to_table`; what it has not is left out."""
    row: dict[str, Any] = {"file_name": _bytes(item.name)}
    source = item.source
    if isinstance(source, Packed):
        try:
            source = source.read_bytes()
        except ImageError as error:
            source = error
    if isinstance(source, Slice):
        row |= {"start": source.start, "size": source.size}
        source = source.path
    if isinstance(source, Path):
        row["path"] = _bytes(str(source.absolute()))
    elif isinstance(source, bytes):
        row["bytes"] = source
    elif isinstance(source, ImageError):
        row |= {"error": _bytes(str(source)), "kind": source.kind}
    return row


def items_of(share: pa.Table, memory: Memory) -> Iterator[Item]:
    """Take the items out of a table of `to_table`, each in its turn.

    Args:
        share: of any number of rows.
        memory: is asked for room before bytes are taken out.
    """
    for part in share.to_batches(max_chunksize=1):
        content = part.column("bytes")[0]
        size = content.as_buffer().size if content.is_valid else 0
        if size:
            memory.claim(size)
        item = to_item(part.to_pylist()[0])
        if size and isinstance(item.source, bytes):
            item = Item(item.name, Held(item.source, memory, size))
        yield item


def to_item(row: dict[str, Any]) -> Item:
    """Take an item out of a row of `to_table`."""
    name = to_text(row["file_name"])
    if row["bytes"] is not None:
        return Item(name, row["bytes"])
    # The listing looks on this machine only, and has found no such file.
    if _URI.match(name) and row["kind"] == "missing":
        return Item(name, _Remote(name))
    if row["path"] is not None:
        path = Path(to_text(row["path"]))
        whole = row["start"] is None
        return Item(name, path if whole else Slice(path, row["start"], row["size"]))
    return Item(name, ImageError(to_text(row["error"]), kind=row["kind"]))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def to_text(content: bytes) -> str:
    """Read a name or a message of a table."""
    return content.decode("utf-8", "surrogatepass")


class _Remote:
    """Bytes behind a URI, read by the threads that read files."""

    size = 2**24  # most pictures are smaller; nobody says before it is opened

    def __init__(self, uri: str):
        self.uri = uri

    def read_bytes(self) -> bytes:
        if urlsplit(self.uri).scheme == "file":  # which may be a pipe, on that machine
            return read_file(Path(unquote(urlsplit(self.uri).path)))
        folder, _, name = urlsplit(self.uri).path.rpartition("/")
        try:
            files, base = _file_system(urlsplit(self.uri)._replace(path=folder or "/").geturl())
            with files.open_input_file(f"{base.rstrip('/')}/{unquote(name)}") as file:
                check_bytes(file.size())
                return bytes(file.read())
        except ImageError:
            raise
        # OSError, ArrowInvalid for a scheme that nobody reads, ImportError, ...
        except Exception as error:
            message = f"cannot be read: {last_line(error)}"
            raise ImageError(message, kind="unreadable") from error


@lru_cache(maxsize=64)
def _file_system(folder: str) -> tuple[Any, str]:
    """Connect to what holds a folder, once: object stores take their time."""
    from pyarrow.fs import FileSystem

    return cast("tuple[Any, str]", FileSystem.from_uri(folder))


def last_line(error: BaseException) -> str:
    """Return what an error says at its end; Ray's begin with traces."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
