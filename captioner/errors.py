"""Every error a user can cause, as one tree.

    CaptionerError
    |-- ConfigError       a config file, an override or a combination of settings
    |-- DataError         annotations, splits, captions
    |-- ImageError        one picture that cannot be read
    |-- ModelError        weights, backbones, model directories
    |-- DivergedError     a training run whose loss, gradients or weights are no numbers any more
    |-- ShortageError     more memory is asked for than there is
    `-- CheckpointError   saving or resuming a training run

A message is one clear line (a list of mistakes has one line each) that says what is wrong,
where, and what to do about it. The command line prints it and exits with code 1; a
`ConfigError` is a usage mistake and exits with code 2. Every message is printable and bounded: what
is foreign in it is cut where it is put in (`system.foreign`), and the whole once more here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from captioner.system.foreign import bounded

ImageErrorKind: TypeAlias = Literal[
    "missing",  # no such file, nothing matches
    "unreadable",  # there, but cannot be read: permissions, a folder, a pipe, a loop of links
    "empty",  # no bytes
    "not_an_image",  # of no kind that is read here
    "damaged",  # cannot be decoded whole
    "too_large",  # more pixels, or bytes, than allowed
    "no_pixels",  # of width or height 0
    "not_a_number",  # sound, but what the model computes for it overflows
    "place_taken",  # its caption has nowhere to go that is not another's
]
IMAGE_ERROR_KINDS: tuple[str, ...] = get_args(ImageErrorKind)


class CaptionerError(Exception):
    """Base of every error raised on purpose by this package.

    Args:
        message: one line; line ends in it, of a file's name perhaps, are shown as escapes.
        *lines: further lines, of a list of mistakes.
    """

    def __init__(self, message: str, *lines: str):
        super().__init__(*bounded([message, *lines]))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(CaptionerError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class DataError(CaptionerError):
    """A data set cannot be read, or holds what strict mode refuses."""


class ImageError(CaptionerError):
    """One image cannot be turned into RGB pixels.

    Attributes:
        kind: what is wrong, as one of a few words that a program can tell apart.
    """

    def __init__(self, message: str, *, kind: ImageErrorKind = "damaged"):
        super().__init__(message)
        self.kind: ImageErrorKind = kind


class ModelError(CaptionerError):
    """Weights, a backbone or a model directory cannot be used."""


class DivergedError(CaptionerError):
    """Training left what numbers can hold: loss, gradient norm or weights are not finite."""


class ShortageError(CaptionerError):
    """More memory is asked for than there is."""


class CheckpointError(CaptionerError):
    """A training run cannot be saved or resumed."""


# What torch says on its devices, in RuntimeErrors.
_SHORT = ("out of memory", "allocate memory", "not enough memory", "Storage size calculation")


def is_shortage(error: BaseException) -> bool:
    """Say whether an error of Python, numpy or torch means that memory is short."""
    text = str(error)
    said = isinstance(error, RuntimeError) and any(words in text for words in _SHORT)
    return said or isinstance(error, MemoryError)


@contextmanager
def within_memory(doing: str) -> Iterator[None]:
    """Turn what fails for want of memory into one error.

    Args:
        doing: what needs the memory, such as "to train".

    Raises:
        ShortageError: where memory is short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ShortageError(
            f"not enough memory {doing}{reason and f' ({reason})'}; choose smaller batches, a "
            f"narrower beam or a smaller model, or free some memory"
        ) from error
