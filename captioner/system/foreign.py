r"""Make foreign text safe for a message: short, on one line, without terminal control characters.

Foreign are file names, settings, file contents and messages of libraries. Line ends, direction
marks and bytes that are not UTF-8 become escapes such as `\x1b`, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

LIMIT = 300  # characters of a foreign text
MAX_LINE = 900  # characters of a line of a message, with a few foreign texts
MAX_LINES = 100  # lines of a message

_MAX_DEPTH = 20
_MAX_BITS = 4096  # longest integer that is shown in digits


def plain(value: object, limit: int = LIMIT) -> str:
    """Return a name, a path or an exception as one printable line, without quotation marks.

    A text of more than `limit` characters loses its middle.
    """
    text = " ".join(str(value).split()) if isinstance(value, BaseException) else str(value)
    return _cut(_escaped(_cut(text, limit)), limit)


def last_line(error: BaseException) -> str:
    """Return the last line of an error message; long ones begin with tracebacks."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def excerpt(value: object, limit: int = LIMIT) -> str:
    """Return the first `limit` characters of a value's `repr` as one printable line.

    The value may be a JSON or YAML document of any size and depth.
    """
    text = ""
    for piece in _pieces(value, limit, 0):
        text += piece
        if len(text) > limit:
            return f"{_escaped(text[:limit])[: limit - 3]}..."
    text = _escaped(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(text: str) -> str:
    """Return the same lines, of any length and number, without terminal control characters."""
    return "\n".join(map(_escaped, text.split("\n")))


def message(text: str) -> str:
    """Return a message with printable lines of bounded length and number."""
    return "\n".join(bounded(text.split("\n")))


def bounded(lines: Sequence[str]) -> list[str]:
    """Return printable lines of bounded length and number; the last counts the omitted lines."""
    most = MAX_LINES if len(lines) <= MAX_LINES else MAX_LINES - 1
    shown = [plain(line, MAX_LINE) for line in lines[:most]]
    return [*shown, f"... and {len(lines) - most:,} more"] if most < len(lines) else shown


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[len(text) - end :]}"


def _pieces(value: object, limit: int, depth: int) -> Iterator[str]:
    """Yield the `repr` of a value piece by piece, so that text that is not shown is not built."""
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        yield f"an integer of {value.bit_length():,} bits"
    elif isinstance(value, BaseException) and depth < _MAX_DEPTH:
        yield f"{type(value).__name__}: "
        yield from _pieces(value.args[0] if len(value.args) == 1 else str(value), limit, depth + 1)
    elif not isinstance(value, Mapping | Set | list | tuple):
        yield repr(value)[: limit + 1]
    elif depth == _MAX_DEPTH:
        yield "..."
    else:
        begin, end = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
        yield begin
        for place, item in enumerate(value):
            yield ", " if place else ""
            yield from _pieces(item, limit, depth + 1)
            if isinstance(value, Mapping):
                yield ": "
                yield from _pieces(value[item], limit, depth + 1)
        yield end
