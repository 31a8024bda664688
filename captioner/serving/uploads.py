"""The parts of a multipart body, each in memory, within limits."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from captioner.serving.refusal import RefusedError

# It warns with bytes of the body.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)

MOST_HEADER = 4096  # bytes of the headers of a part


@dataclass(slots=True)
class Part:
    """One part: the name of its field, its file name, and its content."""

    name: str = ""
    file_name: str = ""
    content: bytearray = field(default_factory=bytearray)


class _Parts:
    """Collects the parts that the parser finds."""

    def __init__(self, most: int):
        """Take at most so many parts."""
        self.most, self.count, self.ended = most, 0, False
        self.finished: list[Part] = []
        self._part = Part()
        self._name, self._value, self._bytes = bytearray(), bytearray(), 0

    def on_part_begin(self) -> None:
        """Count the part."""
        self.count += 1
        if self.count > self.most:
            raise RefusedError(
                413, f"body: more than {self.most:,} parts; send fewer pictures at once"
            )
        self._part, self._bytes = Part(), 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """Add to the name of a header."""
        self._add(self._name, data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """Add to the value of a header."""
        self._add(self._value, data[start:end])

    def _add(self, text: bytearray, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > MOST_HEADER:
            raise RefusedError(400, f"body: a part with headers of more than {MOST_HEADER:,} bytes")
        text += piece

    def on_header_end(self) -> None:
        """Keep the names of the field and the file."""
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            self._part.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._name.clear()
        self._value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Add to the content."""
        self._part.content += memoryview(data)[start:end]

    def on_part_end(self) -> None:
        """Hand the part over."""
        self.finished.append(self._part)

    def on_end(self) -> None:
        """Note that the last boundary was there."""
        self.ended = True


async def parts_of(
    content_type: str, chunks: AsyncIterator[bytes], most: int
) -> AsyncIterator[Part]:
    """Yield the parts of a body as soon as each is complete.

    Args:
        content_type: the header, with the boundary.
        chunks: the body.
        most: parts.

    Raises:
        RefusedError: if the body is no multipart form, or has more parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RefusedError(400, "body: multipart/form-data without a boundary")
    parts = _Parts(most)
    names = [name for name in vars(_Parts) if name.startswith("on_")]
    try:
        parser = MultipartParser(boundary, {name: getattr(parts, name) for name in names})  # type: ignore[arg-type]
        async for chunk in chunks:
            parser.write(chunk)
            while parts.finished:
                yield parts.finished.pop(0)
    except FormParserError as error:
        raise RefusedError(400, "body: damaged multipart/form-data") from error
    if not parts.ended:
        raise RefusedError(400, "body: multipart/form-data that ends too early")
