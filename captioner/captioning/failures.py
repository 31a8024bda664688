"""`errors.jsonl` next to an output file: the images that failed, and why, for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import DataError
from captioner.system.escapes import to_json, utf8_name
from captioner.system.files import no_stream, whole_file
from captioner.system.foreign import plain
from captioner.system.ownership import check

ERRORS = "errors.jsonl"


@contextmanager
def failure_list(output: Path) -> Iterator[Callable[[str, str | None, str], bool]]:
    """Write a job's failures to `errors.jsonl` next to its output, atomically.

    The lines of other jobs in the same folder stay. Without any line, the file is deleted.

    Yields:
        A function that adds a failure, (image name, error kind, message), and returns whether the
        list of an earlier run lacks it.
    """
    path = output.with_name(ERRORS)
    known = set(listed_failures(output)[0])  # also fails before a long job, not after it
    lines: list[str] = []

    def add(name: str, kind: str | None, message: str) -> bool:
        row = {"output": utf8_name(output.name), "path": utf8_name(name)}
        lines.append(to_json(row | {"kind": kind, "message": message}) + "\n")
        return lines[-1] not in known

    yield add
    lines += listed_failures(output)[1]  # other jobs may have written meanwhile
    if lines:
        with whole_file(path, "failures") as aside, aside.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    elif path.exists():  # a link to nothing is the user's
        path.unlink(missing_ok=True)


def listed_failures(output: Path) -> tuple[list[str], list[str]]:
    """Return the lines of `errors.jsonl` of this and of other jobs; refuse a foreign file."""
    errors = output.with_name(ERRORS)
    try:
        check(errors, "failures")
        # Only a line feed ends a line: messages may hold other line ends.
        with open(errors, encoding="utf-8", newline="\n", opener=no_stream) as file:
            lines = list(file)
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        raise DataError(f"{errors}: cannot be read ({plain(error)}); move the file away") from error
    own_prefix = to_json({"output": utf8_name(output.name)})[:-1] + ","
    own = [line for line in lines if line.startswith(own_prefix)]
    return own, [line for line in lines if not line.startswith(own_prefix)]
