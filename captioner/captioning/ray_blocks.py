"""Items <-> rows of a table that Ray sends to other machines.

For files and members of uncompressed tar files, a row holds the path and the byte range. For
members of other archives, it holds the bytes.
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
    """Put rows into a table; names are bytes, because some are not UTF-8.

    Args:
        rows: from `to_row`.
        first: position of the first row in the job's list of images.
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
    """Return the row of an item for `to_table`, without empty cells."""
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


def items_of(block: pa.Table, memory: Memory) -> Iterator[Item]:
    """Yield the items of a table of `to_table`.

    Args:
        block: table with any number of rows.
        memory: claimed before an image's bytes are copied out of the table.
    """
    for row in block.to_batches(max_chunksize=1):
        content = row.column("bytes")[0]
        size = content.as_buffer().size if content.is_valid else 0
        if size:
            memory.claim(size)
        item = to_item(row.to_pylist()[0])
        if size and isinstance(item.source, bytes):
            item = Item(item.name, Held(item.source, memory, size))
        yield item


def to_item(row: dict[str, Any]) -> Item:
    """Return the item of a row of `to_table`."""
    name = to_text(row["file_name"])
    if row["bytes"] is not None:
        return Item(name, row["bytes"])
    # The driver looks only on its own machine, so it reports a URI as a missing file.
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
    """Decode a name or a message of a table."""
    return content.decode("utf-8", "surrogatepass")


class _Remote:
    """A file at a URI, read when it is captioned."""

    size = 2**24  # an estimate: the size is unknown before the file is opened

    def __init__(self, uri: str):
        self.uri = uri

    def read_bytes(self) -> bytes:
        if urlsplit(self.uri).scheme == "file":  # may be a pipe on this machine
            return read_file(Path(unquote(urlsplit(self.uri).path)))
        folder, _, name = urlsplit(self.uri).path.rpartition("/")
        try:
            files, base = _file_system(urlsplit(self.uri)._replace(path=folder or "/").geturl())
            with files.open_input_file(f"{base.rstrip('/')}/{unquote(name)}") as file:
                check_bytes(file.size())
                return bytes(file.read())
        except ImageError:
            raise
        # OSError, ArrowInvalid for an unknown scheme, ImportError, ...
        except Exception as error:
            message = f"cannot be read: {last_line(error)}"
            raise ImageError(message, kind="unreadable") from error


@lru_cache(maxsize=64)
def _file_system(folder: str) -> tuple[Any, str]:
    """Connect to the file system of a folder; cached, because connecting is slow."""
    from pyarrow.fs import FileSystem

    return cast("tuple[Any, str]", FileSystem.from_uri(folder))


def last_line(error: BaseException) -> str:
    """Return the last line of an error message; Ray's messages begin with tracebacks."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
