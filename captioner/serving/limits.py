"""How much one request may take, and reading its body within that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from captioner.images.decode import MAX_PIXELS
from captioner.serving.refusal import GoneError, RefusedError, busy

MIB = 2**20
HELD = 16  # times `max_bytes`: what all bodies that wait for an answer take at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the server.

    Attributes:
        max_bytes: of a request's body.
        max_pixels: of a picture.
        max_images: pictures of a request to `/v1/captions`.
        max_seconds: for the upload, and again for the caption.
        max_uploads: requests that are read at the same time.
        max_batch: pictures that are captioned together.
        max_wait_ms: milliseconds that a picture waits for others.
        max_queue: pictures that wait or are captioned.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = MAX_PIXELS
    max_images: int = 1000
    max_seconds: float = 60
    max_uploads: int = 64
    max_batch: int = 32
    max_wait_ms: float = 5
    max_queue: int = 256


class Uploads:
    """Counts the requests that are read, and the bytes that wait for an answer."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.reading = 0
        self.held = 0  # bytes

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Take a place for the time of an upload, at most `max_seconds`.

        Raises:
            RefusedError: if all places are taken, or the upload takes too long.
            GoneError: if the client hangs up.
        """
        if self.reading >= self.limits.max_uploads:
            raise busy(f"busy: {self.reading:,} uploads at the same time; try again")
        self.reading += 1
        seconds = self.limits.max_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            message = f"the upload took more than {seconds:g} s; send a smaller picture"
            raise RefusedError(408, message) from None
        except ClientDisconnect:
            raise GoneError from None
        finally:
            self.reading -= 1

    async def chunks(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body.

        Raises:
            RefusedError: if it has more than `max_bytes`.
        """
        most, total = self.limits.max_bytes, 0
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        async for chunk in request.stream():
            total += len(chunk)
            if total > most:
                raise _too_large(most)
            yield chunk

    def check(self, size: int) -> None:
        """Refuse a body of so many bytes if too many wait for an answer.

        Raises:
            RefusedError: if so.
        """
        if self.held + size > HELD * self.limits.max_bytes:
            raise busy("busy: too many bytes wait for captions; try again")

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count the bytes of a body that waits for its answer."""
        self.held += size
        try:
            yield
        finally:
            self.held -= size


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"body: more than the limit of {most:,} bytes; send a smaller picture")
