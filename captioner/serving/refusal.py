"""Why a request gets no caption: an HTTP status and one line."""

from __future__ import annotations

from captioner.errors import (
    CaptionerError,
    ConfigError,
    ImageError,
    ImageErrorKind,
    PlugInError,
    ShortageError,
)

BUSY = 1  # seconds after which a client may try again

STATUS: dict[ImageErrorKind, int] = {
    "too_large": 413,
    "not_an_image": 415,
    "empty": 400,
    "unreadable": 400,
    "missing": 400,
}  # 422 for the others: an image that cannot be captioned


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        message: one line: what, where, what to do.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class GoneError(Exception):
    """The client has hung up."""


def busy(message: str) -> RefusedError:
    """Return the refusal of a server that is full for now."""
    return RefusedError(503, message, {"Retry-After": str(BUSY)})


def refusal_of(error: Exception) -> RefusedError | None:
    """Return the refusal for an expected error; None for any other."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ImageError):
        return RefusedError(STATUS.get(error.kind, 422), f"image: {error}")
    if isinstance(error, ConfigError):
        return RefusedError(400, str(error).replace("decoding.", ""))
    if isinstance(error, ShortageError):
        return busy(str(error))
    if isinstance(error, PlugInError):
        return None  # a fault of the server
    # Such as a CNN without places, for which there are no maps.
    return RefusedError(422, str(error)) if isinstance(error, CaptionerError) else None
