"""Every error that a user can cause.

A message is one line (a list of mistakes has one line each) that says what is wrong, where, and
what to do. The command line prints it and exits with code 2 for a `ConfigError`, else 1.
`system.foreign` shortens foreign text in a message. This module bounds the whole message and makes
it printable.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from captioner.system.foreign import bounded, excerpt, plain

T = TypeVar("T")

ImageErrorKind: TypeAlias = Literal[
    "missing",  # no such file, or no match of a pattern
    "unreadable",  # exists but cannot be read: permissions, a folder, a pipe, a loop of links
    "empty",  # no bytes
    "not_an_image",  # not a supported image format
    "damaged",  # cannot be decoded completely
    "too_large",  # more pixels or bytes than the limit
    "no_pixels",  # width or height is 0
    "not_a_number",  # the model's numbers overflow on this image
    "place_taken",  # its caption would replace another caption or file
    "worker_died",  # the worker of a cluster that captioned it died, each time
]
IMAGE_ERROR_KINDS: tuple[str, ...] = get_args(ImageErrorKind)


class CaptionerError(Exception):
    """Base class of every error that captioner raises on purpose.

    Args:
        message: one line; line ends, as in a file name, become escapes.
        *lines: further lines, for a list of mistakes.
    """

    def __init__(self, message: str, *lines: str):
        super().__init__(*bounded([message, *lines]))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(CaptionerError):
    """A setting is unknown, has the wrong type, or conflicts with another."""


def must_be(name: str, value: object, *kinds: type) -> None:
    """Check the type of an argument of the API.

    Raises:
        ConfigError: if the value is of no such type, or is a bool where a number is due.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{name}: must be {names}, given {excerpt(value, 60)}")


# Names of settings in other tools, and captioner's.
SYNONYMS = {
    "num_beams": "beam_size",
    "max_new_tokens": "max_length",
    "do_sample": "search",
    "num_return_sequences": "n_best",
    "extension": "format",
    "lr": "learning_rate",
}


# Options that delete or replace files: no typing error may lead to them.
DESTRUCTIVE = {"overwrite", "existing", "clear", "prune", "salvage"}


def harmless(names: Iterable[str]) -> list[str]:
    """Return the names of options or arguments without those that delete or replace."""
    return [name for name in names if name.lstrip("-") not in DESTRUCTIVE]


def suggest(name: str, known: Collection[str]) -> str:
    """Return the name that somebody meant, or all known names, in brackets."""
    synonym = SYNONYMS.get(name)
    close = [synonym] if synonym in known else difflib.get_close_matches(name, harmless(known), n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def check_names(where: str, given: Collection[str], known: Collection[str]) -> None:
    """Check the names of the arguments of a call; `where` comes before a name in a message.

    Raises:
        ConfigError: if one is unknown, with a suggestion.
    """
    for name in given:
        if name not in known:
            raise ConfigError(f"{where}{plain(name)}: no such setting{suggest(name, known)}")


def checked_names(public: T) -> T:
    """Check the names of the arguments of a public function, or of the public methods of a class.

    An unknown name is then a `ConfigError` with a suggestion instead of Python's TypeError.
    """
    if isinstance(public, type):
        for name, member in list(vars(public).items()):
            if name != "__init__" and name.startswith("_"):
                continue
            if isinstance(member, classmethod):
                setattr(public, name, classmethod(_checked(member.__func__)))
            elif isinstance(member, FunctionType):
                setattr(public, name, _checked(member, public.__name__))
        return public
    return cast(T, _checked(cast(Any, public)))


def _checked(call: Callable[..., Any], owner: str = "") -> Callable[..., Any]:
    parameters = inspect.signature(call).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return call  # it checks the names itself
    known = [name for name in parameters if name != "self"]
    where = owner if call.__name__ == "__init__" else call.__name__

    @wraps(call)
    def checked(*args: Any, **named: Any) -> Any:
        check_names(f"{where}: ", named, known)
        return call(*args, **named)

    return checked


class DataError(CaptionerError):
    """A data set or output cannot be read or written, or strict mode refuses its content."""


class ImageError(CaptionerError):
    """One image cannot be turned into RGB pixels.

    Attributes:
        kind: error code for programs, one of `IMAGE_ERROR_KINDS`.
    """

    def __init__(self, message: str, *, kind: ImageErrorKind = "damaged"):
        super().__init__(message)
        self.kind: ImageErrorKind = kind


class ModelError(CaptionerError):
    """Weights, a backbone or a model directory cannot be used."""


class PlugInError(ModelError):
    """The code of a plug-in fails while a model computes."""


class DivergedError(CaptionerError):
    """Loss, gradient norm or weights are not finite."""


class ShortageError(CaptionerError):
    """There is not enough memory."""


class CheckpointError(CaptionerError):
    """A training run cannot be saved or resumed."""


def other_arithmetic(was: str | None, now: str) -> str:
    """Return a message that the arithmetic changed; a run of 0.1 did not record its own (None)."""
    return f"arithmetic was {was or 'not recorded'}, is {now}"


# Parts of the RuntimeErrors that torch raises on its devices.
_SHORTAGE = (
    *("out of memory", "allocate memory", "not enough memory", "Storage size calculation"),
    "ALLOC_FAILED",  # of cuBLAS and cuDNN
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch means that there is not enough memory."""
    text = str(error)
    from_torch = isinstance(error, RuntimeError) and any(part in text for part in _SHORTAGE)
    return from_torch or isinstance(error, MemoryError)


@contextmanager
def within_memory(doing: str) -> Iterator[None]:
    """Turn any out-of-memory error into a `ShortageError`.

    Args:
        doing: the purpose of the memory, such as "to train".

    Raises:
        ShortageError: if there is not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ShortageError(
            f"not enough memory {doing}{reason and f' ({reason})'}; use a smaller batch size, beam "
            f"size or model, or free some memory"
        ) from error
